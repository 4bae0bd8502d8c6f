"""Audit log: search, verification and pruning. `/api/audit` exports it as files."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import F, Q, QuerySet
from strawberry import ID, Info
from strawberry.scalars import JSON

from environments.domain.audit_chain import Verified
from environments.domain.audit_checkpoints import CheckedCheckpoints
from environments.graphql.connections import Connection, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import Column, actor_of, column, computed, described, field
from environments.graphql.filtering import (
    Direction,
    condition,
    filter_type,
    filtered,
    ordered,
    sort_key,
)
from environments.graphql.nodes import Node, global_id, id_field, key_field, register_model
from environments.graphql.scalars import BigInt
from environments.models import AuditEvent
from environments.models.audit import AuditQuerySet
from environments.operations import audit


def _aware(moment: datetime | None) -> datetime | None:
    """No time zone means UTC."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _at(lookup: str, moment: datetime) -> Q:
    return Q(**{lookup: _aware(moment)})


@filter_type(
    AuditEvent,
    name="AuditFilter",
    description="Filter for audit events; all given conditions must hold.",
)
class AuditFilter:
    actor: str | None = condition("username", str, "Name of the acting user.")
    action: str | None = condition("action__begins", str, "Prefix of the action's name.")
    target: str | None = condition("target__begins", str, "Prefix of the target.")
    namespace: str | None = condition("namespace__name", str, "Name of the namespace concerned.")
    since: datetime | None = condition(
        "at__gte",
        datetime,
        "Only events at or after this time; UTC if no time zone is given.",
        build=_at,
    )
    until: datetime | None = condition(
        "at__lt",
        datetime,
        "Only events before this time; UTC if no time zone is given.",
        build=_at,
    )
    refused: bool | None = condition(
        "refused", bool, "True for refused actions only, false for permitted ones only."
    )


@strawberry_django.order_type(
    AuditEvent, name="AuditOrder", description="Sort key of audit events; give exactly one field."
)
class AuditOrder:
    at: Direction | None = sort_key("pk", description="By position in the log.")


