"""Lists whose statement is compiled once answer as lists that are built anew, to each actor."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from guardian.shortcuts import assign_perm
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from accounts.access import Actor
from accounts.models import ApiToken, User
from accounts.roles import Role
from condastore.schema import schema
from environments.domain.lifecycle import BuildState
from environments.graphql import environments as environment_types
from environments.graphql import fast_execution
from environments.graphql.connections import RowsWanted
from environments.graphql.nodes import global_id
from environments.graphql.prepared import Remembered
from environments.models import Build, Environment
from environments.models.environments import SHARED
from tests import factories
from tests.environments.graphql.asking import Json, ask, execute

LIST = """query($n: Int, $after: String, $order: [EnvironmentOrder!]) {
  environments(first: $n, after: $after, order: $order) {
    __typename
    edges { cursor node { ...shown __typename
      place: namespace { id name description createdAt __typename }
      current { id number state finished finishedAt attempt sandboxed linkScripts } } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor __typename }
  }
}
fragment shown on Environment {
  id key: id name description pinned createdAt updatedAt createdBy lastUsedAt folder
}"""


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> Remembered:
    """What is prepared, of this test alone."""
    pages = Remembered()
    monkeypatch.setattr(fast_execution, "_pages", pages)
    return pages


@pytest.fixture
def shelf(db: None) -> dict[str, Environment]:
    """Environments of each kind, by name."""
    made = {}
    for name, public in (("research", False), ("open", True), ("secret", False)):
        namespace = factories.make_namespace(name, public=public)
        for number in range(3):
            environment = factories.make_environment(namespace, f"{name}-{number}")
            made[environment.name] = environment
    factories.make_build(made["research-0"])
    factories.make_build(made["research-1"], BuildState.FAILED)
    deleted = factories.make_build(made["open-0"])
    Build.objects.filter(pk=deleted.pk).update(deleted_at=timezone.now())
    factories.make_build(made["secret-0"])
    viewer = factories.make_user("viewer")
    made["research-0"].namespace.grant(Role.VIEWER, viewer)
    assign_perm(SHARED, viewer, made["secret-0"])
    Environment.objects.filter(pk=made["research-0"].pk).update(created_by=viewer)
    return made


def actors() -> dict[str, Actor]:
    viewer = factories.actor(User.objects.get(username="viewer"))
    chief = factories.actor(factories.make_user("chief", superuser=True))

    def limited(actor: Actor, *namespaces: str, role: str = "") -> Actor:
        token = ApiToken(user=actor.account, role=role, namespaces=list(namespaces))
        return replace(actor, token=token)

    return {
        "administrator": chief,
        "viewer": viewer,
        "viewer's token for one namespace": limited(viewer, "research"),
        "viewer's token for another": limited(viewer, "open"),
        "viewer's token for two": limited(viewer, "open", "secret"),
        "administrator's token as a viewer": limited(chief, role=Role.VIEWER.value),
        "administrator's token for one namespace": limited(chief, "secret"),
        "stranger": factories.actor(factories.make_user("stranger")),
        "signed out": Actor(AnonymousUser()),
    }


def names(answer: Json) -> list[str]:
    return [edge["node"]["name"] for edge in answer["environments"]["edges"]]


def test_each_actor_is_answered_as_by_a_list_that_is_built_anew(
    shelf: dict[str, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Json] = [
        {},
        {"n": 2},
        {"n": 0},
        {"n": 2, "order": [{"updatedAt": "DESC"}]},
        {"n": 100},
    ]
    for prepared_by in actors().values():  # the others find what the first of their kind prepared
        for variables in asked:
            for _ in range(3):
                ask(prepared_by, LIST, **variables)
    User.objects.filter(username__in=["chief", "stranger"]).delete()
    for who, actor in actors().items():
        for variables in asked:
            found = ask(actor, LIST, **variables)
            after = found["environments"]["pageInfo"]["endCursor"]
            second = ask(actor, LIST, **variables, after=after)
            with monkeypatch.context() as context:
                context.setattr(fast_execution, "_pages", Remembered())
                assert ask(actor, LIST, **variables) == found, who
                assert ask(actor, LIST, **variables, after=after) == second, who


def test_answers_are_those_of_the_execution_context_of_the_library(
    shelf: dict[str, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails after an update of strawberry or graphql-core: follow the library in
    `fast_execution` and `prepared`, or set `execution_context_class` in `condastore/schema.py` to
    the library's class and remove both."""
    for who, actor in actors().items():
        for variables in ({}, {"n": 2}, {"order": [{"updatedAt": "DESC"}]}):
            found = [ask(actor, LIST, **variables) for _ in range(3)]
            with monkeypatch.context() as context:
                context.setattr(
                    schema, "execution_context_class", StrawberryGraphQLCoreExecutionContext
                )
                plain = ask(actor, LIST, **variables)
            assert found == [plain] * 3, (who, variables)
            assert list(found[0]["environments"]) == list(plain["environments"])


