"""Input of artifact makers: the packages of a lock in the caches, and the data that joins them.

Makers read the files through `tree.py`, so nothing that differs between workers or days gets into
an artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from environments.domain.linking import PythonInfo
from environments.domain.lock import Lock, PlatformLock
from environments.domain.progress import Cancelled, Report, ignore, never
from environments.domain.records import Package
from environments.domain.timestamps import newest
from environments.engine.packages.cache import CachedPackage, PackageCache
from environments.engine.packages.downloads import fetch_originals
from environments.engine.prefix import linking
from environments.engine.pypi.install import CachedWheel

#: Fetches original packages into a folder; returns the path by URL.
Originals = Callable[[Sequence[Package], Path], dict[str, Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A lock's packages for one platform, fetched and extracted, and the data that joins them."""

    lock: Lock
    platform: str
    packages: Sequence[CachedPackage]
    wheels: Sequence[CachedWheel]
    variables: Mapping[str, str]
    cache: PackageCache
    work: Path  # an empty folder for this attempt, on the cache's file system
    progress: Report = ignore
    cancelled: Cancelled = never
    originals: Originals = fetch_originals

    @property
    def part(self) -> PlatformLock:
        part = self.lock.on(self.platform)
        assert part is not None, "the lock has this platform"
        return part

    @property
    def moment(self) -> datetime:
        """Time of the newest package; reproducible."""
        return newest(self.part)

    @property
    def python(self) -> PythonInfo | None:
        return linking.python_of(self.part.conda, self.platform)
