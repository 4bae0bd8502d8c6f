"""Typed details of errors and failures: one type for each kind of refusal that has more to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import strawberry

from environments.graphql.scalars import BigInt
from environments.graphql.verdicts import Verdict, verdict_of


@strawberry.type(description="Requirements that exclude each other.")
class Conflict:
    requirements: list[str] = strawberry.field(description="Conflicting requirements.")
    reason: str = strawberry.field(description="Explanation of the conflict.")
    chain: list[str] = strawberry.field(
        description="Dependency chain that leads from one requirement to the conflict."
    )
    platform: str = strawberry.field(description="Platform that was solved for.")


@strawberry.type(description="Requirement that no channel provides.")
class MissingPackage:
    requirement: str = strawberry.field(description="The requirement.")
    channels: list[str] = strawberry.field(description="URLs of the channels that were searched.")
    similar: list[str] = strawberry.field(description="Similar package names that exist.")
    platform: str = strawberry.field(description="Platform that was solved for.")


@strawberry.type(description="Package that a rule removed, so that no solution is left.")
class RemovedPackage:
    package: str = strawberry.field(description="Name of the package.")
    version: str = strawberry.field(description="Version of the package.")
    rule: str = strawberry.field(description="Name of the rule.")
    reason: str = strawberry.field(description="Reason that the rule gives.")
    platform: str = strawberry.field(description="Platform that was solved for.")


@strawberry.type(description="Details of `unsatisfiable`: why the solve has no solution.")
class UnsatisfiableDetails:
    conflicts: list[Conflict] = strawberry.field(description="Requirements without a solution.")
    missing: list[MissingPackage] = strawberry.field(
        description="Requirements that no channel provides."
    )
    removed: list[RemovedPackage] = strawberry.field(
        description="Packages that rules removed and that the solve needs."
    )


@strawberry.type(description="Details of a refusal by policy.")
class PolicyDetails:
    verdicts: list[Verdict] = strawberry.field(description="Results of the rules that refused.")


@strawberry.type(description="Details of `recalled`: the recalled packages of a build.")
class RecallDetails:
    recalls: list[BigInt] = strawberry.field(description="Database keys of the recalls.")
    packages: list[str] = strawberry.field(description="Recalled packages of the build.")


@strawberry.type(description="A quota that a request would exceed.")
class ExceededQuota:
    quota: str = strawberry.field(description="Name of the quota.")
    used: BigInt = strawberry.field(description="Amount in use.")
    limit: BigInt = strawberry.field(description="Largest amount that is allowed.")


@strawberry.type(description="Build whose archiving frees disk space.")
class LargeBuild:
    build: str = strawberry.field(description="Reference of the build.")
    size: BigInt = strawberry.field(description="Bytes that only this build holds.")


@strawberry.type(description="Details of a used up quota.")
class QuotaDetails:
    exceeded: list[ExceededQuota] = strawberry.field(description="Quotas that are used up.")
    largest: list[LargeBuild] = strawberry.field(
        description="Largest builds that are not current; empty unless disk space is used up."
    )


@strawberry.type(description="Details of a program that failed, such as a smoke test.")
class ProgramDetails:
    test: str = strawberry.field(description="Smoke test that failed; empty for other programs.")
    status: int | None = strawberry.field(
        description="Exit status of the program; negative: number of the signal that ended it."
    )
    tail: list[str] = strawberry.field(description="Last lines of its output.")


@strawberry.type(description="Details of missing disk space, in bytes.")
class DiskSpaceDetails:
    needed: BigInt = strawberry.field(description="Bytes that the request needs.")
    reserve: BigInt = strawberry.field(description="Bytes that must stay free.")
    free: BigInt = strawberry.field(description="Bytes that are free.")


@strawberry.type(description="Details of a request that is larger than allowed.")
class LimitDetails:
    limit: BigInt = strawberry.field(description="Largest allowed size, in bytes.")


@strawberry.type(description="Details of a decision that is refused because it is on one's own.")
class OwnRequestDetails:
    own: list[str] = strawberry.field(description="Packages that the person asked for.")


ErrorDetails = Annotated[
    UnsatisfiableDetails
    | PolicyDetails
    | RecallDetails
    | QuotaDetails
    | ProgramDetails
    | DiskSpaceDetails
    | LimitDetails
    | OwnRequestDetails,
    strawberry.union(
        "ErrorDetails", description="Typed details of an error, for codes that have some."
    ),
]


def typed_details(details: Mapping[str, Any]) -> ErrorDetails | None:
    """Return the typed form of an error's details; None if there is none.

    Args:
        details: `StoreError.details`, possibly as an older release stored them.
    """
    for key, read in _READERS.items():
        if key in details:
            found: ErrorDetails = read(details)
            return found
    return None


def _texts(values: object) -> list[str]:
    return [str(one) for one in values] if isinstance(values, Sequence) else []


def conflicts_in(details: Mapping[str, Any]) -> list[Conflict]:
    return [
        Conflict(
            requirements=_texts(one.get("requirements", ())),
            reason=one.get("reason", ""),
            chain=_texts(one.get("chain", ())),
            platform=one.get("platform", ""),
        )
        for one in details.get("conflicts", ())
    ]


def missing_in(details: Mapping[str, Any]) -> list[MissingPackage]:
    return [
        MissingPackage(
            requirement=one.get("requirement", ""),
            channels=_texts(one.get("channels", ())),
            similar=_texts(one.get("similar", ())),
            platform=one.get("platform", ""),
        )
        for one in details.get("missing", ())
    ]


def _unsatisfiable(details: Mapping[str, Any]) -> UnsatisfiableDetails:
    removed = [
        RemovedPackage(
            package=one.get("package", ""),
            version=one.get("version", ""),
            rule=one.get("rule", ""),
            reason=one.get("reason", ""),
            platform=one.get("platform", ""),
        )
        for one in details.get("policy", ())
    ]
    return UnsatisfiableDetails(
        conflicts=conflicts_in(details), missing=missing_in(details), removed=removed
    )


def _policy(details: Mapping[str, Any]) -> PolicyDetails:
    return PolicyDetails(verdicts=[verdict_of(one) for one in details["verdicts"]])


def _recall(details: Mapping[str, Any]) -> RecallDetails:
    return RecallDetails(
        recalls=[BigInt(one) for one in details["recalls"]],
        packages=_texts(details.get("packages", ())),
    )


def _quota(details: Mapping[str, Any]) -> QuotaDetails:
    return QuotaDetails(
        exceeded=[
            ExceededQuota(
                quota=one["quota"], used=BigInt(one["used"]), limit=BigInt(one["limit"] or 0)
            )
            for one in details["exceeded"]
        ],
        largest=[
            LargeBuild(build=one["build"], size=BigInt(one["bytes"]))
            for one in details.get("largest", ())
        ],
    )


def _program(details: Mapping[str, Any]) -> ProgramDetails:
    tail, status = details["tail"], details.get("status")
    return ProgramDetails(
        test=str(details.get("test", "")),
        status=status if isinstance(status, int) else None,
        tail=tail.splitlines() if isinstance(tail, str) else _texts(tail),
    )


def _disk(details: Mapping[str, Any]) -> DiskSpaceDetails:
    return DiskSpaceDetails(
        needed=BigInt(details["needed"]),
        reserve=BigInt(details["reserve"]),
        free=BigInt(details["free"]),
    )


#: Key of the details that only this type has -> how it is read.
_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "conflicts": _unsatisfiable,
    "verdicts": _policy,
    "recalls": _recall,
    "exceeded": _quota,
    "tail": _program,
    "reserve": _disk,
    "limit": lambda details: LimitDetails(limit=BigInt(details["limit"])),
    "own": lambda details: OwnRequestDetails(own=_texts(details["own"])),
}
