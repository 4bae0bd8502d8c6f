"""Types of packages, lock differences, failures and progress."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self

import strawberry
from strawberry.scalars import JSON

from condastore.errors import NotFoundError
from environments.domain import diff as differences
from environments.domain.lock import Lock
from environments.domain.records import CondaPackage, PypiPackage
from environments.graphql.enums import PackageChangeKind, PackageKind
from environments.graphql.error_details import (
    Conflict,
    ErrorDetails,
    MissingPackage,
    conflicts_in,
    missing_in,
    typed_details,
)
from environments.graphql.errors import Fault, faults_in
from environments.graphql.scalars import BigInt
from environments.models import CondaRecord, PypiRecord
from environments.services.platforms import own_platform


@strawberry.type(description="One package of a lock, identified by its digest.")
class LockedPackage:
    name: str = strawberry.field(description="Name of the package.")
    version: str = strawberry.field(description="Version of the package.")
    build: str = strawberry.field(description="Build string; empty for PyPI packages.")
    build_number: int = strawberry.field(description="Build number; 0 for PyPI packages.")
    kind: PackageKind = strawberry.field(description="Package manager of the package.")
    channel: str = strawberry.field(
        description="URL of the conda channel; empty for PyPI packages."
    )
    subdir: str = strawberry.field(
        description="Platform subdirectory of the channel; empty for PyPI packages."
    )
    url: str = strawberry.field(description="URL the package file is downloaded from.")
    sha256: str = strawberry.field(
        description="SHA-256 digest of the package file, in hexadecimal."
    )
    md5: str = strawberry.field(
        description="MD5 digest of the package file, in hexadecimal; empty when unknown."
    )
    size: BigInt = strawberry.field(description="Size of the package file, in bytes.")
    license: str = strawberry.field(description="License that the package declares.")
    timestamp: datetime | None = strawberry.field(
        description="Time of the package's build, as the channel states it; null when "
        "it states none."
    )
    platform: str = strawberry.field(description="Platform of the lock that contains the package.")

    @classmethod
    def of(
        cls, package: CondaPackage | PypiPackage | CondaRecord | PypiRecord, platform: str
    ) -> LockedPackage:
        conda = package if isinstance(package, CondaPackage | CondaRecord) else None
        return cls(
            name=package.name,
            version=package.version,
            build=conda.build if conda else "",
            build_number=conda.build_number if conda else 0,
            kind=PackageKind.CONDA if conda else PackageKind.PYPI,
            channel=conda.channel if conda else "",
            subdir=conda.subdir if conda else "",
            url=package.url,
            sha256=package.sha256,
            md5=conda.md5 if conda else "",
            size=BigInt(package.size),
            license=package.license,
            timestamp=_moment(conda.timestamp) if conda else None,
            platform=platform,
        )


def _moment(stamp: int | None) -> datetime | None:
    """A channel's timestamp: milliseconds, or seconds where it is old."""
    if not stamp:
        return None
    try:
        return datetime.fromtimestamp(stamp / 1000 if stamp > 10**11 else stamp, tz=UTC)
    except (OverflowError, OSError, ValueError):
        return None


@strawberry.type(description="Package that differs between two locks.")
class PackageChange:
    name: str = strawberry.field(description="Name of the package.")
    old: LockedPackage = strawberry.field(description="Package in the first lock.")
    new: LockedPackage = strawberry.field(description="Package in the second lock.")
    kind: PackageChangeKind = strawberry.field(description="Kind of the change.")


@strawberry.type(description="Package changes between two locks, on one platform.")
class LockDiff:
    platform: str = strawberry.field(description="Platform that was compared.")
    added: list[LockedPackage] = strawberry.field(
        description="Packages that only the second lock contains."
    )
    removed: list[LockedPackage] = strawberry.field(
        description="Packages that only the first lock contains."
    )
    changed: list[PackageChange] = strawberry.field(
        description="Packages that both locks contain, in different versions or builds."
    )
    size_delta: BigInt = strawberry.field(
        description="Change in total package size, in bytes; negative when the second "
        "lock is smaller."
    )


