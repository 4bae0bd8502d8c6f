"""What is an artifact made from, so that the same lock gives the same bytes everywhere?

The packages are linked into a folder of their own, as if it were the artifact's prefix, from the
shared cache. What would differ from one worker or day to the next is not in it: no path of this
machine, no moment but that of the newest package, no compiled Python.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from environments.domain.linking import PythonInfo
from environments.domain.lock import Lock, PlatformLock
from environments.domain.policy.subjects import in_seconds
from environments.domain.progress import Cancelled, Report, ignore, never
from environments.domain.records import Package
from environments.engine import linking
from environments.engine.downloads import bring
from environments.engine.package_cache import CachedPackage, PackageCache
from environments.engine.pypi_install import CachedWheel, install_wheels

#: Where no package says when it was made.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


#: Brings packages as they came into a folder; the file of each URL.
Originals = Callable[[Sequence[Package], Path], dict[str, Path]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A lock's packages for one platform, fetched and extracted, and what joins them."""

    lock: Lock
    platform: str
    packages: Sequence[CachedPackage]
    wheels: Sequence[CachedWheel]
    variables: Mapping[str, str]
    cache: PackageCache
    work: Path  # an empty folder of this attempt, on the cache's file system
    progress: Report = ignore
    cancelled: Cancelled = never
    originals: Originals = bring

    @property
    def part(self) -> PlatformLock:
        part = self.lock.on(self.platform)
        assert part is not None, "the platform is one of the lock's"
        return part

    @property
    def moment(self) -> datetime:
        """When the newest package was made: the same wherever and whenever it is asked."""
        return moment_of(self.part)

    def stage(self, prefix: str) -> Path:
        """Link everything into a new folder below `work`, as if it were the folder `prefix`.

        Files without a prefix in them are hard links to the cache: none is ever to be written.

        Raises:
            LinkError: packages that clash or cannot be linked.
        """
        target = self.work / "prefix"
        final = Path(prefix)
        linking.link(
            self.part,
            target=target,
            final_prefix=final,
            cache=self.cache,
            packages=self.packages,
            requested=(),
            variables=self.variables,
            moment=self.moment,
            note=f"condastore lock {self.lock.digest}",
            progress=self.progress,
            cancelled=self.cancelled,
        )
        if self.wheels and (python := self.python) is not None:
            install_wheels(
                self.wheels,
                target=target,
                final_prefix=final,
                python=python,
                progress=self.progress,
                cancelled=self.cancelled,
            )
        _forget_this_machine(target)
        return target

    @property
    def python(self) -> PythonInfo | None:
        return linking.python_of(self.part.conda, self.platform)

    def clear(self) -> None:
        shutil.rmtree(self.work / "prefix", ignore_errors=True)


def moment_of(part: PlatformLock) -> datetime:
    moments = [package.timestamp for package in part.conda if package.timestamp is not None]
    return datetime.fromtimestamp(in_seconds(max(moments)), UTC) if moments else EARLIEST


def _forget_this_machine(prefix: Path) -> None:
    """conda's notes name the cache that each package was linked from: another machine's differs."""
    for path in (prefix / "conda-meta").glob("*.json"):
        record = json.loads(path.read_bytes())
        for key in ("extracted_package_dir", "package_tarball_full_path"):
            record.pop(key, None)
        if isinstance(link := record.get("link"), dict):
            link.pop("source", None)
        # Written anew: no other prefix has this file.
        path.write_text(json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    (prefix / "conda-meta" / "frozen").unlink(missing_ok=True)  # it is its user's from now on
