"""Questions to a solver, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from environments.domain.lock import Lock
from environments.domain.progress import never
from environments.engine.solver import Solver, SolveRequest


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
