"""Typed details of errors: each kind of refusal says in a type of its own what it knows."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.access import Actor
from environments.domain.lifecycle import BuildState
from environments.graphql.error_details import typed_details
from environments.models import Build, Environment, Namespace
from tests import factories
from tests.environments.graphql.asking import ask

SUBMIT = """mutation($text: String!) {
  submitBuild(namespace: "research", environment: "ml", specification: $text) {
    ... on OperationError { code typedDetails { __typename
      ... on QuotaDetails { exceeded { quota used limit } largest { build size } }
      ... on PolicyDetails { verdicts { rule subject } } } } } }"""
FAILURE = """{ environment(namespace: "research", name: "ml") { builds { edges { node { failure {
  typedDetails { __typename
    ... on UnsatisfiableDetails { conflicts { requirements platform } missing { requirement }
      removed { package rule } }
    ... on ProgramDetails { test status tail } } } } } } } }"""


def test_a_used_up_quota_says_how_much(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment, BuildState.QUEUED)
    Namespace.objects.update(max_builds_at_once=1)
    refused = ask(alice, SUBMIT, text="dependencies: [python]")["submitBuild"]
    assert refused["typedDetails"]["__typename"] == "QuotaDetails"
    (exceeded,) = refused["typedDetails"]["exceeded"]
    assert (exceeded["used"], exceeded["limit"]) == (1, 1)


def test_an_error_without_details_has_no_type(alice: Actor, environment: Environment) -> None:
    refused = ask(alice, SUBMIT, text="dependencies: 1")["submitBuild"]
    assert refused["code"]
    assert refused["typedDetails"] is None


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            {
                "conflicts": [{"requirements": ["a", "b"], "reason": "no", "platform": "linux-64"}],
                "missing": [{"requirement": "c"}],
                "policy": [{"package": "d", "version": "1", "rule": "licenses"}],
            },
            {
                "__typename": "UnsatisfiableDetails",
                "conflicts": [{"requirements": ["a", "b"], "platform": "linux-64"}],
                "missing": [{"requirement": "c"}],
                "removed": [{"package": "d", "rule": "licenses"}],
            },
        ),
        (
            {"test": "true", "status": -9, "tail": ["last", "lines"]},
            {
                "__typename": "ProgramDetails",
                "test": "true",
                "status": -9,
                "tail": ["last", "lines"],
            },
        ),
        ({"gone": True}, None),
    ],
)
def test_the_failure_of_a_build_has_typed_details(
    alice: Actor, environment: Environment, details: Any, expected: Any
) -> None:
    build = factories.make_build(environment, BuildState.FAILED)
    failure = {"code": "x", "message": "", "where": "", "hint": "", "details": details}
    Build.objects.filter(pk=build.pk).update(failure=failure)
    found = ask(alice, FAILURE)["environment"]["builds"]["edges"][0]["node"]["failure"]
    assert found["typedDetails"] == expected


@pytest.mark.parametrize(
    "details",
    [
        {"verdicts": [{}]},
        {"recalls": [1]},
        {"exceeded": [{"quota": "bytes", "used": 2, "limit": None}], "largest": []},
        {"needed": 1, "reserve": 2, "free": 3},
        {"limit": 2**40},
        {"own": ["numpy"]},
        {"tail": "one\ntwo"},
    ],
)
def test_details_of_older_releases_can_be_read(details: dict[str, Any]) -> None:
    assert typed_details(details) is not None
