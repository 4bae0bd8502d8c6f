"""Fixtures: a solver of the small channel, and shortcuts to call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from environments.domain.lock import Lock
from environments.domain.progress import never
from environments.engine.channels.repodata import Channels
from environments.engine.solve.client import RattlerSolver, Solver, SolveRequest

NO_MEMO = timedelta(0)


@pytest.fixture
def channel(small_channel: Path) -> str:
    """The small channel's URL on the disk."""
    return small_channel.as_uri()


@pytest.fixture
def solver(tmp_path: Path) -> Iterator[RattlerSolver]:
    """Works in this process, and looks at each channel anew."""
    cache = tmp_path / "repodata"
    solver = RattlerSolver(
        cache=cache, channels=Channels(cache=cache, memo=NO_MEMO), isolated=False
    )
    yield solver
    solver.close()


def request(
    *specs: str,
    channels: Sequence[str],
    platforms: Sequence[str] = ("linux-64",),
    pip: Sequence[str] = (),
    **options: Any,
) -> SolveRequest:
    """The same requirements on every platform; a minute for it."""
    return SolveRequest(
        channels=tuple(channels),
        platforms=tuple(platforms),
        dependencies={platform: tuple(specs) for platform in platforms},
        pip={platform: tuple(pip) for platform in platforms if pip},
        **{"timeout": timedelta(minutes=1), **options},
    )


def solve(solver: Solver, *specs: str, **options: Any) -> Lock:
    return solver.solve(request(*specs, **options), cancelled=never, log=lambda line: None)


def versions(lock: Lock, platform: str = "linux-64") -> dict[str, str]:
    """Name -> version of a platform's conda packages, in their order."""
    part = lock.on(platform)
    assert part is not None
    return {package.name: package.version for package in part.conda}
