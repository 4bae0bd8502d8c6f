"""Fixtures: a linked prefix with Python for tests that run programs, and a solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from environments.domain.linking import PythonInfo
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import CachedPackage, PackageCache
from environments.engine.prefix.linking import link
from tests.environments.engine.package_fixtures import lock_of, packages_of
from tests.environments.engine.solver_fixtures import channel, solver  # noqa: F401  # fixtures


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """A prefix that is linked and not published."""

    prefix: Path
    final: Path
    packages: Sequence[CachedPackage]
    python: PythonInfo


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> PackageCache:
    return PackageCache(tmp_path_factory.mktemp("store") / "packages")


@pytest.fixture
def linked(
    tmp_path: Path, small_channel: Path, shared_cache: PackageCache
) -> Callable[..., Linked]:
    """Link packages of the small channel, by name, or others, with python, into a new prefix."""
    found = packages_of(small_channel)
    number = 0

    def make(*wanted: str | CondaPackage, variables: dict[str, str] | None = None) -> Linked:
        nonlocal number
        number += 1
        chosen = [found["python"]]
        chosen += [found[each] if isinstance(each, str) else each for each in wanted]
        lock = lock_of(*chosen)
        cached = shared_cache.ensure(lock.conda)
        prefix = shared_cache.folder.parent / f"{tmp_path.name}-{number}"
        final = prefix.with_name(f"{prefix.name}-final")
        report = link(
            lock,
            target=prefix,
            final_prefix=final,
            cache=shared_cache,
            packages=cached,
            requested=[],
            variables=variables or {},
            moment=datetime(2026, 5, 1, tzinfo=UTC),
            note="",
        )
        assert report.python is not None
        return Linked(prefix=prefix, final=final, packages=cached, python=report.python)

    return make
