"""Types of approval requests and package decisions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import strawberry
import strawberry_django
from django.db.models import Count, Prefetch, Q, QuerySet
from django.utils import timezone
from strawberry import ID

from accounts.access import Actor
from accounts.roles import Perm
from environments.domain.lifecycle import BuildState
from environments.graphql.fields import field
from environments.graphql.filtering import Direction, condition, filter_type, sort_key
from environments.graphql.nodes import Node, global_id, ids_of
from environments.graphql.scalars import BigInt
from environments.models import (
    ApprovalRequest,
    CondaRecord,
    Decision,
    DecisionScope,
    Environment,
    Namespace,
    RequestState,
    WaitingBuild,
)
from environments.services import approval_requests

#: Builds that a request names at most.
WAITING = 100
_USED_BY = {
    "conda": "current__lock__conda__package__name",
    "pypi": "current__lock__pypi__package__name",
}


def decision_rows() -> QuerySet[Decision]:
    return Decision.objects.select_related("namespace", "decided_by", "seconded_by", "revoked_by")


def request_rows() -> QuerySet[ApprovalRequest]:
    """With what each shows; the channel's own text of a package stays unread."""
    return ApprovalRequest.objects.select_related("namespace", "conda", "pypi").defer(
        "conda__record", "pypi__requires"
    )


def _name(user: Any) -> str | None:
    return user.get_username() if user else None


@filter_type(
    ApprovalRequest,
    name="ApprovalRequestFilter",
    description="Filter for approval requests; all given conditions must hold.",
)
class ApprovalRequestFilter:
    state: list[RequestState] | None = condition(
        "state__in", list[RequestState], "States of the request."
    )
    namespace: str | None = condition("namespace__name", str, "Name of the namespace.")
    name: str | None = condition(
        "name",
        str,
        "Exact name of the package.",
        build=lambda column, name: Q(**{column: name.lower()}),
    )
    search: str | None = condition("name__icontains", str, "Part of the name of the package.")


@strawberry_django.order_type(
    ApprovalRequest,
    name="ApprovalRequestOrder",
    description="Sort key of approval requests; give exactly one field.",
)
class ApprovalRequestOrder:
    opened_at: Direction | None = sort_key("opened_at", "pk", description="By time of opening.")
    name: Direction | None = sort_key("name", "pk", description="By name of the package.")


def _in_force(column: str, held: bool) -> Q:
    force = Decision.objects.in_force(datetime.now(UTC)).order_by().values("pk")
    found = Q(**{column: force})
    return found if held else ~found


@filter_type(
    Decision,
    name="DecisionFilter",
    description="Filter for package decisions; all given conditions must hold.",
)
class DecisionFilter:
    namespace: str | None = condition(
        "namespace__name", str, "Name of the namespace the decision holds in."
    )
    name: str | None = condition(
        "name",
        str,
        "Exact name of the package.",
        build=lambda column, name: Q(**{column: name.lower()}),
    )
    approved: bool | None = condition(
        "approved", bool, "True for approvals only, false for rejections only."
    )
    in_force: bool | None = condition(
        "pk__in",
        bool,
        "True for decisions in force only, false for expired, revoked or incomplete ones only.",
        build=_in_force,
    )


@strawberry_django.order_type(
    Decision,
    name="DecisionOrder",
    description="Sort key of package decisions; give exactly one field.",
)
class DecisionOrder:
    decided_at: Direction | None = sort_key("decided_at", "pk", description="By time of decision.")
    name: Direction | None = sort_key("name", "pk", description="By name of the package.")


