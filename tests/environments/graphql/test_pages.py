"""Pages of lists while rows change between them: nothing is skipped, nothing is repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from graphql import GraphQLObjectType

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from condastore.schema import schema
from environments.graphql._private import graphql_schema
from environments.graphql.nodes import global_id, registered
from environments.models import Build, Environment, Namespace
from tests import factories
from tests.environments.graphql.asking import ask, execute

PAGE = """query($after: String, $before: String, $first: Int, $last: Int) {
  environments(after: $after, before: $before, first: $first, last: $last, ORDER) {
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    edges { cursor node { name updatedAt DEEP } } } }"""
#: Fields that make a page one that is prepared, or one that is not.
DEPTHS = {"columns only": "", "with lists": "tags { name }"}


def names(page: Any) -> list[str]:
    return [edge["node"]["name"] for edge in page["edges"]]


def pages(
    actor: Actor, document: str, between: Callable[[], Any], *, size: int = 3
) -> Iterator[list[str]]:
    """The names on each page; `between` runs after each of them."""
    after = None
    while True:
        found = ask(actor, document, first=size, after=after)["environments"]
        yield names(found)
        after = found["pageInfo"]["endCursor"]
        if not found["pageInfo"]["hasNextPage"]:
            return
        between()


@pytest.fixture
def shelf(alice: Actor) -> Namespace:
    """Nine environments, e0 to e8, changed in that order."""
    namespace = factories.make_namespace("shelf")
    namespace.grant(Role.ADMIN, User.objects.get(username="alice"))
    start = timezone.now() - timedelta(days=1)
    for number in range(9):
        made = factories.make_environment(namespace, f"e{number}")
        Environment.objects.filter(pk=made.pk).update(updated_at=start + timedelta(hours=number))
    return namespace


@pytest.mark.parametrize("deep", DEPTHS.values(), ids=DEPTHS.keys())
@pytest.mark.parametrize("repeats", [1, 3])  # a list is prepared when it is asked for again
def test_by_name_nothing_is_skipped_or_repeated_when_rows_come_and_go(
    alice: Actor, shelf: Namespace, deep: str, repeats: int
) -> None:
    document = PAGE.replace("ORDER", "order: {name: ASC}").replace("DEEP", deep)
    for _ in range(repeats):
        added = iter(["a0", "a1", "a2", "a3"])

        def between(added: Iterator[str] = added) -> None:
            factories.make_environment(shelf, next(added))  # before the page: shifts offsets

        seen = [name for page in pages(alice, document, between) for name in page]
        assert [name for name in seen if name.startswith("e")] == [f"e{n}" for n in range(9)]
        assert len(seen) == len(set(seen))
        Environment.objects.filter(name__startswith="a").delete()


@pytest.mark.parametrize("deep", DEPTHS.values(), ids=DEPTHS.keys())
def test_a_row_that_goes_away_hides_no_other_one(alice: Actor, shelf: Namespace, deep: str) -> None:
    document = PAGE.replace("ORDER", "order: {name: ASC}").replace("DEEP", deep)
    gone = iter(["e0", "e1"])

    def between() -> None:
        if (name := next(gone, None)) is not None:
            Environment.objects.filter(name=name).update(deleted_at=timezone.now())

    seen = [name for page in pages(alice, document, between) for name in page]
    assert seen == [f"e{n}" for n in range(9)]


@pytest.mark.parametrize("deep", DEPTHS.values(), ids=DEPTHS.keys())
def test_by_time_a_row_that_changes_moves_but_no_other_is_skipped_or_repeated(
    alice: Actor, shelf: Namespace, deep: str
) -> None:
    document = PAGE.replace("ORDER", "order: {updatedAt: DESC}").replace("DEEP", deep)
    changed = iter(["e2", "e0"])  # not seen yet: each jumps to the front, behind the reader

    def between() -> None:
        if (name := next(changed, None)) is not None:
            Environment.objects.filter(name=name).update(updated_at=timezone.now())

    seen = [name for page in pages(alice, document, between) for name in page]
    assert seen == ["e8", "e7", "e6", "e5", "e4", "e3", "e1"]


def test_backwards_from_the_end_rows_are_the_same(alice: Actor, shelf: Namespace) -> None:
    document = PAGE.replace("ORDER", "order: {name: ASC}").replace("DEEP", "")
    end = ask(alice, document, last=4)["environments"]
    assert names(end) == ["e5", "e6", "e7", "e8"]
    assert end["pageInfo"]["hasPreviousPage"]
    factories.make_environment(shelf, "e55")
    before = ask(alice, document, last=4, before=end["pageInfo"]["startCursor"])["environments"]
    assert names(before) == ["e1", "e2", "e3", "e4"]


def test_the_cursor_of_each_row_is_the_same_by_every_way(alice: Actor, shelf: Namespace) -> None:
    for order in ("{name: ASC}", "{name: DESC}", "{createdAt: ASC}", "{updatedAt: DESC}"):
        plain = PAGE.replace("ORDER", f"order: {order}").replace("DEEP", "")
        deep = PAGE.replace("ORDER", f"order: {order}").replace("DEEP", "tags { name }")
        first = ask(alice, plain, first=4)["environments"]["edges"]
        assert [edge["cursor"] for edge in ask(alice, plain, first=4)["environments"]["edges"]] == [
            edge["cursor"] for edge in first
        ]
        again = ask(alice, deep, first=4)["environments"]["edges"]
        assert [edge["cursor"] for edge in again] == [edge["cursor"] for edge in first]


@pytest.mark.parametrize(
    "cursor", ["", "x", "YXJyYXljb25uZWN0aW9uOjE=", "b3JkZXJlZGN1cnNvcjp7fQ=="]
)
@pytest.mark.parametrize("which", ["after", "before"])
def test_what_is_no_cursor_is_refused(alice: Actor, cursor: str, which: str) -> None:
    document = PAGE.replace("ORDER", "order: {name: ASC}").replace("DEEP", "")
    result = execute(alice, document, **{which: cursor})
    assert result.errors
    assert result.errors[0].extensions["code"] == "invalid-input"  # type: ignore[index]
    assert result.errors[0].extensions["where"] == which  # type: ignore[index]


@pytest.mark.parametrize("deep", ["", "tags { name }"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize(
    ("first_order", "second_order", "named"),
    [
        ("{name: ASC}", "{updatedAt: ASC}", "updated_at,pk"),
        ("{name: ASC}", "{name: DESC}", "-namespace__name,-name"),
        ("{updatedAt: DESC}", "{updatedAt: ASC}", "updated_at,pk"),
    ],
)
def test_a_cursor_of_another_order_is_refused(
    alice: Actor,
    shelf: Namespace,
    *,
    repeats: int,
    deep: str,
    first_order: str,
    second_order: str,
    named: str,
) -> None:
    first = PAGE.replace("ORDER", f"order: {first_order}").replace("DEEP", deep)
    second = PAGE.replace("ORDER", f"order: {second_order}").replace("DEEP", deep)
    for _ in range(3):
        page = ask(alice, first, first=2)["environments"]
        expected = ask(alice, second, first=2)["environments"]
    cursor = page["pageInfo"]["endCursor"]
    for _ in range(repeats):
        result = execute(alice, second, first=2, after=cursor)
        assert result.errors
        assert result.errors[0].extensions["code"] == "invalid-input"  # type: ignore[index]
        assert f"ordered by {named}" in result.errors[0].message
    assert ask(alice, second, first=2)["environments"] == expected


def test_a_cursor_of_a_list_is_none_of_a_nested_list(alice: Actor, shelf: Namespace) -> None:
    listed = PAGE.replace("ORDER", "order: {name: ASC}").replace("DEEP", "")
    cursor = ask(alice, listed, first=2)["environments"]["pageInfo"]["endCursor"]
    nested = """query($after: String) { namespaces(first: 5) { edges { node {
      environments(first: 20, after: $after) { edges { cursor node { name } } } } } } }"""
    found = ask(alice, nested)["namespaces"]["edges"][-1]["node"]["environments"]["edges"]
    after = ask(alice, nested, after=found[0]["cursor"])["namespaces"]["edges"][-1]["node"]
    assert len(after["environments"]["edges"]) == len(found) - 1 > 0
    for document, given in ((nested, cursor), (listed, found[0]["cursor"])):
        result = execute(alice, document, after=given)
        assert result.errors
        assert result.errors[0].extensions["code"] == "invalid-input"  # type: ignore[index]


def test_nested_lists_continue_after_their_own_cursors(alice: Actor, shelf: Namespace) -> None:
    environment = Environment.objects.get(name="e0")
    for _ in range(5):
        factories.make_build(environment)
    document = """query($after: String) { environment(namespace: "shelf", name: "e0") {
      builds(first: 2, after: $after) { totalCount pageInfo { hasNextPage endCursor }
        edges { node { number } } } } }"""
    seen, after = [], None
    while True:
        found = ask(alice, document, after=after)["environment"]["builds"]
        seen += [edge["node"]["number"] for edge in found["edges"]]
        after = found["pageInfo"]["endCursor"]
        if not found["pageInfo"]["hasNextPage"]:
            break
        factories.make_build(environment)
    assert seen == [5, 4, 3, 2, 1]


def test_packages_of_a_lock_and_uses_of_a_package_are_paged(alice: Actor, shelf: Namespace) -> None:
    for number in range(4):
        lock = factories.make_lock(
            factories.make_package("python", f"3.{number}"), factories.make_package(f"p{number}")
        )
        factories.make_build(Environment.objects.get(name=f"e{number}"), lock=lock)
    uses = """query($after: String) { lockedPackages(name: "python", first: 2, after: $after) {
      totalCount pageInfo { hasNextPage endCursor } edges { node { environment { name } } } } }"""
    seen, after = [], None
    while True:
        found = ask(alice, uses, after=after)["lockedPackages"]
        assert found["totalCount"] == 4
        seen += [edge["node"]["environment"]["name"] for edge in found["edges"]]
        after = found["pageInfo"]["endCursor"]
        if not found["pageInfo"]["hasNextPage"]:
            break
    assert seen == ["e0", "e1", "e2", "e3"]
    packages = """query($after: String) { builds(first: 1, order: {createdAt: ASC}) { edges { node {
      lock { packages(first: 1, after: $after) { pageInfo { hasNextPage endCursor }
        edges { node { name } } } } } } } }"""

    def page(after: str | None) -> Any:
        return ask(alice, packages, after=after)["builds"]["edges"][0]["node"]["lock"]["packages"]

    first = page(None)
    second = page(first["pageInfo"]["endCursor"])
    assert [edge["node"]["name"] for edge in first["edges"] + second["edges"]] == ["p0", "python"]
    assert not second["pageInfo"]["hasNextPage"]


def test_a_list_without_a_size_has_a_page_of_full_size(
    alice: Actor, shelf: Namespace, settings: Any
) -> None:
    settings.GRAPHQL_MAX_PAGE = 4
    for fields in ("name", "name tags { name }"):
        document = (
            f"{{ environments {{ pageInfo {{ hasNextPage }} edges {{ node {{ {fields} }} }} }} }}"
        )
        found = ask(alice, document)["environments"]
        assert (len(found["edges"]), found["pageInfo"]["hasNextPage"]) == (4, True)


# --- objects by global id -------------------------------------------------------------------------


def test_node_finds_what_an_id_names_and_nodes_keep_their_order(
    alice: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment)
    found = ask(
        alice,
        "{ environments { edges { node { id databaseId current { id databaseId } } } } }",
    )["environments"]["edges"][0]["node"]
    assert found["databaseId"] == str(environment.pk)
    assert found["current"]["databaseId"] == str(build.pk)
    by_id = """query($id: ID!) { node(id: $id) { __typename id
      ... on Build { number environment { name } } ... on Environment { name } } }"""
    assert ask(alice, by_id, id=found["current"]["id"])["node"] == {
        "__typename": "Build",
        "id": found["current"]["id"],
        "number": 1,
        "environment": {"name": "ml"},
    }
    several = "query($ids: [ID!]!) { nodes(ids: $ids) { __typename id } }"
    ids = [found["id"], "nonsense", found["current"]["id"], global_id("Build", 10**6), found["id"]]
    answered = ask(alice, several, ids=ids)["nodes"]
    assert [one and one["id"] for one in answered] == [found["id"], None, ids[2], None, ids[0]]


def test_node_shows_nobody_what_lists_do_not(environment: Environment, alice: Actor) -> None:
    build = factories.make_build(environment)
    stranger = factories.actor(factories.make_user("stranger"))
    document = "query($id: ID!) { node(id: $id) { id } }"
    for kind, row in (("Build", build), ("Environment", environment)):
        assert ask(alice, document, id=global_id(kind, row.pk))["node"] is not None
        assert ask(stranger, document, id=global_id(kind, row.pk))["node"] is None
    assert ask(stranger, document, id=global_id("Lock", build.lock_id))["node"] is None


def test_every_type_of_nodes_is_found_by_its_id() -> None:
    shown = graphql_schema(schema)
    kinds = {
        name
        for name, kind in shown.type_map.items()
        if isinstance(kind, GraphQLObjectType) and "Node" in {one.name for one in kind.interfaces}
    }
    assert kinds == registered()


def test_an_id_of_another_type_is_not_found(alice: Actor, environment: Environment) -> None:
    build = factories.make_build(environment)
    document = "query($id: ID!) { build(id: $id) { number } }"
    assert ask(alice, document, id=global_id("Build", build.pk))["build"] == {"number": 1}
    assert ask(alice, document, id=str(build.pk))["build"] == {"number": 1}
    assert ask(alice, document, id=global_id("Environment", build.pk))["build"] is None


def test_nodes_of_one_type_are_one_statement(alice: Actor, environment: Environment) -> None:
    builds = [factories.make_build(environment) for _ in range(5)]
    document = "query($ids: [ID!]!) { nodes(ids: $ids) { ... on Build { number } } }"
    ids = [global_id("Build", build.pk) for build in builds]
    ask(alice, document, ids=ids)
    with CaptureQueriesContext(connection) as sent:
        found = ask(alice, document, ids=ids)["nodes"]
    assert [one["number"] for one in found] == [1, 2, 3, 4, 5]
    assert len(sent) == 1
    assert Build.objects.count() == 5
