"""Resolution of the PyPI part within a namespace's policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import PypiError
from environments.domain.lock import Lock
from environments.domain.policy import Policy, Rule, Ruling, parse_rule
from environments.engine.channels.repodata import Channels
from environments.engine.pypi.resolve import PypiResolver
from environments.engine.solve.client import RattlerSolver
from environments.engine.solve.policy_view import Rules
from tests.channels.server import serving
from tests.channels.simple_index import make_wheel, write_simple_index
from tests.environments.engine.solver_fixtures import solve

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLD, NEW = NOW - timedelta(days=100), NOW - timedelta(days=2)

Solve = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`app` 3 and 2 need `lib`, `app` 1 does not; `lib` has five versions, the last one new."""
    folder = tmp_path_factory.mktemp("index")
    wheels = [make_wheel("app", "1.0", uploaded=OLD)]
    wheels += [make_wheel("app", f"{n}.0", requires=["lib"], uploaded=OLD) for n in (2, 3)]
    wheels += [make_wheel("lib", f"{n}.0", uploaded=OLD) for n in (1, 2, 3, 4)]
    write_simple_index(folder, [*wheels, make_wheel("lib", "5.0", uploaded=NEW)])
    with serving(folder) as server:
        yield f"{server.url}simple/"


@pytest.fixture
def answer(index: str, small_channel: Path, tmp_path: Path) -> Iterator[Solve]:
    channels = Channels(cache=tmp_path / "repodata")
    resolver = PypiResolver(index_urls=[index], cache=tmp_path / "w", channels=channels)
    solver = RattlerSolver(
        cache=tmp_path / "repodata", channels=channels, pypi=resolver, isolated=False
    )

    def make(*rules: Rule, asked: str = "app", rulings: tuple[Ruling, ...] = ()) -> dict[str, str]:
        policy = Policy(rules=rules, version=repr((rules, rulings)), rulings=rulings)

        def since(age: timedelta) -> datetime | None:
            return NOW - age if age else None

        found: Lock = solve(
            solver,
            "python",
            channels=[small_channel.as_uri()],
            pip=[asked],
            rules=Rules(policy=policy, now=NOW.timestamp()),
            pypi_cutoff=since(policy.pypi_age),
            pypi_cutoffs={name: since(age) for name, age in policy.pypi_ages.items()},
        )
        return {package.name: package.version for package in found.platforms[0].pypi}

    yield make
    solver.close()


def rule(
    kind: str, effect: str = "enforce", *, exempt: Sequence[str] = (), **settings: Any
) -> Rule:
    if exempt:
        settings["except"] = [*exempt]
    return parse_rule(kind=kind, effect=effect, name=f"our {kind}", settings=settings)


def denied(*packages: str, effect: str = "enforce", **settings: Any) -> Rule:
    return rule("packages-denied", effect, packages=list(packages), **settings)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], {"app": "3.0", "lib": "5.0"}),
        ([denied("lib >=4")], {"app": "3.0", "lib": "3.0"}),  # a constraint says it
        ([denied("lib >=3,<6")], {"app": "3.0", "lib": "2.0"}),  # none can say it
        ([denied("lib")], {"app": "1.0"}),  # nothing that needs it either
        ([denied("conda:lib")], {"app": "3.0", "lib": "5.0"}),
        ([denied("lib >=2", exempt=["pypi:lib 3.*"])], {"app": "3.0", "lib": "3.0"}),
        ([rule("constraints", packages=["pypi:lib <3"])], {"app": "3.0", "lib": "2.0"}),
        (
            [rule("packages-allowed", packages=["pypi:app", "pypi:lib 4.*", "python"])],
            {"app": "3.0", "lib": "4.0"},
        ),
        ([rule("age", channels={"pypi": "7 days"})], {"app": "3.0", "lib": "4.0"}),
        (
            [rule("age", channels={"pypi": "7 days"}, exempt=["pypi:lib"])],
            {"app": "3.0", "lib": "5.0"},
        ),
        (
            [rule("age", channels={"pypi": "7 days"}, exempt=["pypi:lib <3"])],
            {"app": "3.0", "lib": "4.0"},
        ),
        # What needs a decision is passed over where something else answers ...
        ([denied("lib >=5", effect="ask")], {"app": "3.0", "lib": "4.0"}),
        # ... unless each version needs the same one.
        ([denied("lib", effect="ask")], {"app": "3.0", "lib": "5.0"}),
    ],
)
def test_a_solution_that_the_policy_allows_is_found(
    answer: Solve, rules: list[Rule], expected: dict[str, str]
) -> None:
    assert answer(*rules) == expected


def test_approved_versions_are_chosen(answer: Solve) -> None:
    approved = Ruling(id=1, approved=True, manager="pypi", name="lib", spec="lib 5.*")
    found = answer(denied("lib >=5", effect="ask"), rulings=(approved,))
    assert found["lib"] == "5.0"


def test_without_an_allowed_solution_the_first_one_is_returned(answer: Solve) -> None:
    assert answer(denied("lib"), asked="app>=2") == {"app": "3.0", "lib": "5.0"}


def test_an_unsolvable_request_is_not_blamed_on_the_policy(answer: Solve) -> None:
    with pytest.raises(PypiError) as caught:
        answer(denied("lib >=4"), asked="app>=9")
    assert "lib" not in caught.value.message
