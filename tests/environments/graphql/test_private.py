"""The private functions of strawberry and strawberry-django in `_private` do what we take them to.

When one of these tests fails after an update: look for a public replacement in the release notes
first. Otherwise follow the change in `environments/graphql/_private.py`, the only module that uses
private names, or keep the former release by the bounds in pyproject.toml.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import environments.graphql
from accounts.access import Actor
from condastore.schema import schema
from environments.graphql import _private
from environments.models import Environment
from tests import factories
from tests.environments.graphql.asking import ask

DOCUMENT = '{ lockedPackages(name: "python") { edges { node { build { ref } } } } }'


def test_the_schema_of_graphql_core_is_the_one_that_is_served() -> None:
    assert _private.graphql_schema(schema).query_type is not None


def test_selections_below_a_field_reach_the_optimizer(
    alice: Actor, environment: Environment, monkeypatch: Any
) -> None:
    """`selected_below`, `graphql_info`: without them each build would cost a statement."""
    factories.make_build(environment, lock=factories.make_lock(factories.make_package("python")))
    seen: list[str] = []
    found = _private.selected_below

    def recorded(info: Any, name: str) -> Any:
        below = found(info, name)
        seen.append(f"{name}: {[node.name.value for node in below.field_nodes] if below else None}")
        return below

    monkeypatch.setattr("environments.graphql.optimizer.selected_below", recorded)
    assert ask(alice, DOCUMENT)["lockedPackages"]["edges"]
    assert seen[:3] == ["edges: ['edges']", "node: ['node']", "build: ['build']"]


def test_the_declaring_type_of_a_field_is_known(
    alice: Actor, environment: Environment, monkeypatch: Any
) -> None:
    """`enclosing_type`: from these types only visible rows are reached."""
    seen: set[str] = set()
    found = _private.enclosing_type

    def recorded(info: Any) -> str:
        seen.add(found(info))
        return found(info)

    monkeypatch.setattr("environments.graphql.optimizer.enclosing_type", recorded)
    builds = "builds(first: 5) { edges { node { number } } }"
    ask(alice, f"{{ environments(first: 5) {{ edges {{ node {{ {builds} }} }} }} }}")
    assert "EnvironmentNode" in seen


def test_a_joined_row_is_hinted_by_the_optimizer(
    alice: Actor, environment: Environment, monkeypatch: Any
) -> None:
    """`hints_below`: the columns that are selected of a joined row, and no others."""
    hints: list[Any] = []
    found = _private.hints_below

    def recorded(info: Any, model: Any) -> Any:
        hints.append(found(info, model))
        return hints[-1]

    monkeypatch.setattr("environments.graphql.optimizer.hints_below", recorded)
    ask(alice, "{ environments { totalCount edges { node { namespace { description } } } } }")
    assert any("description" in one.only for one in hints)


def test_no_other_module_uses_private_names() -> None:
    folder = Path(environments.graphql.__file__).parent
    private = re.compile(r"\._raw_info|info\._field\b|\._schema\b|import _(get|generate)\w+")
    used = {path.name for path in folder.glob("*.py") if private.search(path.read_text())}
    assert used <= {"_private.py"}