@strawberry.type(
    description="Approval or rejection of packages, in force until it expires or is revoked."
)
class PackageDecision(Node):
    approved: bool = strawberry.field(description="True for an approval, false for a rejection.")
    scope: DecisionScope = strawberry.field(description="What the decision covers.")
    manager: str = strawberry.field(
        description="Package manager: conda or pypi, or `rule` for a decision on a whole lock."
    )
    name: str = strawberry.field(
        description="Name of the package, or of the rule for a decision on a whole lock."
    )
    spec: str = strawberry.field(
        description="MatchSpec of the covered packages; empty for scope BUILD."
    )
    channel: str = strawberry.field(
        description="URL of the channel of the covered packages; empty means any channel."
    )
    sha256: str = strawberry.field(
        description="SHA-256 digest of the covered package file; empty unless the scope is BUILD."
    )
    namespace: str | None = strawberry.field(
        description="Name of the namespace the decision holds in; null means all namespaces."
    )
    reason: str = strawberry.field(description="Reason given by the approver.")
    expires_at: datetime | None = strawberry.field(
        description="When the decision expires; null means never."
    )
    decided_by: str | None = strawberry.field(
        description="Name of the approver; null if the account was deleted."
    )
    decided_at: datetime = strawberry.field(description="When the decision was made.")
    seconded_by: str | None = strawberry.field(
        description="Name of the second approver; null if there is none."
    )
    complete: bool = strawberry.field(description="False while a second approver must agree.")
    revoked_at: datetime | None = strawberry.field(
        description="When the decision was revoked; null if it was not."
    )
    revoked_by: str | None = strawberry.field(description="Name of the user who revoked it.")
    in_force: bool = strawberry.field(
        description="True when the decision is complete, not expired and not revoked."
    )

    @classmethod
    def of(cls, row: Decision) -> PackageDecision:
        ended = row.expires_at is not None and row.expires_at <= timezone.now()
        return cls(
            **ids_of("PackageDecision", row),
            approved=row.approved,
            scope=DecisionScope(row.scope),
            manager=row.manager,
            name=row.name,
            spec=row.spec,
            channel=row.channel,
            sha256=row.sha256,
            namespace=row.namespace.name if row.namespace else None,
            reason=row.reason,
            expires_at=row.expires_at,
            decided_by=_name(row.decided_by),
            decided_at=row.decided_at,
            seconded_by=_name(row.seconded_by),
            complete=row.complete,
            revoked_at=row.revoked_at,
            revoked_by=_name(row.revoked_by),
            in_force=row.complete and row.revoked_at is None and not ended,
        )


@strawberry.type(description="Build that waits for a decision.")
class Waiting:
    build: str = strawberry.field(description="Reference of the build, as `namespace/name:number`.")
    build_id: ID = strawberry.field(description="Id of the build.")
    state: BuildState = strawberry.field(description="State of the build.")
    asked_by: str | None = strawberry.field(
        description="Name of the user who submitted the build; null if the account was deleted."
    )
    note: str = strawberry.field(description="Purpose of the package, as stated by the requester.")
    at: datetime = strawberry.field(description="When the build started to wait.")


class Facts:
    """Facts about some requests beyond their rows, queried once for all of them."""

    def __init__(self, actor: Actor, rows: Sequence[ApprovalRequest]) -> None:
        self.actor, self.rows = actor, rows

    @cached_property
    def _namespaces(self) -> set[int]:
        return {row.namespace_id for row in self.rows}

    @cached_property
    def _names(self) -> set[str]:
        return {row.name for row in self.rows}

    @cached_property
    def deciders(self) -> dict[int, list[str]]:
        return approval_requests.decider_names(self._namespaces)

    @cached_property
    def decidable(self) -> set[int]:
        allowed = Namespace.objects.with_perm(self.actor, Perm.APPROVE)
        return set(allowed.filter(pk__in=self._namespaces).values_list("pk", flat=True))

    @cached_property
    def decisions(self) -> dict[int, Decision]:
        return decision_rows().in_bulk({row.decision_id for row in self.rows if row.decision_id})

    @cached_property
    def waiting(self) -> dict[int, list[WaitingBuild]]:
        """Only for requests that the actor sees: a shared build tells nothing of other ones."""
        seen = ApprovalRequest.objects.visible_to(self.actor).order_by()
        here = seen.filter(pk__in=[row.pk for row in self.rows]).values_list("pk", flat=True)
        rows = WaitingBuild.objects.filter(request__in=list(here)).select_related(
            "asked_by", "build__environment__namespace"
        )
        found: dict[int, list[WaitingBuild]] = {}
        for one in rows.defer(
            "build__source", "build__log_archive", "build__verdicts", "build__progress"
        ).order_by("pk"):
            found.setdefault(one.request_id, []).append(one)
        return found

    @cached_property
    def approved(self) -> dict[tuple[str, str], list[Decision]]:
        now = timezone.now()
        rows = Decision.objects.in_force(now).filter(approved=True, name__in=self._names)
        found: dict[tuple[str, str], list[Decision]] = {}
        for row in rows:
            found.setdefault((row.manager, row.name), []).append(row)
        return found

    @cached_property
    def uses(self) -> dict[tuple[str, str], int]:
        visible = Environment.objects.visible_to(self.actor).order_by()
        found: dict[tuple[str, str], int] = {}
        for manager, way in _USED_BY.items():
            names = {row.name for row in self.rows if row.manager == manager}
            if names:
                counted = visible.filter(**{f"{way}__in": names}).values_list(way)
                rows = counted.annotate(total=Count("pk", distinct=True))
                found |= {(manager, name): total for name, total in rows}
        return found


