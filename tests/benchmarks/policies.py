"""Cost of policy rules: in a solve, in a simulation, and in a search for a package."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from environments.domain.policy import Known, Policy, judge_lock, parse_rule
from environments.domain.specification import Specification
from environments.engine.channels.repodata import Channels
from environments.engine.network import addresses
from environments.engine.solve.client import RattlerSolver, SolveRequest
from environments.engine.solve.policy_view import Rules
from tests.benchmarks.channels import served
from tests.benchmarks.inside import inside
from tests.benchmarks.measure import MEGABYTE, Measure, median, scratch
from tests.benchmarks.running import STACK
from tests.services.databases import postgres

ROUNDS = 5
RULES = 50
LOCKS, PACKAGES = 10_000, 150
#: What comes to some three hundred packages in the generated channel.
SPECS = (
    *STACK,
    *("jupyterlab", "matplotlib-base", "statsmodels", "xarray", "dask-core", "seaborn"),
    *("gdal", "fastapi", "git", "pytest", "rich", "opencv", "noarch-pkg-08680"),
)


def written_rules() -> list[tuple[str, str, dict[str, Any]]]:
    """Fifty rules of many kinds, as an organisation may come to have them."""
    written: list[tuple[str, str, dict[str, Any]]] = [
        ("licenses", "enforce", {"deny": ["AGPL-*"], "unknown": "accept", "missing": "accept"}),
        ("licenses", "warn", {"deny": ["GPL-2.0*"]}),
        ("age", "enforce", {"minimum": "7 days", "publisher_timestamp": "always"}),
        ("install-scripts", "enforce", {}),
        ("constraints", "enforce", {"packages": ["openssl >=1"]}),
        ("channels", "enforce", {"packages": {"pytorch*": ["synthetic"]}}),
        ("size", "enforce", {"bytes": "500 GB"}),
        ("packages-denied", "ask", {"packages": ["*-nightly", "acme-*"]}),
    ]
    written += [
        ("packages-denied", "enforce", {"packages": [f"left-pad-{number}", "numpy <1"]})
        for number in range(RULES - len(written))
    ]
    return written


def rules() -> Policy:
    """The policy of `written_rules`."""
    parsed = [
        parse_rule(kind=kind, effect=effect, name=f"rule {number}", settings=settings)
        for number, (kind, effect, settings) in enumerate(written_rules())
    ]
    return Policy(rules=tuple(parsed), version="1")


def policies() -> Iterator[Measure]:
    yield from _at_a_solve()
    yield from _over_locks()


def _at_a_solve() -> Iterator[Measure]:
    policy = rules()
    seconds: dict[str, list[float]] = {"plain": [], "ruled": []}
    with served("synthetic") as url, scratch() as folder:
        channel = f"{url}synthetic"
        addresses.install(lambda: addresses.Guard.from_settings(urls=[url]))
        cache = folder / "repodata"
        solver = RattlerSolver(cache=cache, channels=Channels(cache=cache), isolated=False)
        for turn in range(ROUNDS + 1):
            for kind in seconds:
                started = time.process_time()  # the machine may have other things to do
                now = 4e9
                request = SolveRequest(
                    channels=(channel,),
                    dependencies={"linux-64": SPECS},
                    platforms=("linux-64",),
                    timeout=timedelta(minutes=2),
                    rules=Rules(policy=policy, now=now) if kind == "ruled" else None,
                )
                lock = solver.solve(request, cancelled=lambda: False, log=lambda line: None)
                if kind == "ruled":
                    requested = Specification(
                        kind="environment",
                        channels=(channel,),
                        platforms=("linux-64",),
                        dependencies={"linux-64": SPECS},
                    )
                    judge_lock(policy, lock, requested, evidence=Known(now=now))
                if turn:  # the first one of each reads the channel
                    seconds[kind].append(time.process_time() - started)
        packages = len(lock.platforms[0].conda)
        solver.close()
    plain, ruled = median(seconds["plain"]), median(seconds["ruled"])
    yield Measure(
        name=f"solve and judge {packages} packages by {RULES} rules / solve without rules",
        value=ruled / plain,
        unit="x",
        ceiling=1.3,
        note=f"{ruled:.2f} s / {plain:.2f} s of the processor, medians of {ROUNDS} in turns; warm",
    )


def _over_locks() -> Iterator[Measure]:
    with postgres() as service, scratch() as folder:
        found = inside(folder, "tried", LOCKS, PACKAGES, CONDASTORE_DATABASE_URL=service.url)
    yield Measure(
        name=f"try a rule on {LOCKS:,} locks of {PACKAGES} packages",
        value=found["few"],
        unit="s",
        ceiling=20,
        note=f"one package denied; {found['few_hits']:,} environments hit; PostgreSQL",
    )
    yield Measure(
        name="the same, a rule that objects to most packages",
        value=found["many"],
        unit="s",
        ceiling=20,
        note=f"{found['many_hits']:,} environments hit",
    )
    yield Measure(
        name=f"memory that trying on {LOCKS:,} takes beyond a tenth of them",
        value=max(0.0, found["grown"]) / MEGABYTE,
        unit="MB",
        ceiling=40,
        note=f"highest RSS {found['peak'] / MEGABYTE:.0f} MB",
    )
    yield Measure(
        name=f"which environments contain openssl <3.0.13, among {LOCKS:,} builds",
        value=1000 * found["contains"],
        unit="ms",
        ceiling=200,
        note=f"{found['contained']:,} of them; a page of 50 and the total, PostgreSQL",
    )
    with scratch() as folder:
        found = inside(folder, "contained", LOCKS, PACKAGES)
    yield Measure(
        name="the same on SQLite",
        value=1000 * found["contains"],
        unit="ms",
        note=f"{found['contained']:,} of them",
    )
