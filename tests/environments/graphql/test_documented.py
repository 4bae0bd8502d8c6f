"""Examples of the GraphQL reference run, and the REST reference lists every error code."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

from graphql import parse, validate

import accounts
import environments
from accounts.access import Actor
from condastore.errors import StoreError
from condastore.schema import schema
from environments.domain.lifecycle import BuildState
from environments.graphql._private import graphql_schema
from environments.models import Environment
from tests import factories
from tests.environments.graphql.asking import ask

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
DOCUMENTS = re.findall(
    r"```graphql\n(.*?)```", (REFERENCE / "graphql.md").read_text(), flags=re.DOTALL
)


def codes(kind: type[StoreError] = StoreError) -> set[str]:
    """Of all kinds in modules that are imported."""
    return {kind.code}.union(*(codes(one) for one in kind.__subclasses__()))


def test_every_code_is_documented_and_no_other() -> None:
    for package in (accounts, environments):  # any module may have kinds of its own
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations" not in module.name:
                importlib.import_module(module.name)
    text = (REFERENCE / "rest.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.MULTILINE)) == codes()


def test_every_document_fits_the_schema() -> None:
    assert len(DOCUMENTS) == 5
    for document in DOCUMENTS:
        assert not validate(graphql_schema(schema), parse(document)), document


def test_every_example_answers(alice: Actor, environment: Environment, settings: Any) -> None:
    settings.DEFAULT_CHANNELS = [factories.CHANNEL]
    openssl = factories.make_lock(factories.make_package("openssl", "3.0.7"))
    factories.make_build(environment, lock=openssl)
    listed, submit, build, contains, _ = DOCUMENTS
    assert ask(alice, listed)["environments"]["totalCount"] == 1
    created = ask(alice, submit)["submitBuild"]
    assert created["created"] is True
    assert created["build"]["ref"] == "research/ml:2"
    assert ask(alice, submit)["submitBuild"]["created"] is False
    assert ask(alice, build)["build"]["state"] == BuildState.QUEUED
    found = ask(alice, contains)["lockedPackages"]
    assert found["edges"][0]["node"]["build"] == {"ref": "research/ml:1"}