def compared(
    old: Lock | None, new: Lock | None, platform: str | None, prefer: Sequence[str] = ()
) -> LockDiff:
    """NotFoundError where neither lock is for `platform`."""
    known = [part.platform for lock in (new, old) if lock for part in lock]
    chosen = platform or preferred(known, prefer)
    if platform and known and platform not in known:
        raise NotFoundError(
            f"These builds have no lock for {platform}.",
            where="platform",
            hint=f"They have: {', '.join(sorted(set(known)))}.",
        )
    found = differences.diff(old.on(chosen) if old else None, new.on(chosen) if new else None)
    return LockDiff(
        platform=chosen,
        added=[LockedPackage.of(package, chosen) for package in found.added],
        removed=[LockedPackage.of(package, chosen) for package in found.removed],
        changed=[
            PackageChange(
                name=change.name,
                old=LockedPackage.of(change.old, chosen),
                new=LockedPackage.of(change.new, chosen),
                kind=_kind(change),
            )
            for change in found.changed
        ],
        size_delta=BigInt(found.size_delta),
    )


def _kind(change: differences.PackageChange) -> PackageChangeKind:
    if change.kind == differences.ChangeKind.REBUILD and change.channel_changed:
        return PackageChangeKind.CHANNEL
    return PackageChangeKind(change.kind.value)


def preferred(platforms: Sequence[str], prefer: Sequence[str] = ()) -> str:
    """The platform that is meant where none is named."""
    for one in (*prefer, own_platform(), *platforms):
        if one in platforms:
            return one
    return own_platform()


@strawberry.type(description="Why a build, a preview or an artifact failed.")
class Failure:
    code: str = strawberry.field(description="Stable code of the error.")
    message: str = strawberry.field(description="Description of the failure, for people.")
    where: str = strawberry.field(
        description="Location of the fault, such as `dependencies[3], line 7`; empty "
        "when there is none."
    )
    hint: str = strawberry.field(description="Suggestion for the next step.")
    details: JSON = strawberry.field(
        description="Machine-readable details; the keys depend on `code`."
    )
    typed_details: ErrorDetails | None = strawberry.field(
        description="The details in a type of their own, for codes that have one."
    )
    conflicts: list[Conflict] = strawberry.field(
        description="Requirements that exclude each other, when the solve had no solution."
    )
    missing: list[MissingPackage] = strawberry.field(
        description="Requirements that no channel provides."
    )
    faults: list[Fault] = strawberry.field(
        description="Individual faults, when several were found."
    )

    @classmethod
    def of(cls, stored: dict[str, Any] | None) -> Failure | None:
        """From what `failure_json` stored."""
        if stored is None:
            return None
        details = stored.get("details") or {}
        return cls(
            code=stored.get("code", ""),
            message=stored.get("message", ""),
            where=stored.get("where", ""),
            hint=stored.get("hint", ""),
            details=JSON(details),
            typed_details=typed_details(details),
            conflicts=conflicts_in(details),
            missing=missing_in(details),
            faults=faults_in(details),
        )


@strawberry.type(description="Progress of the running stage.")
class Progress:
    stage: str = strawberry.field(description="Name of the stage.")
    done: int = strawberry.field(description="Number of finished items.")
    total: int = strawberry.field(description="Total number of items.")
    bytes_done: BigInt = strawberry.field(description="Bytes processed so far.")
    bytes_total: BigInt = strawberry.field(description="Total number of bytes to process.")
    current: str = strawberry.field(description="Item that is being processed.")

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self | None:
        if not stored:
            return None
        return cls(
            stage=stored.get("stage", ""),
            done=stored.get("done", 0),
            total=stored.get("total", 0),
            bytes_done=BigInt(stored.get("bytes_done", 0)),
            bytes_total=BigInt(stored.get("bytes_total", 0)),
            current=stored.get("current", ""),
        )