def test_a_cursor_of_another_list_does_not_end_the_preparation(
    shelf: dict[str, Environment], remembered: Remembered
) -> None:
    chief = actors()["administrator"]
    by_time = ask(chief, LIST, n=2, order=[{"updatedAt": "ASC"}])["environments"]
    after = ask(chief, LIST, n=2)["environments"]["pageInfo"]["endCursor"]
    for _ in range(3):
        ask(chief, LIST, n=2, after=after)
    assert execute(chief, LIST, n=2, after=by_time["pageInfo"]["endCursor"]).errors
    assert all(page is not None for _, page in remembered._pages.values())


def test_the_third_request_for_a_list_is_one_statement_and_builds_no_queryset(
    shelf: dict[str, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = factories.actor(User.objects.get(username="viewer"))
    first = ask(viewer, LIST, n=3)
    ask(viewer, LIST, n=3)
    monkeypatch.setattr(type(Environment.objects), "all", None)
    with CaptureQueriesContext(connection) as queries:
        assert ask(viewer, LIST, n=3) == first
    assert len(queries) == 1


def test_rights_are_those_of_the_moment_of_each_request(shelf: dict[str, Environment]) -> None:
    viewer = factories.actor(User.objects.get(username="viewer"))
    for _ in range(3):
        seen = names(ask(viewer, LIST))
    assert seen == ["open-0", "open-1", "open-2", "research-0", "research-1", "research-2",
                    "secret-0"]  # fmt: skip
    shelf["research-0"].namespace.revoke(viewer.account)
    assert names(ask(viewer, LIST)) == ["open-0", "open-1", "open-2", "secret-0"]
    shelf["open-0"].namespace.public = False
    shelf["open-0"].namespace.save()
    assert names(ask(viewer, LIST)) == ["secret-0"]
    Environment.objects.filter(name="secret-0").update(deleted_at=timezone.now())
    assert names(ask(viewer, LIST)) == []


def test_two_accounts_of_one_kind_see_each_their_own(shelf: dict[str, Environment]) -> None:
    other = factories.make_user("other")
    shelf["secret-0"].namespace.grant(Role.VIEWER, other)
    viewer = factories.actor(User.objects.get(username="viewer"))
    for _ in range(3):
        mine, theirs = ask(viewer, LIST), ask(factories.actor(other), LIST)
    assert {"research-0", "secret-1"} & set(names(mine)) == {"research-0"}
    assert {"research-0", "secret-1"} & set(names(theirs)) == {"secret-1"}


def test_an_environment_shared_by_itself_tells_only_the_name_of_its_namespace(
    shelf: dict[str, Environment],
) -> None:
    shelf["secret-0"].namespace.description = "not for everybody"
    shelf["secret-0"].namespace.save()
    viewer = factories.actor(User.objects.get(username="viewer"))
    for _ in range(3):
        last = ask(viewer, LIST)["environments"]["edges"][-1]["node"]
        assert last["name"] == "secret-0"
        assert last["place"]["name"] == "secret"
        assert last["place"]["id"] == global_id("Namespace", 0)
        assert last["place"]["description"] == ""


def test_a_directive_changes_the_shape_of_each_request(shelf: dict[str, Environment]) -> None:
    document = """query($with: Boolean!) { environments(first: 1) { edges { node {
      name id @include(if: $with) } } } }"""
    viewer = factories.actor(User.objects.get(username="viewer"))
    for wanted in (True, False, True, False, True, False):
        (edge,) = ask(viewer, document, **{"with": wanted})["environments"]["edges"]
        assert ("id" in edge["node"]) is wanted


def test_filters_and_the_other_end_of_a_list_are_not_taken_for_the_plain_list(
    shelf: dict[str, Environment],
) -> None:
    document = """query($n: Int, $last: Int, $filters: EnvironmentFilter) {
      environments(first: $n, last: $last, filters: $filters) { edges { node { name } } } }"""
    viewer = factories.actor(User.objects.get(username="viewer"))
    for _ in range(3):
        assert len(names(ask(viewer, document, n=100))) == 7
        assert names(ask(viewer, document, last=1)) == ["secret-0"]
        assert names(ask(viewer, document, n=5, filters={"namespace": "open"})) == [
            "open-0",
            "open-1",
            "open-2",
        ]


def test_faults_in_arguments_are_told_as_ever(shelf: dict[str, Environment]) -> None:
    viewer = factories.actor(User.objects.get(username="viewer"))
    for _ in range(3):
        ask(viewer, LIST, n=2)
        wrong: Json
        for wrong in ({"n": -1}, {"n": 101}, {"after": "nonsense"}):
            errors = execute(viewer, LIST, **wrong).errors or []
            assert [(error.extensions or {})["code"] for error in errors] == ["invalid-input"]


def plain_fields(kind: str) -> list[str]:
    """The fields of a type that are read from its row and have no fields of their own."""
    definition: Any = schema.get_type_by_name(kind)
    graphql: Any = schema._schema.type_map[kind]
    found = []
    for one in definition.fields:
        name = schema.config.name_converter.get_graphql_name(one)
        field = graphql.fields[name]
        named = field.type
        while hasattr(named, "of_type"):
            named = named.of_type
        if not field.args and not hasattr(named, "fields"):
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("kind", "field"),
    [("Environment", "environments"), ("Build", "builds"), ("Namespace", "namespaces")],
)
def test_each_field_answers_alone_what_it_answers_to_a_list_that_is_built_anew(
    shelf: dict[str, Environment], kind: str, field: str
) -> None:
    viewer = factories.actor(User.objects.get(username="viewer"))
    chosen = plain_fields(kind)
    assert len(chosen) >= 8
    for name in chosen:
        document = f"{{ {field}(first: 100) {{ edges {{ node {{ {name} }} }} }} }}"
        first = ask(viewer, document)
        assert first[field]["edges"]
        for _ in range(2):
            assert ask(viewer, document) == first, name


def test_a_count_of_the_last_day_ends_at_the_moment_of_each_request(
    shelf: dict[str, Environment],
) -> None:
    chief = factories.actor(factories.make_user("chief", superuser=True))
    listed = "{ namespaces { edges { node { name quotas { kind used } } } } }"

    def builds_a_day() -> int:
        edges = ask(chief, listed)["namespaces"]["edges"]
        quotas = next(edge["node"]["quotas"] for edge in edges if edge["node"]["name"] == "secret")
        return int(next(one["used"] for one in quotas if one["kind"] == "BUILDS_A_DAY"))

    assert [builds_a_day() for _ in range(3)] == [1, 1, 1]
    of_secret = Build.objects.filter(environment=shelf["secret-0"])
    of_secret.update(created_at=timezone.now() - timedelta(days=1))
    assert builds_a_day() == 0


def test_a_namespace_is_not_shown_where_the_statement_does_not_say_who_may_see_it(
    shelf: dict[str, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = environment_types._shown

    def forgotten(info: Any) -> dict[str, Any]:
        return {} if isinstance(info.context, RowsWanted) else shown(info)

    monkeypatch.setattr(environment_types, "_shown", forgotten)
    viewer = factories.actor(User.objects.get(username="viewer"))
    for _ in range(3):
        last = ask(viewer, LIST)["environments"]["edges"][-1]["node"]
        assert (last["name"], last["place"]["id"]) == ("secret-0", global_id("Namespace", 0))


def test_what_is_remembered_is_bounded() -> None:
    pages = Remembered(most=3)
    made: list[int] = []

    def prepared(number: int) -> Any:
        made.append(number)
        return number

    def get(number: int) -> Any:
        return pages.get(number, None, lambda: prepared(number))

    assert [get(number) for number in range(10)] == [None] * 10
    assert made == []
    assert get(9) == 9
    assert get(9) == 9
    assert get(0) is None
    assert made == [9]


@pytest.mark.parametrize("first", [2, 1000])
def test_an_order_of_any_length_is_neither_remembered_nor_made_a_statement(
    shelf: dict[str, Environment], remembered: Remembered, first: int
) -> None:
    chief = actors()["administrator"]
    order = [{"name": "DESC"}, {"name": "ASC"}] * 2_000
    with CaptureQueriesContext(connection) as statements:
        answer = execute(chief, LIST, n=first, order=order)
    if first == 2:
        assert answer.data is not None
        assert names(answer.data) == ["secret-2", "secret-1"]
    else:
        assert answer.errors
    assert max((len(one["sql"]) for one in statements), default=0) < 10_000
    assert all(len(repr(key)) < 1_000 for key in remembered._pages)