@strawberry_django.type(
    AuditEvent,
    name="AuditEvent",
    field_cls=Column,
    description="One entry of the tamper-evident audit log.",
)
class AuditEventNode(Node):
    id: ID = id_field("AuditEvent")
    database_id: str = key_field()
    at: datetime = column("When the event was recorded.")
    username: str = column(
        "Name of the acting user, or `directory:NAME` for an identity directory."
    )
    address: str = column("IP address the request came from.")
    action: str = column("Name of the action, such as `environment.delete`.")
    target: str = column("What the action was applied to.")
    refused: bool = column("True when the action was refused.")
    digest: str = column("Digest of the hash chain up to this event, in hexadecimal.")

    position: BigInt = computed(
        lambda event: event.position or 0,
        only=["position"],
        description="Position of the event in the hash chain, starting at 1.",
    )
    changes: JSON = computed(
        lambda event: event.changes,
        only=["changes"],
        description="Recorded arguments and changes of the action; the keys depend on `action`.",
    )
    namespace: str | None = computed(
        lambda event: event.namespace_name,
        annotate={"namespace_name": F("namespace__name")},
        description="Name of the namespace concerned; null when there is none.",
    )
    token_id: ID | None = computed(
        lambda event: event.token_id and global_id("ApiToken", event.token_id),
        only=["token_id"],
        description="Id of the API token that was used; null for other sign-ins.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: AuditQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[AuditEvent]:
        return queryset.visible_to(actor_of(info))


@strawberry.type(description="First position at which the audit log was altered.")
class AuditFault:
    position: BigInt = strawberry.field(description="Position of the altered event.")
    message: str = strawberry.field(description="Description of the difference.")


@strawberry.type(description="Result of verifying the hash chain of the audit log.")
class AuditVerification:
    intact: bool = strawberry.field(description="True when the log has not been altered.")
    checked: BigInt = strawberry.field(description="Number of events that were verified.")
    start: BigInt = strawberry.field(
        description="Position of the last pruned event; 0 if nothing was pruned."
    )
    end: BigInt = strawberry.field(description="Position of the newest event.")
    digest: str = strawberry.field(
        description="Digest of the newest event; stored outside the installation, it "
        "proves the log's contents."
    )
    fault: AuditFault | None = strawberry.field(
        description="First altered position; null when the log is intact."
    )

    @classmethod
    def of(cls, found: Verified) -> AuditVerification:
        fault = None
        if found.fault is not None:
            fault = AuditFault(position=BigInt(found.fault.position), message=found.fault.message)
        return cls(
            intact=found.fault is None,
            checked=BigInt(found.checked),
            start=BigInt(found.start.position),
            end=BigInt(found.head.position),
            digest=found.head.digest,
            fault=fault,
        )


@strawberry.type(description="First checkpoint that contradicts the audit log.")
class CheckpointFault:
    line: int = strawberry.field(description="Number of the checkpoint's line, starting at 1.")
    message: str = strawberry.field(description="Description of the contradiction.")


@strawberry.type(
    description="Result of comparing externally stored checkpoints with the audit log."
)
class AnchorVerification:
    intact: bool = strawberry.field(description="True when every checkpoint agrees with the log.")
    checked: int = strawberry.field(description="Number of checkpoints that agree with the log.")
    newest: datetime | None = strawberry.field(
        description="Time of the newest checkpoint that was compared."
    )
    position: BigInt | None = strawberry.field(
        description="Position of the newest event at the time of that checkpoint."
    )
    fault: CheckpointFault | None = strawberry.field(
        description="First checkpoint that contradicts the log; null when there is none."
    )

    @classmethod
    def of(cls, found: CheckedCheckpoints) -> AnchorVerification:
        fault, newest = None, found.newest
        if found.fault is not None:
            fault = CheckpointFault(line=found.fault.line, message=found.fault.message)
        return cls(
            intact=fault is None,
            checked=found.checked,
            newest=datetime.fromisoformat(newest.at) if newest else None,
            position=BigInt(newest.position) if newest else None,
            fault=fault,
        )


@strawberry.type(description="Result of pruning the audit log.")
class PrunedAudit:
    events: BigInt = strawberry.field(description="Number of deleted events.")
    position: BigInt = strawberry.field(description="Position of the last deleted event.")


PrunePayload = Annotated[PrunedAudit | OperationError, refusable("PrunePayload")]


def _events(
    info: Info,
    filters: Annotated[AuditFilter | None, described("Conditions on the events.")] = None,
    order: Annotated[
        list[AuditOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[AuditEventNode]:
    rows = AuditEvent.objects.visible_to(actor_of(info))
    found: Any = ordered(filtered(rows, filters, info), AuditOrder, order, info)
    return found  # type: ignore[no-any-return]


@strawberry.type
class AuditQuery:
    audit_events: Connection[AuditEventNode] = connection(
        _events,
        graphql_type=Connection[AuditEventNode],
        description="Audit events of namespaces the caller manages, newest first; all "
        "events for administrators.",
    )

    @field(description="Verify the hash chain of the whole audit log. Administrators only.")
    def verify_audit(self, info: Info) -> AuditVerification:
        return AuditVerification.of(audit.verify(actor=actor_of(info)))

    @field(
        description="Compare stored checkpoints (CONDASTORE_AUDIT_ANCHOR) with the "
        "audit log. Administrators only, after `verifyAudit`."
    )
    def verify_audit_anchor(
        self,
        info: Info,
        lines: Annotated[
            list[str],
            described("Lines of the checkpoint file in their stored order, at most 2,000."),
        ],
    ) -> AnchorVerification:
        return AnchorVerification.of(audit.verify_anchor(actor=actor_of(info), lines=lines))


@strawberry.type
class AuditMutation:
    @field(
        description="Delete old audit events; the remaining log can still be verified. "
        "Administrators only."
    )
    def prune_audit(
        self,
        info: Info,
        before: Annotated[
            datetime,
            described("Events before this time are deleted; UTC if no time zone is given."),
        ],
    ) -> PrunePayload:
        pruned = audit.prune(actor=actor_of(info), before=_aware(before) or before)
        return PrunedAudit(events=BigInt(pruned.events), position=BigInt(pruned.position))


register_model("AuditEvent", AuditEventNode, lambda info: AuditEvent.objects.all())
