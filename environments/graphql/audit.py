"""The audit log as clients see it: search, verify, prune. Files of it come from `/api/audit`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import F, QuerySet
from strawberry import ID, Info
from strawberry.scalars import JSON

from environments.domain.audit_chain import Verified
from environments.domain.audit_checkpoints import CheckedCheckpoints
from environments.graphql.errors import OperationError
from environments.graphql.packages import BigInt
from environments.graphql.pages import (
    Column,
    Connection,
    actor_of,
    computed,
    connection,
    field,
)
from environments.models import AuditEvent
from environments.models.audit import AuditQuerySet
from environments.operations import audit


@strawberry.input(description="`action` and `target` by their beginning; all must hold.")
class AuditFilter:
    actor: str | None = None
    action: str | None = None
    target: str | None = None
    namespace: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    refused: bool | None = None

    def value(self) -> audit.Filters:
        return audit.Filters(
            actor=self.actor or "",
            action=self.action or "",
            target=self.target or "",
            namespace=self.namespace or "",
            since=_aware(self.since),
            until=_aware(self.until),
            refused=self.refused,
        )


def _aware(moment: datetime | None) -> datetime | None:
    """No time zone means UTC."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


@strawberry_django.type(AuditEvent, name="AuditEvent", field_cls=Column)
class AuditEventNode:
    id: ID
    at: datetime
    username: str
    address: str
    action: str
    target: str
    refused: bool
    digest: str

    position: BigInt = computed(lambda event: event.position or 0, only=["position"])
    changes: JSON = computed(lambda event: event.changes, only=["changes"])
    namespace: str | None = computed(
        lambda event: event.namespace_name,
        annotate={"namespace_name": F("namespace__name")},
        description="The name of the namespace that it is about.",
    )
    token_id: ID | None = computed(
        lambda event: event.token_id and str(event.token_id),
        only=["token_id"],
        description="The API token that it was done with.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: AuditQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[AuditEvent]:
        return queryset.visible_to(actor_of(info))


@strawberry.type(description="The first place at which the log is not as it was written.")
class AuditFault:
    position: BigInt
    message: str


@strawberry.type(description="Whether the audit log is as it was written.")
class AuditVerification:
    intact: bool
    checked: BigInt = strawberry.field(description="Events that are as they were written.")
    start: BigInt = strawberry.field(description="The position of the last that was pruned.")
    end: BigInt = strawberry.field(description="The position of the newest.")
    digest: str = strawberry.field(
        description="Of the newest: kept elsewhere, it proves what was there."
    )
    fault: AuditFault | None

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


@strawberry.type(description="The first checkpoint that contradicts the audit log.")
class CheckpointFault:
    line: int = strawberry.field(description="Its line, from 1.")
    message: str


@strawberry.type(description="Whether checkpoints that were stored elsewhere agree with the log.")
class AnchorVerification:
    intact: bool
    checked: int = strawberry.field(description="Checkpoints that agree with the log.")
    newest: datetime | None = strawberry.field(description="Time of the last of them.")
    position: BigInt | None = strawberry.field(description="Newest event at that time.")
    fault: CheckpointFault | None

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


@strawberry.type(description="What a prune took away.")
class PrunedAudit:
    events: BigInt
    position: BigInt = strawberry.field(description="Of the last that went.")


PrunePayload = Annotated[PrunedAudit | OperationError, strawberry.union("PrunePayload")]


def _events(info: Info, filters: AuditFilter | None = None) -> Iterable[AuditEventNode]:
    found: Any = (filters or AuditFilter()).value().rows(actor_of(info))
    return found  # type: ignore[no-any-return]


@strawberry.type
class AuditQuery:
    audit_events: Connection[AuditEventNode] = connection(
        _events,
        graphql_type=Connection[AuditEventNode],
        description="The newest first; of the namespaces that you run, or all if you run all.",
    )

    @field(description="Look at each event of the audit log. By administrators.")
    def verify_audit(self, info: Info) -> AuditVerification:
        return AuditVerification.of(audit.verify(actor=actor_of(info)))

    @field(
        description="Compare lines of an anchor (CONDASTORE_AUDIT_ANCHOR), in the order in which "
        f"they were stored, with the audit log; at most {audit.MAX_CHECKPOINTS:,} at a time. By "
        "administrators, after `verifyAudit`."
    )
    def verify_audit_anchor(self, info: Info, lines: list[str]) -> AnchorVerification:
        return AnchorVerification.of(audit.verify_anchor(actor=actor_of(info), lines=lines))


@strawberry.type
class AuditMutation:
    @field(description="Take away events older than `before`; the rest can still be verified.")
    def prune_audit(self, info: Info, before: datetime) -> PrunePayload:
        pruned = audit.prune(actor=actor_of(info), before=_aware(before) or before)
        return PrunedAudit(events=BigInt(pruned.events), position=BigInt(pruned.position))
