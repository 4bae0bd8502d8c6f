"""What is judged: one package of a lock or of a channel, and what we know of it beyond that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rattler import PackageRecord
from rattler.package import BuildString

from environments.domain.records import CondaPackage, Package, PypiPackage
from environments.domain.urls import canonical_or_same


class Subject(Protocol):
    """One package. What is not known is "" or None."""

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
        """Whether its channel or index states what is known of it."""

    @property
    def source(self) -> str:
        """URL of a direct reference (see `pip_requirements`); "" for a channel or an index."""

    @property
    def published(self) -> float | None:
        """Seconds since the epoch, in the publisher's own words."""

    @property
    def indexed(self) -> float | None:
        """Seconds since the epoch, by the clock of the channel or index."""

    @property
    def record(self) -> PackageRecord | None:
        """What a MatchSpec is compared with; None where conda cannot read the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """When we first saw a package in its channel."""

    at: float  # seconds since the epoch
    baseline: bool  # it was there when we first looked at the channel: it may be much older


class Evidence(Protocol):
    """What this installation has seen itself."""

    @property
    def now(self) -> float: ...
    def first_seen(self, subject: Subject) -> Sighting | None: ...
    def scripts(self, subject: Subject) -> tuple[str, ...] | None:
        """Its install scripts; None while nobody has opened the package."""

    def own_license(self, subject: Subject) -> str:
        """The license that the package itself names, where its record says otherwise; else ""."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Evidence that was gathered before.

    Sightings are by channel ("" for the Python index) and sha256: that a file was seen in one
    channel says nothing of when another released it. Install scripts are by sha256.
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
    """What a MatchSpec can be compared with; None where conda cannot read the version."""
    make: Any = PackageRecord
    try:
        record: PackageRecord = make(
            name, version, BuildString(build or "0"), build_number, subdir or "noarch"
        )
    except Exception:  # rattler's errors have no common base
        return None
    return record


def in_seconds(moment: float) -> float:
    """Repodata counts in milliseconds, and in its older entries in seconds."""
    return moment / 1000 if moment > 253402300799 else float(moment)
