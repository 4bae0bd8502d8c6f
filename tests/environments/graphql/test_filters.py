"""Filters and orders of lists: combinations, limits, and what they never show."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from accounts.roles import Role
from environments.domain.lifecycle import BuildState
from environments.models import Environment
from tests import factories
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
