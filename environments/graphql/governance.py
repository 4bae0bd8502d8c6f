"""Approvals, recalls and webhooks: what can be asked and changed of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import strawberry
from django.db.models import Count, Q, QuerySet
from strawberry import ID, Info

from condastore.errors import NotFoundError
from environments.domain.lifecycle import BuildState
from environments.graphql.approvals import (
    ApprovalRequestNode,
    PackageDecision,
    Requests,
    decision_rows,
    request_rows,
    shown,
)
from environments.graphql.errors import OperationError
from environments.graphql.pages import Connection, Key, actor_of, connection, field
from environments.graphql.types import NamespaceNode, find
from environments.models import (
    ApprovalRequest,
    Build,
    Decision,
    DecisionScope,
    Recall,
    RecalledLock,
    RequestState,
    Webhook,
)
from environments.operations import approvals, notifications, recalls
from environments.operations.namespaces import find_namespace


@strawberry.input(description="All that is given must hold.")
class ApprovalRequestFilter:
    state: list[RequestState] | None = None
    namespace: str | None = strawberry.field(default=None, description="Its name.")
    name: str | None = strawberry.field(default=None, description="Of the package, in full.")
    search: str | None = strawberry.field(default=None, description="A part of the name.")

    def apply(self, rows: QuerySet[ApprovalRequest]) -> QuerySet[ApprovalRequest]:
        if self.state is not None:
            rows = rows.filter(state__in=self.state)
        if self.namespace is not None:
            rows = rows.filter(namespace__name=self.namespace)
        if self.name is not None:
            rows = rows.filter(name=self.name.lower())
        if self.search:
            rows = rows.filter(name__icontains=self.search)
        return rows


@strawberry.input(description="All that is given must hold.")
class DecisionFilter:
    namespace: str | None = strawberry.field(default=None, description="Its name.")
    name: str | None = strawberry.field(default=None, description="Of the package, in full.")
    approved: bool | None = None
    in_force: bool | None = None

    def apply(self, rows: QuerySet[Decision], now: datetime) -> QuerySet[Decision]:
        if self.namespace is not None:
            rows = rows.filter(namespace__name=self.namespace)
        if self.name is not None:
            rows = rows.filter(name=self.name.lower())
        if self.approved is not None:
            rows = rows.filter(approved=self.approved)
        if self.in_force is not None:
            force = Decision.objects.in_force(now).order_by().values("pk")
            held = Q(pk__in=force)
            rows = rows.filter(held if self.in_force else ~held)
        return rows


@strawberry.type(
    name="Recall",
    description="Packages that were called back: nothing that holds one is built or served.",
)
class RecallNode:
    id: ID
    manager: str
    spec: str
    sha256: str
    reason: str
    recalled_by: str | None
    recalled_at: datetime
    undone_by: str | None
    undone_at: datetime | None
    locks: int = strawberry.field(description="How many stored locks hold it, of all there are.")

    @classmethod
    def of(cls, row: Any) -> RecallNode:
        counted = row.__dict__.get("lock_total")
        return cls(
            id=ID(str(row.pk)),
            manager=row.manager,
            spec=row.spec,
            sha256=row.sha256,
            reason=row.reason,
            recalled_by=row.recalled_by.get_username() if row.recalled_by else None,
            recalled_at=row.recalled_at,
            undone_by=row.undone_by.get_username() if row.undone_by else None,
            undone_at=row.undone_at,
            locks=row.locks.count() if counted is None else counted,
        )


@strawberry.type(description="A build that holds what was recalled, and whom to talk to.")
class RecallHit:
    build: str = strawberry.field(description="`namespace/name:number`.")
    build_id: ID
    namespace: str
    environment: str
    number: int
    state: BuildState
    is_current: bool
    requested_by: str | None
    packages: list[str]


class Hits:
    """Builds that a recall hits, counted and sliced in the database."""

    def __init__(self, info: Info, recall: Recall) -> None:
        self.recall = recall
        self.rows = recalls.hits(actor_of(info), recall).select_related(
            "environment__namespace", "requested_by"
        )

    def __len__(self) -> int:
        return self.rows.order_by().count()

    def __iter__(self) -> Iterator[RecallHit]:
        return iter(self[0 : len(self)])

    def __getitem__(self, part: slice) -> list[RecallHit]:
        page = list(self.rows.defer("source", "log_archive", "verdicts")[part])
        locks = {build.lock_id for build in page}
        held = RecalledLock.objects.filter(recall=self.recall, lock__in=locks)
        packages = dict(held.values_list("lock", "packages"))
        return [self._hit(build, packages.get(build.lock_id or 0, [])) for build in page]

    def _hit(self, build: Build, packages: Sequence[str]) -> RecallHit:
        environment = build.environment
        return RecallHit(
            build=f"{environment}:{build.number}",
            build_id=ID(str(build.pk)),
            namespace=environment.namespace.name,
            environment=environment.name,
            number=build.number,
            state=BuildState(build.state),
            is_current=environment.current_id == build.pk,
            requested_by=build.requested_by.get_username() if build.requested_by else None,
            packages=list(packages),
        )


class Shown:
    """Rows of a query, each shown by `of`: sliced in the database."""

    def __init__(self, rows: QuerySet[Any], of: Any) -> None:
        self.rows, self.of = rows, of

    def __len__(self) -> int:
        return self.rows.order_by().count()

    def __iter__(self) -> Iterator[Any]:
        return iter(self[0 : len(self)])

    def __getitem__(self, part: slice) -> list[Any]:
        return [self.of(row) for row in self.rows[part]]


@strawberry.type(
    name="Webhook", description="An address that is told of events; each message is signed."
)
class WebhookNode:
    id: ID
    namespace: str | None = strawberry.field(description="Null: of the whole installation.")
    url: str
    events: list[str] = strawberry.field(description="None: every kind.")
    enabled: bool = strawberry.field(description="False after the receiver answered 410.")
    created_at: datetime

    @classmethod
    def of(cls, row: Webhook) -> WebhookNode:
        return cls(
            id=ID(str(row.pk)),
            namespace=row.namespace.name if row.namespace else None,
            url=row.url,
            events=list(row.events),
            enabled=row.enabled,
            created_at=row.created_at,
        )


@strawberry.type(description="`secret` is told now and never again.")
class CreatedWebhook:
    secret: str
    webhook: WebhookNode


@strawberry.type(description="What was decided, and the requests as they are by that.")
class Decided:
    decisions: list[PackageDecision]
    requests: list[ApprovalRequestNode]


DecidePayload = Annotated[Decided | OperationError, strawberry.union("DecidePayload")]
DecisionPayload = Annotated[PackageDecision | OperationError, strawberry.union("DecisionPayload")]
RequestPayload = Annotated[
    ApprovalRequestNode | OperationError, strawberry.union("ApprovalRequestPayload")
]
RecallPayload = Annotated[RecallNode | OperationError, strawberry.union("RecallPayload")]
WebhookPayload = Annotated[WebhookNode | OperationError, strawberry.union("WebhookPayload")]
CreatedWebhookPayload = Annotated[
    CreatedWebhook | OperationError, strawberry.union("CreatedWebhookPayload")
]
TwoPersonPayload = Annotated[NamespaceNode | OperationError, strawberry.union("TwoPersonPayload")]


def _requests(
    info: Info, filters: ApprovalRequestFilter | None = None
) -> Iterable[ApprovalRequestNode]:
    rows = request_rows().visible_to(actor_of(info))  # type: ignore[attr-defined]
    found: Any = Requests(info, filters.apply(rows) if filters else rows)
    return found  # type: ignore[no-any-return]


def _decisions(info: Info, filters: DecisionFilter | None = None) -> Iterable[PackageDecision]:
    rows = decision_rows().visible_to(actor_of(info))  # type: ignore[attr-defined]
    if filters:
        rows = filters.apply(rows, datetime.now(UTC))
    found: Any = Shown(rows, PackageDecision.of)
    return found  # type: ignore[no-any-return]


def _recalls(info: Info, active: bool | None = None) -> Iterable[RecallNode]:
    rows = Recall.objects.visible_to(actor_of(info))
    if active is not None:
        rows = rows.filter(undone_at__isnull=active)
    counted = rows.select_related("recalled_by", "undone_by").annotate(lock_total=Count("locks"))
    found: Any = Shown(counted, RecallNode.of)
    return found  # type: ignore[no-any-return]


def _hits(info: Info, key: Key) -> Iterable[RecallHit]:
    found: Any = Hits(info, recalls.find_recall(actor_of(info), key))
    return found  # type: ignore[no-any-return]


def _webhooks(info: Info, namespace: str | None = None) -> Iterable[WebhookNode]:
    rows = Webhook.objects.visible_to(actor_of(info)).select_related("namespace")
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Shown(rows, WebhookNode.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class GovernanceQuery:
    approval_requests: Connection[ApprovalRequestNode] = connection(
        _requests,
        graphql_type=Connection[ApprovalRequestNode],
        description="The newest first, of the namespaces that you see or decide in.",
    )
    decisions: Connection[PackageDecision] = connection(
        _decisions, graphql_type=Connection[PackageDecision], description="The newest first."
    )
    recalls: Connection[RecallNode] = connection(
        _recalls,
        graphql_type=Connection[RecallNode],
        description="The newest first; those that hit what you see, or all if you recall.",
    )
    recall_hits: Connection[RecallHit] = connection(
        _hits, graphql_type=Connection[RecallHit], description="The builds that a recall hits."
    )
    webhooks: Connection[WebhookNode] = connection(
        _webhooks,
        graphql_type=Connection[WebhookNode],
        description="Of the namespaces that you run.",
    )

    @field()
    def approval_request(self, info: Info, key: Key) -> ApprovalRequestNode | None:
        try:
            found = approvals.find_request(actor_of(info), key)
        except NotFoundError:
            return None
        return _shown(info, [found])[0]


@strawberry.type
class GovernanceMutation:
    @field(
        description="Approve or reject; by it also every open request that the same answer covers. "
        "Builds for which nothing is undecided go on, or fail, with no other step."
    )
    def decide(
        self,
        info: Info,
        requests: list[ID],
        approve: bool,
        reason: str,
        scope: DecisionScope = DecisionScope.VERSION,
        spec: str = "",
        everywhere: bool = False,
        expires_at: datetime | None = None,
    ) -> DecidePayload:
        actor = actor_of(info)
        found = [approvals.find_request(actor, key) for key in requests]
        made = approvals.decide(
            actor=actor,
            requests=found,
            approve=approve,
            reason=reason,
            scope=scope,
            spec=spec,
            everywhere=everywhere,
            expires_at=_aware(expires_at),
        )
        return Decided(
            decisions=[PackageDecision.of(decision) for decision in made],
            requests=_shown(info, found),
        )

    @field(description="Agree, as another person, with an approval that needs two.")
    def second_decision(self, info: Info, key: Key) -> DecisionPayload:
        actor = actor_of(info)
        decision = approvals.find_decision(actor, key)
        return PackageDecision.of(approvals.second(actor=actor, decision=decision))

    @field(description="What starts from now on needs another decision; what runs, goes on.")
    def revoke_decision(self, info: Info, key: Key, reason: str) -> DecisionPayload:
        actor = actor_of(info)
        decision = approvals.find_decision(actor, key)
        return PackageDecision.of(
            approvals.revoke_decision(actor=actor, decision=decision, reason=reason)
        )

    @field(description="Say what a package is for, to those who decide.")
    def explain_request(self, info: Info, key: Key, note: str) -> RequestPayload:
        actor = actor_of(info)
        found = approvals.find_request(actor, key)
        return _shown(info, [approvals.explain_request(actor=actor, request=found, note=note)])[0]

    @field(description="Whether two people must agree before a package is approved.")
    def set_two_person_approval(self, info: Info, namespace: str, on: bool) -> TwoPersonPayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        approvals.require_two_people(actor=actor, namespace=found, two=on)
        return found  # type: ignore[no-any-return]

    @field(
        description="Stop building and serving all that holds a package: by MatchSpec, or sha256."
    )
    def recall(
        self, info: Info, reason: str, spec: str = "", sha256: str = "", manager: str = "conda"
    ) -> RecallPayload:
        made = recalls.recall(
            actor=actor_of(info), spec=spec, sha256=sha256, manager=manager, reason=reason
        )
        return RecallNode.of(made)

    @field(description="Serve again what the recall took away.")
    def undo_recall(self, info: Info, key: Key, reason: str) -> RecallPayload:
        actor = actor_of(info)
        found = recalls.find_recall(actor, key)
        return RecallNode.of(recalls.undo_recall(actor=actor, recall=found, reason=reason))

    @field(description="Without a namespace: of the whole installation, by administrators.")
    def create_webhook(
        self, info: Info, url: str, namespace: str | None = None, events: list[str] | None = None
    ) -> CreatedWebhookPayload:
        actor = actor_of(info)
        place = find_namespace(actor, namespace) if namespace is not None else None
        made = notifications.create_webhook(
            actor=actor, namespace=place, url=url, events=events or ()
        )
        return CreatedWebhook(secret=made.secret, webhook=WebhookNode.of(made.webhook))

    @field(description="Send it a message, to see whether it gets one.")
    def test_webhook(self, info: Info, key: Key) -> WebhookPayload:
        actor = actor_of(info)
        rows = Webhook.objects.visible_to(actor).select_related("namespace")
        found = find(rows, key, "webhook")
        return WebhookNode.of(notifications.try_webhook(actor=actor, webhook=found))

    @field()
    def delete_webhook(self, info: Info, key: Key) -> WebhookPayload:
        actor = actor_of(info)
        rows = Webhook.objects.visible_to(actor).select_related("namespace")
        found = find(rows, key, "webhook")
        return WebhookNode.of(notifications.delete_webhook(actor=actor, webhook=found))


def _shown(info: Info, requests: Sequence[ApprovalRequest]) -> list[ApprovalRequestNode]:
    """As they are now, in the order of `requests`."""
    rows = request_rows().in_bulk([request.pk for request in requests])
    return shown(actor_of(info), [rows[request.pk] for request in requests])


def _aware(moment: datetime | None) -> datetime | None:
    """No time zone means UTC."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment
