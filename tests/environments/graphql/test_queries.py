"""What queries answer, and what they cost the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.models import Build, BuildTag, Channel, Environment, IndexedPackage, Namespace
from tests import factories
from tests.environments.graphql.asking import ask, execute

CURRENT = """query($n: Int) { environments(first: $n) { totalCount pageInfo { hasNextPage } edges {
  node {
    id name description pinned updatedAt createdBy folder namespace { name myPermissions }
    tags { name build { ref } }
    latest { ref number tags { name } lock { digest } environment { name } }
    current {
      ref number state finished isCurrent requestedBy startedAt apparentSize uniqueSize sharedSize
      prefixPath logLines tags { name } events { state at } timings { stage } failure { code }
      verdicts { rule } downloads { name url } lock { digest packageCount size }
      specification { digest channels dependencies }
    }
  }
} } }"""
LISTS: dict[str, str] = {
    "environments": CURRENT,
    "environments and their builds": """query($n: Int) { environments(first: $n) { edges { node {
      builds(first: 5) { totalCount pageInfo { hasNextPage } edges { node {
        ref isCurrent lock { digest } } } } } } } }""",
    "environments and how many builds": """query($n: Int) { environments(first: $n) {
      edges { node { builds { totalCount } } } } }""",
    "environments and the end of their builds": """query($n: Int) { environments(first: $n) {
      edges { node { builds(first: 1) { pageInfo { hasNextPage endCursor } } } } } }""",
    "namespaces": """query($n: Int) { namespaces(first: $n) { edges { node {
      name myPermissions grants { user group role } environments { totalCount } } } } }""",
    "builds": """query($n: Int) { builds(first: $n) { totalCount edges { node {
      ref environment { name namespace { name } } lock { digest } tags { name } sharedSize
    } } } }""",
    "packages of locks": """query($n: Int) { builds(first: $n) { edges { node { lock {
      packages(first: 3) { totalCount edges { node { name version sha256 } } } } } } } }""",
    "uses of a package": """query($n: Int) { lockedPackages(name: "python", first: $n) {
      totalCount edges { node { package { name version platform }
      environment { name namespace { name } } build { ref isCurrent tags { name } } } } } }""",
    "packages of channels": """query($n: Int) { packages(search: "p", first: $n) {
      totalCount edges { node { name latestVersion channel { name url } } } } }""",
    "namespaces of oneself": """query { me { username tokens { name role }
      namespaces { roles namespace { name environments { totalCount } } } } }""",
}


def make_many(number: int) -> None:
    alice = User.objects.get(username="alice")
    channel = Channel.objects.get_or_create(url=factories.CHANNEL)[0]
    for index in range(number):
        namespace = factories.make_namespace(f"space-{number}-{index}")
        namespace.grant(Role.ADMIN, alice)
        environment = factories.make_environment(namespace, f"env-{index}")
        Environment.objects.filter(pk=environment.pk).update(created_by=alice)
        package = factories.make_package("python", f"3.{index}")
        factories.make_build(environment, lock=factories.make_lock(package))
        build = factories.make_build(environment, lock=factories.make_lock(package))
        factories.make_build(environment, BuildState.QUEUED)
        BuildTag.objects.create(environment=environment, build=build, name="prod")
        IndexedPackage.objects.create(channel=channel, name=f"p{number}-{index}")


def queries_of(actor: Actor, document: str, number: int) -> list[str]:
    with CaptureQueriesContext(connection) as queries:
        ask(actor, document, **({"n": number} if "$n" in document else {}))
    return [one["sql"] for one in queries]


def test_each_list_costs_as_many_queries_for_a_hundred_as_for_ten(alice: Actor) -> None:
    make_many(10)
    for document in LISTS.values():
        queries_of(alice, document, 10)  # this warms what Django keeps in memory
    few = {name: queries_of(alice, document, 10) for name, document in LISTS.items()}
    make_many(90)
    more = {name: queries_of(alice, document, 100) for name, document in LISTS.items()}
    for name in LISTS:
        assert len(more[name]) == len(few[name]), f"{name}:\n\n" + "\n".join(
            query[:300] for query in more[name]
        )
        assert len(few[name]) <= 14, name


def test_a_total_is_counted_only_where_it_is_asked_for(alice: Actor) -> None:
    make_many(3)
    page = "{ environments(first: 2) { %s edges { node { name } } } }"
    with CaptureQueriesContext(connection) as without:
        ask(alice, page % "")
    with CaptureQueriesContext(connection) as with_total:
        assert ask(alice, page % "totalCount")["environments"]["totalCount"] == 3
    assert len(with_total) == len(without) + 1
    assert "OVER (" not in "".join(one["sql"] for one in with_total)


def test_pages_lead_through_all_of_a_list(alice: Actor) -> None:
    make_many(7)
    document = """query($after: String, $before: String, $first: Int, $last: Int) {
      environments(after: $after, before: $before, first: $first, last: $last) { totalCount
      pageInfo { hasNextPage hasPreviousPage endCursor startCursor }
      edges { cursor node { name } } } }"""
    seen: list[str] = []
    after = None
    while True:
        found = ask(alice, document, first=3, after=after)["environments"]
        assert found["totalCount"] == 7
        seen += [edge["node"]["name"] for edge in found["edges"]]
        after = found["pageInfo"]["endCursor"]
        if not found["pageInfo"]["hasNextPage"]:
            break
    assert seen == [f"env-{index}" for index in range(7)]
    end = ask(alice, document, last=2)["environments"]
    assert [edge["node"]["name"] for edge in end["edges"]] == ["env-5", "env-6"]
    assert end["pageInfo"]["hasPreviousPage"]
    before = ask(alice, document, last=2, before=end["pageInfo"]["startCursor"])["environments"]
    assert [edge["node"]["name"] for edge in before["edges"]] == ["env-3", "env-4"]
    without_rows = "{ environments(first: 7) { totalCount pageInfo { hasNextPage endCursor } } }"
    assert ask(alice, without_rows)["environments"] == {
        "totalCount": 7,
        "pageInfo": {"hasNextPage": False, "endCursor": end["pageInfo"]["endCursor"]},
    }


def test_the_current_build_the_newest_one_and_sizes(
    alice: Actor, environment: Environment, data_folder: Any
) -> None:
    factories.make_build(environment)
    newest = factories.make_build(environment, BuildState.FAILED)
    Build.objects.filter(pk=newest.pk).update(
        failure={
            "code": "unsatisfiable",
            "message": "no",
            "where": "",
            "hint": "",
            "details": {
                "conflicts": [{"requirements": ["a", "b"], "reason": "r", "chain": ["a", "c"]}],
                "missing": [{"requirement": "x", "channels": ["c"], "similar": ["y"]}],
            },
        }
    )
    found = ask(
        alice,
        """{ environment(namespace: "research", name: "ml") { folder
          current { number isCurrent apparentSize uniqueSize sharedSize prefixPath }
          latest { number state isCurrent prefixPath apparentSize failure {
            code conflicts { requirements chain } missing { requirement similar } } } } }""",
    )["environment"]
    assert found["folder"] == str(data_folder / "envs" / "research" / "ml")
    assert found["current"] | {"prefixPath": ""} == {
        "number": 1,
        "isCurrent": True,
        "apparentSize": 1000,
        "uniqueSize": 100,
        "sharedSize": 900,
        "prefixPath": "",
    }
    assert found["current"]["prefixPath"].startswith(str(data_folder / "prefixes"))
    assert found["latest"] == {
        "number": 2,
        "state": "FAILED",
        "isCurrent": False,
        "prefixPath": "",
        "apparentSize": None,
        "failure": {
            "code": "unsatisfiable",
            "conflicts": [{"requirements": ["a", "b"], "chain": ["a", "c"]}],
            "missing": [{"requirement": "x", "similar": ["y"]}],
        },
    }


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ('namespace: "research", environment: "ml", number: "2"', 2),
        ('namespace: "research", environment: "ml", number: "current"', 1),
        ('namespace: "research", environment: "ml"', 1),
        ('namespace: "research", environment: "ml", number: "latest"', 2),
        ('namespace: "research", environment: "ml", number: "prod"', 1),
        ('namespace: "research", environment: "ml", number: "7"', None),
        ('namespace: "research", environment: "none", number: "1"', None),
        ('id: "999999"', None),
        ('id: "not a number"', None),
        ('id: "99999999999999999999999999"', None),
    ],
)
def test_a_build_is_found_by_its_names(
    alice: Actor, environment: Environment, arguments: str, number: int | None
) -> None:
    first = factories.make_build(environment)
    factories.make_build(environment, BuildState.QUEUED)
    BuildTag.objects.create(environment=environment, build=first, name="prod")
    found = ask(alice, f"{{ build({arguments}) {{ number }} }}")["build"]
    assert (found["number"] if found else None) == number


FILTERED: list[tuple[str, Callable[[], set[str]]]] = [
    ('{namespace: "research"}', lambda: {"ml", "web"}),
    ('{name: "ml"}', lambda: {"ml"}),
    ('{search: "W"}', lambda: {"web"}),
    ('{search: "nothing"}', set),
    ("{state: FAILED}", lambda: {"web"}),
    ("{state: [READY, FAILED]}", lambda: {"ml", "web"}),
    ('{package: "numpy"}', lambda: {"ml"}),
    ('{package: "numpy", state: FAILED}', set),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERED, ids=[one for one, _ in FILTERED])
def test_environments_are_filtered(
    alice: Actor, environment: Environment, filters: str, expected: Callable[[], set[str]]
) -> None:
    numpy = factories.make_lock(factories.make_package("numpy"))
    factories.make_build(environment, lock=numpy)
    web = factories.make_environment(environment.namespace, "web")
    factories.make_build(web)
    factories.make_build(web, BuildState.FAILED)
    document = (
        f"{{ environments(filters: {filters}) {{ totalCount edges {{ node {{ name }} }} }} }}"
    )
    found = ask(alice, document)["environments"]
    assert {edge["node"]["name"] for edge in found["edges"]} == expected()
    assert found["totalCount"] == len(expected())


def test_namespaces_and_builds_are_filtered_and_ordered(
    alice: Actor, environment: Environment
) -> None:
    make_many(2)
    names = "{ namespaces(%s) { edges { node { name } } } }"
    found = ask(alice, names % 'filters: {name: {iContains: "SPACE"}}, order: {name: DESC}')
    assert [edge["node"]["name"] for edge in found["namespaces"]["edges"]] == [
        "space-2-1",
        "space-2-0",
    ]
    assert ask(alice, names % "filters: {public: true}")["namespaces"]["edges"] == []
    builds = """{ builds(
      filters: {namespace: "space-2-0", state: READY}, order: [{number: ASC}]
    ) { edges { node { number } } } }"""
    found = ask(alice, builds)
    assert [edge["node"]["number"] for edge in found["builds"]["edges"]] == [1, 2]


def test_builds_are_compared_and_a_package_is_explained(
    alice: Actor, environment: Environment
) -> None:
    make = factories.make_package
    numpy = make("numpy", "1.0", depends=["python >=3"])
    factories.make_build(environment, lock=factories.make_lock(make("python"), numpy, make("old")))
    newer = make("numpy", "2.0", depends=["python >=3"])
    build = factories.make_build(
        environment,
        lock=factories.make_lock(make("python"), newer, make("fresh")),
        text="dependencies: [numpy]",
    )
    found = ask(
        alice,
        """query($id: ID!) { build(id: $id) {
          diffTo { platform sizeDelta added { name kind } removed { name }
            changed { name kind old { version } new { version } } }
          why(name: "python") lock { packages(search: "NUM") { edges { node { name version } } } }
          log } }""",
        id=str(build.pk),
    )["build"]
    assert found["diffTo"] == {
        "platform": "linux-64",
        "sizeDelta": 0,
        "added": [{"name": "fresh", "kind": "CONDA"}],
        "removed": [{"name": "old"}],
        "changed": [
            {
                "name": "numpy",
                "kind": "UPGRADE",
                "old": {"version": "1.0"},
                "new": {"version": "2.0"},
            }
        ],
    }
    assert found["why"] == [["numpy", "python"]]
    assert found["lock"]["packages"]["edges"] == [{"node": {"name": "numpy", "version": "2.0"}}]


def test_what_is_our_own_fault_is_told_by_a_number_only(
    alice: Actor, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    build = factories.make_build(environment)
    Build.objects.filter(pk=build.pk).update(failure={"details": "no object"})
    Build.objects.filter(pk=build.pk).update(timings=["no", "object"])
    result = execute(alice, "query($id: ID!) { build(id: $id) { timings { stage } } }", id=build.pk)
    assert result.errors
    (error,) = result.errors
    assert error.extensions["code"] == "internal-error"  # type: ignore[index]
    number = error.extensions["details"]["error"]  # type: ignore[index]
    assert number in error.message
    assert "Traceback" not in error.message
    assert number in caplog.text


def test_the_committed_schema_is_the_one_that_is_served() -> None:
    call_command("export_graphql", "--check")


def test_namespaces_are_those_one_holds_a_role_in(alice: Actor) -> None:
    factories.make_namespace("public-place", public=True)
    found = ask(alice, "{ me { namespaces { roles namespace { name } } } }")["me"]["namespaces"]
    assert found == [{"roles": ["DEVELOPER"], "namespace": {"name": "research"}}]
    shown = ask(alice, "{ namespaces { edges { node { name myPermissions } } } }")
    assert [edge["node"]["name"] for edge in shown["namespaces"]["edges"]] == [
        "public-place",
        "research",
    ]
    assert Namespace.objects.count() == 2


def test_a_preview_that_is_asked_for_again_still_says_its_warnings(alice: Actor) -> None:
    document = """mutation { previewSolve(namespace: "research", wait: 0,
      specification: "dependencies: [python]\\nprefix: /opt/mine") {
      ... on Preview { id warnings } } }"""
    told = ask(alice, document)["previewSolve"]
    assert told["warnings"]
    again = ask(alice, "query($id: ID!) { preview(id: $id) { warnings } }", id=told["id"])
    assert again["preview"]["warnings"] == told["warnings"]


def test_environments_with_their_namespaces_and_current_builds_are_one_statement(
    alice: Actor,
) -> None:
    make_many(3)
    document = """{ environments(first: 3) { edges { node {
      name namespace { name } current { number state } } } } }"""
    with CaptureQueriesContext(connection) as sent:
        found = ask(alice, document)["environments"]["edges"]
    assert len(sent) == 1, [one["sql"][:300] for one in sent]
    assert [edge["node"]["namespace"]["name"] for edge in found] == [
        f"space-3-{index}" for index in range(3)
    ]
    assert {edge["node"]["current"]["number"] for edge in found} == {2}


def test_a_deleted_build_is_not_shown_as_the_current_one(
    alice: Actor, environment: Environment
) -> None:
    build = factories.make_build(environment)
    Build.objects.filter(pk=build.pk).update(deleted_at=build.created_at)
    for fields in ("number", "ref"):
        document = f"{{ environments {{ edges {{ node {{ current {{ {fields} }} }} }} }} }}"
        (edge,) = ask(alice, document)["environments"]["edges"]
        assert edge["node"]["current"] is None
