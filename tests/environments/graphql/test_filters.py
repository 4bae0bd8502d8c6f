"""Filters and orders of lists: combinations, limits, and what they never show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.models import Environment, Recall
from tests import factories
from tests.environments.admin.furnishing import furnish
from tests.environments.graphql.asking import ask, execute

LIST = """query($filters: EnvironmentFilter, $order: [EnvironmentOrder!]) {
  environments(filters: $filters, order: $order) { totalCount edges { node { name } } } }"""


@pytest.fixture
def shelf(alice: Actor, environment: Environment) -> Environment:
    """Environments `ml` and `web` that Alice sees, and `secret`, which she does not."""
    factories.make_build(factories.make_environment(environment.namespace, "web"))
    factories.make_build(environment, BuildState.FAILED)
    factories.make_environment(factories.make_namespace("hidden"), "secret")
    return environment


def names(actor: Actor, filters: Any, **variables: Any) -> list[str]:
    found = ask(actor, LIST, filters=filters, **variables)["environments"]
    shown = [edge["node"]["name"] for edge in found["edges"]]
    assert found["totalCount"] == len(shown)
    return shown


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (None, ["ml", "web"]),
        ({}, ["ml", "web"]),
        ({"name": None}, ["ml", "web"]),
        ({"name": "ml", "AND": {"state": "FAILED"}}, ["ml"]),
        ({"name": "ml", "AND": {"state": "READY"}}, []),
        ({"name": "ml", "OR": {"name": "web"}}, ["ml", "web"]),
        ({"NOT": {"name": "ml"}}, ["web"]),
        ({"NOT": {"state": ["READY", "QUEUED"]}}, ["ml"]),
        ({"state": []}, []),
        ({"OR": {"namespace": "hidden"}}, []),
        ({"name": "ml", "OR": {"namespace": "hidden"}}, ["ml"]),
        ({"NOT": {"namespace": "research"}}, []),
    ],
)
def test_conditions_are_combined_among_visible_rows(
    alice: Actor, shelf: Environment, filters: Any, expected: list[str]
) -> None:
    assert names(alice, filters) == expected


def test_sort_keys_are_applied_in_their_order_and_the_first_of_each_counts(
    alice: Actor, shelf: Environment
) -> None:
    assert names(alice, None, order=[{"name": "DESC"}, {"createdAt": "ASC"}]) == ["web", "ml"]
    assert names(alice, None, order=[{"createdAt": "ASC"}, {"name": "DESC"}]) == ["ml", "web"]
    assert names(alice, None, order=[{"name": "DESC"}, {"name": "ASC"}]) == ["web", "ml"]


def test_a_sort_key_names_one_field(alice: Actor) -> None:
    for order in ({}, {"name": "ASC", "createdAt": "ASC"}, {"name": None}, {"password": "ASC"}):
        assert execute(alice, LIST, order=[order]).errors


@pytest.mark.parametrize(
    ("levels", "code"), [(5, "invalid-input"), (30, "query-too-deep"), (200, "query-too-deep")]
)
def test_a_filter_of_many_levels_is_refused(alice: Actor, levels: int, code: str) -> None:
    filters: dict[str, Any] = {"name": "ml"}
    text = '{name: "ml"}'
    for _ in range(levels):
        filters, text = {"NOT": filters}, f"{{NOT: {text}}}"
    inline = f"{{ environments(filters: {text}) {{ totalCount }} }}"
    for result in (execute(alice, LIST, filters=filters), execute(alice, inline)):
        assert result.errors
        assert result.errors[0].extensions["code"] == code  # type: ignore[index]


def test_variables_of_any_depth_are_refused_before_they_are_read(
    client: Client, environment: Environment
) -> None:
    user = factories.make_user("erin")
    environment.namespace.grant(Role.VIEWER, user)
    client.force_login(user)
    for levels in (30, 100, 400, 2_000):
        filters = '{"name": "ml"}'
        for _ in range(levels):
            filters = f'{{"AND": {filters}}}'
        body = f'{{"query": {json.dumps(LIST)}, "variables": {{"filters": {filters}}}}}'
        answer = client.post("/graphql", body, content_type="application/json")
        assert answer.status_code in (200, 400), levels
        assert b"query-too-deep" in answer.content or answer.status_code == 400, levels


ORDERED = {
    "auditEvents": ("action", ["{at: ASC}", "{at: DESC}"]),
    "approvalRequests": ("name", ["{openedAt: ASC}", "{openedAt: DESC}", "{name: DESC}"]),
    "decisions": ("spec", ["{decidedAt: ASC}", "{decidedAt: DESC}", "{name: ASC}"]),
    "recalls": ("spec", ["{recalledAt: ASC}", "{recalledAt: DESC}"]),
    "mirrors": ("name", ["{name: DESC}", "{createdAt: ASC}", "{createdAt: DESC}"]),
    "builds": ("ref", ["{number: DESC}", "{createdAt: ASC}"]),
    "namespaces": ("name", ["{name: DESC}", "{createdAt: DESC}"]),
    "environments": ("folder", ["{updatedAt: DESC}", "{name: DESC}"]),
}


@pytest.mark.parametrize("name", ORDERED)
def test_pages_in_each_order_lead_through_all_of_a_list_once(
    db: None, name: str, data_folder: Any
) -> None:
    chief = factories.actor(factories.make_user("chief", superuser=True))
    for number in range(5):
        furnish(number)
    shown, orders = ORDERED[name]
    fields = f"pageInfo {{ hasNextPage endCursor }} edges {{ node {{ databaseId {shown} }} }}"
    whole = {
        edge["node"]["databaseId"]
        for edge in ask(chief, f"{{ {name} {{ {fields} }} }}")[name]["edges"]
    }
    assert len(whole) >= 5
    cursors: list[str] = []
    for order in orders:
        document = f"""query($after: String, $before: String, $first: Int, $last: Int) {{ {name}(
          first: $first, last: $last, after: $after, before: $before, order: {order}
        ) {{ {fields} }} }}"""
        at_once = [edge["node"]["databaseId"] for edge in ask(chief, document)[name]["edges"]]
        seen: list[str] = []
        after = None
        while True:
            page = ask(chief, document, first=2, after=after)[name]
            seen += [edge["node"]["databaseId"] for edge in page["edges"]]
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                break
        assert seen == at_once, order
        assert set(seen) == whole, order
        back = ask(chief, document, last=2, before=after)[name]["edges"]
        assert [edge["node"]["databaseId"] for edge in back] == seen[-3:-1]
        for other in cursors:
            assert execute(chief, document, first=2, after=other).errors, order
        cursors.append(after)


def test_lists_of_governance_are_filtered(db: None) -> None:
    chief = factories.actor(factories.make_user("chief", superuser=True))
    for number in range(3):
        furnish(number)
    Recall.objects.filter(spec="shared ==1").update(undone_at=timezone.now())
    for field, expected in {
        "recalls(filters: {active: false})": 1,
        "recalls(filters: {active: true})": 2,
        'mirrors(filters: {search: "MIRROR-2"})': 1,
        'mirrors(filters: {namespace: "team-1", OR: {namespace: "team-2"}})': 2,
        'decisions(filters: {name: "SHARED", inForce: true, namespace: "team-0"})': 1,
        "decisions(filters: {inForce: false})": 0,
        'approvalRequests(filters: {state: OPEN, NOT: {namespace: "team-0"}})': 2,
        'auditEvents(filters: {action: "build.", actor: "person-1"})': 1,
        'auditEvents(filters: {action: "build.", since: "2999-01-01T00:00:00"})': 0,
        'auditEvents(filters: {action: "build.", until: "2999-01-01T00:00:00"})': 3,
    }.items():
        name = field.partition("(")[0]
        assert ask(chief, f"{{ {field} {{ totalCount }} }}")[name]["totalCount"] == expected, field