@strawberry.type(
    name="ApprovalRequest",
    description="Request for a decision on one package in one namespace, shared by "
    "all builds that wait for it.",
)
class ApprovalRequestNode(Node):
    row: strawberry.Private[Any]
    facts: strawberry.Private[Facts]

    namespace: str = strawberry.field(description="Name of the namespace that needs the decision.")
    manager: str = strawberry.field(
        description="Package manager: conda or pypi, or `rule` when a rule asks about "
        "the whole lock."
    )
    name: str = strawberry.field(
        description="Name of the package, or of the rule when it asks about the whole lock."
    )
    version: str = strawberry.field(description="Version of the package.")
    build: str = strawberry.field(
        description="Build string of the conda package; empty for other packages."
    )
    channel: str = strawberry.field(
        description="URL of the conda channel the package comes from; empty for other packages."
    )
    license: str = strawberry.field(description="License that the package declares.")
    size: BigInt = strawberry.field(description="Size of the package file, in bytes.")
    sha256: str = strawberry.field(
        description="SHA-256 digest of the package file, in hexadecimal."
    )
    published_at: datetime | None = strawberry.field(
        description="Publication time that the channel states; null if it states none."
    )
    first_seen_at: datetime | None = strawberry.field(
        description="When a lock of this installation first contained the package."
    )
    install_scripts: list[str] | None = strawberry.field(
        description="Names of the install scripts in the package; null while the "
        "package has not been unpacked."
    )
    rule: str = strawberry.field(description="Name of the rule that asks for the decision.")
    reason: str = strawberry.field(description="Reason that the rule gives.")
    chain: list[str] = strawberry.field(
        description="Dependency chain from a requested package to this one."
    )
    state: RequestState = strawberry.field(description="State of the request.")
    opened_at: datetime = strawberry.field(description="When the request was opened.")
    decided_at: datetime | None = strawberry.field(
        description="When the request was decided; null while it is open."
    )

    @classmethod
    def of(cls, row: ApprovalRequest, facts: Facts) -> ApprovalRequestNode:
        package = row.package
        conda = package if isinstance(package, CondaRecord) else None
        return cls(
            row=row,
            facts=facts,
            **ids_of("ApprovalRequest", row),
            namespace=row.namespace.name,
            manager=approval_requests.manager_of(row),
            name=row.name,
            version=row.version,
            build=conda.build if conda else "",
            channel=conda.channel if conda else "",
            license=package.license if package else "",
            size=BigInt(package.size if package else 0),
            sha256=package.sha256 if package else "",
            published_at=conda.published_at if conda else None,
            first_seen_at=package.first_seen_at if package else None,
            install_scripts=conda.link_scripts if conda else None,
            rule=row.rule,
            reason=row.reason,
            chain=list(row.chain),
            state=RequestState(row.state),
            opened_at=row.opened_at,
            decided_at=row.decided_at,
        )

    @field(description="Decision that answered the request; null while it is open.")
    def decision(self) -> PackageDecision | None:
        key = self.row.decision_id
        return PackageDecision.of(self.facts.decisions[key]) if key else None

    @field(description="Builds that wait for the decision, at most 100.")
    def waiting(self) -> list[Waiting]:
        return [
            Waiting(
                build=f"{one.build.environment}:{one.build.number}",
                build_id=global_id("Build", one.build_id),
                state=BuildState(one.build.state),
                asked_by=_name(one.asked_by),
                note=one.note,
                at=one.at,
            )
            for one in self.facts.waiting.get(self.row.pk, ())[:WAITING]
        ]

    @field(
        description="Specifications or digests of this package that are already "
        "approved in the namespace."
    )
    def approved_versions(self) -> list[str]:
        found = self.facts.approved.get((self.manager, self.name), ())
        here = (None, self.row.namespace_id)
        return sorted({row.spec or row.sha256 for row in found if row.namespace_id in here})

    @field(
        description="Number of environments visible to the caller whose current build "
        "contains the package, in any version."
    )
    def environments(self) -> int:
        return self.facts.uses.get((self.manager, self.name), 0)

    @field(description="Names of the users whose role in the namespace allows them to decide.")
    def deciders(self) -> list[str]:
        return self.facts.deciders.get(self.row.namespace_id, [])

    @field(
        description="True when the caller's permissions allow a decision; a caller may "
        "still not decide their own request."
    )
    def may_decide(self) -> bool:
        return self.row.namespace_id in self.facts.decidable


def shown(actor: Actor, rows: Sequence[ApprovalRequest]) -> list[ApprovalRequestNode]:
    facts = Facts(actor, rows)
    return [ApprovalRequestNode.of(row, facts) for row in rows]


def of_builds() -> Prefetch[str, Any, str]:
    """The requests of each build of a list."""
    return Prefetch("requests", request_rows().order_by("name"), to_attr="shown_requests")
