"""Packages, what changed between two locks, and failures, as values of the schema."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NewType, Self

import strawberry
from strawberry.scalars import JSON

from condastore.errors import NotFoundError
from environments.domain import diff as differences
from environments.domain.lock import Lock
from environments.domain.records import CondaPackage, PypiPackage
from environments.graphql.errors import Fault, faults_in
from environments.graphql.inputs import PackageChangeKind, PackageKind
from environments.models import CondaRecord, PypiRecord
from environments.services.platforms import own_platform

BigInt = NewType("BigInt", int)
BIG_INT = strawberry.scalar(
    name="BigInt",
    description="A whole number, of bytes for instance, that may need more than 32 bits.",
    serialize=int,
    parse_value=int,
)


@strawberry.type(description="One package of a lock: exactly these bytes.")
class LockedPackage:
    name: str
    version: str
    build: str
    build_number: int
    kind: PackageKind
    channel: str
    subdir: str
    url: str
    sha256: str
    md5: str
    size: BigInt
    license: str
    timestamp: datetime | None
    platform: str

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


@strawberry.type
class PackageChange:
    name: str
    old: LockedPackage
    new: LockedPackage
    kind: PackageChangeKind


@strawberry.type(description="What the second lock has that the first has not, on one platform.")
class LockDiff:
    platform: str
    added: list[LockedPackage]
    removed: list[LockedPackage]
    changed: list[PackageChange]
    size_delta: BigInt


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


@strawberry.type(description="Requirements that exclude each other, and what leads from one to it.")
class Conflict:
    requirements: list[str]
    reason: str
    chain: list[str]


@strawberry.type
class MissingPackage:
    requirement: str
    channels: list[str]
    similar: list[str]


@strawberry.type(description="Why a build or a preview failed.")
class Failure:
    code: str
    message: str
    where: str
    hint: str
    details: JSON
    conflicts: list[Conflict]
    missing: list[MissingPackage]
    faults: list[Fault]

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
            conflicts=[
                Conflict(
                    requirements=list(one.get("requirements", ())),
                    reason=one.get("reason", ""),
                    chain=list(one.get("chain", ())),
                )
                for one in details.get("conflicts", ())
            ],
            missing=[
                MissingPackage(
                    requirement=one.get("requirement", ""),
                    channels=list(one.get("channels", ())),
                    similar=list(one.get("similar", ())),
                )
                for one in details.get("missing", ())
            ],
            faults=faults_in(details),
        )


@strawberry.type(description="How far the running stage is.")
class Progress:
    stage: str
    done: int
    total: int
    bytes_done: BigInt
    bytes_total: BigInt
    current: str

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
