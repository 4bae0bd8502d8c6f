"""Previews of environments and namespaces that do not exist yet."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.access import Actor
from accounts.roles import Role
from environments.models import Environment, Namespace, Preview
from tests import factories
from tests.corpus_text import content_of, corpus_cases
from tests.environments.graphql.asking import ask

pytestmark = pytest.mark.django_db

PREVIEW = """mutation($namespace: String!, $environment: String, $text: String!) {
  previewSolve(namespace: $namespace, environment: $environment, specification: $text, wait: 0) {
    ... on Preview { state warnings diff { added { name } } }
    ... on OperationError { code message faults { message where hint } }
  }
}"""
TEXT = "dependencies: [python]\r\nextras: {}\r\n"


def preview(who: Actor, namespace: str, environment: str | None, text: str = TEXT) -> Any:
    return ask(who, PREVIEW, namespace=namespace, environment=environment, text=text)[
        "previewSolve"
    ]


@pytest.fixture
def alice() -> Actor:
    user = factories.make_user("alice")
    factories.make_namespace("research", alice=Role.DEVELOPER)
    factories.make_namespace("x", alice=Role.VIEWER)
    return factories.actor(user)


def test_a_preview_needs_no_environment(alice: Actor) -> None:
    found = preview(alice, "research", "first")
    assert found["state"] == "QUEUED"
    assert found["warnings"] == ["Line 2: 'extras' is ignored: it is not a known key."]
    assert not Environment.objects.exists()
    assert Preview.objects.get().environment is None


def test_a_preview_in_the_callers_own_namespace_creates_it_as_a_submission_does(
    alice: Actor,
) -> None:
    assert preview(alice, "alice", "first", "nothing")["code"] == "specification-invalid"
    assert not Namespace.objects.filter(name="alice").exists()
    assert preview(alice, "alice", "first")["state"] == "QUEUED"
    assert Namespace.objects.get(name="alice").personal


def test_a_preview_needs_the_rights_of_a_submission(alice: Actor) -> None:
    bob = factories.actor(factories.make_user("bob"))
    assert preview(bob, "research", "first")["code"] == "not-found"
    assert preview(alice, "x", "first")["code"] == "access-denied"
    assert not Preview.objects.exists()


@pytest.mark.parametrize("name", ["new", "A b", "../up", ""])
def test_a_preview_is_refused_where_no_environment_could_have_the_name(
    alice: Actor, name: str
) -> None:
    assert preview(alice, "research", name)["code"] == "invalid-input"


SAMPLE = (
    "layout: CRLF of a Windows editor",
    "layout: CR of an old editor",
    "layout: JSON on one line with an emoji as two escapes",
    "layout: tab as indentation",
    "keys: path as a name",
    "keys: misspelt channels",
    "keys: misspelt dependencies",
    "keys: many faults at once",
    "selectors: selectors of mamba",
    "channels: defaults in a requirement of R",
    "versions: equals greater",
    "exports: conda env export",
    "locks: as conda-store keeps it",
    "locks: packages from Git",
    "explicit: conda list --explicit without hashes",
    "explicit: hash that is cut",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_preview_says_of_a_text_of_the_corpus_what_its_case_says(alice: Actor, name: str) -> None:
    case = corpus_cases()[name]
    found = preview(alice, "research", None, content_of(case).decode())
    if "accepted" in case:
        assert found["state"] == "QUEUED"
        assert found["warnings"] == case["accepted"].get("warnings", [])
    else:
        assert found["code"] == "specification-invalid"
        said = [{key: text for key, text in each.items() if text} for each in found["faults"]]
        assert said == case["refused"]
