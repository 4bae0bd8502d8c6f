"""Subjects of rules: a package of a lock or channel, and evidence about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rattler import PackageRecord
from rattler.package import BuildString

from environments.domain.records import CondaPackage, Package, PypiPackage
from environments.domain.urls import canonical_or_same


class Subject(Protocol):
    """One package. Unknown values are "" or None."""

    @property
    def manager(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def channel(self) -> str: ...
    @property
    def subdir(self) -> str: ...
    @property
    def file_name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def license(self) -> str: ...
    @property
    def listed(self) -> bool:
        """Whether the channel or index lists it."""

    @property
    def source(self) -> str:
        """URL of a direct reference (see `pip_requirements`); "" for a channel or an index."""

    @property
    def published(self) -> float | None:
        """Publisher's timestamp, in seconds since the epoch."""

    @property
    def indexed(self) -> float | None:
        """Timestamp of the channel or index, in seconds since the epoch."""

    @property
    def record(self) -> PackageRecord | None:
        """Record for MatchSpecs; None if conda cannot parse the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """When this installation first saw a package in its channel."""

    at: float  # seconds since the epoch
    baseline: bool  # it was there when the channel was first read: it may be much older


class Evidence(Protocol):
    """Evidence that this installation collected itself."""

    @property
    def now(self) -> float: ...
    def first_seen(self, subject: Subject) -> Sighting | None: ...
    def scripts(self, subject: Subject) -> tuple[str, ...] | None:
        """Return the install scripts; None if the package was not fetched yet."""

    def own_license(self, subject: Subject) -> str:
        """Return the package's own license if it differs from the record; else ""."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Evidence that was collected before.

    Sightings are by channel ("" for the Python index) and sha256: a file seen in one channel says
    nothing about its release in another. Install scripts are by sha256.
    """

    now: float
    seen: Mapping[tuple[str, str], Sighting] = field(default_factory=dict)
    found_scripts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    own_licenses: Mapping[str, str] = field(default_factory=dict)

    def first_seen(self, subject: Subject) -> Sighting | None:
        return self.seen.get((subject.channel, subject.sha256))

    def scripts(self, subject: Subject) -> tuple[str, ...] | None:
        return self.found_scripts.get(subject.sha256)

    def own_license(self, subject: Subject) -> str:
        return self.own_licenses.get(subject.sha256, "")


class LockedPackage:
    """A package of a lock as a subject."""

    __slots__ = ("_package", "_record", "manager")

    def __init__(self, package: Package) -> None:
        self._package = package
        self._record: Any = _UNREAD
        self.manager = "conda" if isinstance(package, CondaPackage) else "pypi"

    @property
    def name(self) -> str:
        return self._package.name

    @property
    def version(self) -> str:
        return self._package.version

    @property
    def build(self) -> str:
        return self._package.build if isinstance(self._package, CondaPackage) else ""

    @property
    def channel(self) -> str:
        if not isinstance(self._package, CondaPackage):
            return ""
        return canonical_or_same(self._package.channel)

    @property
    def subdir(self) -> str:
        return self._package.subdir if isinstance(self._package, CondaPackage) else ""

    @property
    def file_name(self) -> str:
        return self._package.file_name

    @property
    def sha256(self) -> str:
        return self._package.sha256

    @property
    def license(self) -> str:
        return self._package.license

    @property
    def listed(self) -> bool:
        return self._package.listed

    @property
    def source(self) -> str:
        package = self._package
        return package.url if isinstance(package, PypiPackage) and package.direct else ""

    @property
    def published(self) -> float | None:
        if not isinstance(self._package, CondaPackage) or self._package.timestamp is None:
            return None
        return in_seconds(self._package.timestamp)

    @property
    def indexed(self) -> float | None:
        if isinstance(self._package, CondaPackage):
            moment = self._package.record.get("indexed_timestamp")
            return in_seconds(moment) if isinstance(moment, int | float) else None
        uploaded = self._package.uploaded
        return None if uploaded is None else in_seconds(uploaded)

    @property
    def record(self) -> PackageRecord | None:
        if self._record is _UNREAD:
            package = self._package
            self._record = (
                comparable(
                    package.name,
                    package.version,
                    package.build,
                    package.build_number,
                    package.subdir,
                )
                if isinstance(package, CondaPackage)
                else comparable(package.name, package.version)
            )
        found: PackageRecord | None = self._record
        return found


_UNREAD = object()


def comparable(
    name: str, version: str, build: str = "", build_number: int = 0, subdir: str = "noarch"
) -> PackageRecord | None:
    """Return a record for MatchSpecs; None if conda cannot parse the version."""
    make: Any = PackageRecord
    try:
        record: PackageRecord = make(
            name, version, BuildString(build or "0"), build_number, subdir or "noarch"
        )
    except Exception:  # rattler's errors have no common base
        return None
    return record


def in_seconds(moment: float) -> float:
    """Convert a repodata timestamp, in milliseconds or (older entries) seconds, to seconds."""
    return moment / 1000 if moment > 253402300799 else float(moment)
