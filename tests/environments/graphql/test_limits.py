"""What is too much is refused before it costs anything."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from environments.models import Environment
from tests.environments.graphql.asking import ask, execute, post


def codes(result: Any) -> set[str]:
    assert result.errors
    return {error.extensions["code"] for error in result.errors}


def nested(levels: int) -> str:
    inner = "name"
    for _ in range(levels):
        inner = f"namespace {{ environments(first: 1) {{ edges {{ node {{ {inner} }} }} }} }}"
    return f"{{ environments(first: 1) {{ edges {{ node {{ {inner} }} }} }} }}"


def test_a_query_that_is_too_deep_is_refused_with_a_code(bob: Actor) -> None:
    assert execute(bob, nested(2)).errors is None
    result = execute(bob, nested(3))
    assert codes(result) == {"query-too-deep"}
    assert "12 are allowed" in result.errors[0].message  # type: ignore[index]


def test_depth_counts_through_fragments(bob: Actor) -> None:
    spread = nested(3).replace("environments(first: 1)", "...All", 1)
    inner = nested(3)[2:-2]
    assert "...All" in spread
    assert codes(execute(bob, f"{{ ...All }} fragment All on Query {{ {inner} }}")) == {
        "query-too-deep"
    }


@pytest.mark.parametrize(
    ("page", "where"),
    [
        ('after: "x"', "after"),
        ('before: ""', "before"),
        ("first: -1", "first"),
        ("last: $n", "last"),
    ],
)
def test_a_nested_page_is_refused_like_one_at_the_top(bob: Actor, page: str, where: str) -> None:
    head = "query($n: Int)" if "$n" in page else "query"
    document = f"""{head} {{ namespaces(first: 2) {{ edges {{ node {{ ...spaces }} }} }} }}
    fragment spaces on Namespace {{ ... on Namespace {{
      environments({page}) {{ edges {{ cursor }} }}
    }} }}"""
    result = execute(bob, document, n=101)
    assert codes(result) == {"invalid-input"}
    assert result.errors[0].extensions["where"] == where  # type: ignore[index]


@pytest.mark.parametrize("levels", [300, 1900])
def test_bottomless_nesting_is_refused_and_not_run_into_the_ground(bob: Actor, levels: int) -> None:
    result = execute(bob, "{ a " * levels + "}" * levels)
    assert codes(result) <= {"query-too-deep", "query-too-long"}


def test_too_many_aliases_are_refused(bob: Actor) -> None:
    within = "{" + " ".join(f"a{n}: me {{ username }}" for n in range(30)) + "}"
    assert execute(bob, within).errors is None
    beyond = "{" + " ".join(f"a{n}: me {{ username }}" for n in range(31)) + "}"
    assert codes(execute(bob, beyond)) == {"query-too-many-aliases"}


def test_aliases_are_counted_as_often_as_their_fragment_is_used(bob: Actor) -> None:
    document = (
        "{ " + " ".join(f"a{n}: me {{ ...F }}" for n in range(8)) + " }"
        " fragment F on Me { b: username c: username d: username }"
    )
    assert codes(execute(bob, document)) == {"query-too-many-aliases"}


def test_fragments_within_fragments_cannot_explode(bob: Actor) -> None:
    parts = [
        f"fragment F{n} on Me {{ ...F{n + 1} a{n}: username ...F{n + 1} }}" for n in range(200)
    ]
    document = "{ me { ...F0 } } fragment F200 on Me { username } " + " ".join(parts)
    started = time.process_time()
    assert codes(execute(bob, document)) == {"query-too-many-aliases"}
    assert time.process_time() - started < 5  # not 2^200 steps


def test_a_fragment_that_holds_itself_is_refused(bob: Actor) -> None:
    assert codes(execute(bob, "{ me { ...F } } fragment F on Me { ...F }")) == {"bad-query"}


def test_too_many_tokens_are_refused(bob: Actor) -> None:
    assert codes(execute(bob, "{ me { " + "username " * 4000 + "} }")) == {"query-too-long"}


def test_pages_of_pages_are_refused_by_the_number_of_objects(bob: Actor) -> None:
    document = """query($n: Int) { namespaces(first: $n) { edges { node {
        environments(first: $n) { edges { node { builds(first: $n) { edges { node { id
    } } } } } } } } } }"""
    assert execute(bob, document, n=5).errors is None
    assert codes(execute(bob, document, n=100)) == {"query-too-wide"}
    assert codes(execute(bob, document)) == {"query-too-wide"}


def test_a_page_has_a_largest_size(bob: Actor) -> None:
    result = execute(bob, "{ environments(first: 101) { edges { node { id } } } }")
    assert codes(result) == {"invalid-input"}
    error = result.errors[0]  # type: ignore[index]
    assert "0 to 100 are allowed" in error.message
    assert error.extensions["where"] == "first"  # type: ignore[index]


@pytest.mark.parametrize(
    "arguments",
    [
        "first: -1",
        "first: 1, last: 1",
        'after: "nonsense"',
        'after: "YXJyYXljb25uZWN0aW9uOi0x"',
        'before: "%%%"',
        'after: "YXJyYXljb25uZWN0aW9uOjk5OTk5OTk5OTk5OTk5OTk5OTk5OTk="',
    ],
)
def test_a_page_that_makes_no_sense_is_refused(bob: Actor, arguments: str) -> None:
    result = execute(bob, f"{{ environments({arguments}) {{ totalCount }} }}")
    assert codes(result) == {"invalid-input"}


def test_a_query_that_does_not_fit_says_where(bob: Actor) -> None:
    result = execute(bob, "{ me { usernam } }")
    assert codes(result) == {"bad-query"}
    assert "usernam" in result.errors[0].message  # type: ignore[index]


def test_the_same_query_is_valid_for_one_and_checked_again_for_others(
    bob: Actor, environment: Environment
) -> None:
    document = "{ environments { edges { node { name } } } }"
    assert ask(bob, document) == ask(bob, document)
    assert codes(execute(bob, document.replace("name", "nome"))) == {"bad-query"}


def test_the_schema_may_be_read(client: Client, db: None) -> None:
    answer = post(
        client, "{ __schema { types { name fields { name type { ofType { name } } } } } }"
    )
    assert len(answer.json()["data"]["__schema"]["types"]) > 50


def test_a_body_that_is_too_large_is_refused_unread(client: Client, settings: Any) -> None:
    settings.MAX_REQUEST_BYTES = 1000
    answer = post(client, "{ me { username } }" + " " * 2000)
    assert answer.status_code == 413
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "too-large"


def test_a_body_that_is_no_json_is_told_so(client: Client, db: None) -> None:
    answer = client.post("/graphql", "{{", content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")
    answer = client.post("/graphql", {"query": "{ me { username } }"})  # multipart/form-data
    assert answer.status_code == 415
