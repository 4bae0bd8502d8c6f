"""Queries and mutations of approvals, recalls and webhooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import Count, QuerySet
from strawberry import ID, Info

from condastore.errors import NotFoundError
from environments.domain.lifecycle import BuildState
from environments.graphql.approvals import (
    ApprovalRequestFilter,
    ApprovalRequestNode,
    ApprovalRequestOrder,
    DecisionFilter,
    DecisionOrder,
    PackageDecision,
    decision_rows,
    request_rows,
    shown,
)
from environments.graphql.arguments import NamespaceName, OnlyNamespace
from environments.graphql.connections import Connection, Rows, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import actor_of, described, field
from environments.graphql.filtering import (
    Direction,
    condition,
    filter_type,
    filtered,
    ordered,
    sort_key,
)
from environments.graphql.namespaces import NamespaceNode
from environments.graphql.nodes import (
    Node,
    find,
    global_id,
    ids_of,
    key_in,
    register_batches,
    register_rows,
)
from environments.models import (
    ApprovalRequest,
    Build,
    DecisionScope,
    Recall,
    RecalledLock,
    Webhook,
)
from environments.operations import approvals, notifications, recalls
from environments.operations.namespaces import find_namespace


@filter_type(
    Recall, name="RecallFilter", description="Filter for recalls; all given conditions must hold."
)
class RecallFilter:
    active: bool | None = condition(
        "undone_at__isnull", bool, "True for recalls in force only, false for undone ones only."
    )


@strawberry_django.order_type(
    Recall, name="RecallOrder", description="Sort key of recalls; give exactly one field."
)
class RecallOrder:
    recalled_at: Direction | None = sort_key("recalled_at", "pk", description="By time of recall.")


@strawberry.type(
    name="Recall",
    description="Recall of packages: nothing that contains them is built or served.",
)
class RecallNode(Node):
    manager: str = strawberry.field(description="Package manager: conda or pypi.")
    spec: str = strawberry.field(
        description="MatchSpec of the recalled packages; empty when recalled by digest."
    )
    sha256: str = strawberry.field(
        description="SHA-256 digest of the recalled package file; empty when recalled by MatchSpec."
    )
    reason: str = strawberry.field(description="Reason given for the recall.")
    recalled_by: str | None = strawberry.field(
        description="Name of the user who recalled; null if the account was deleted."
    )
    recalled_at: datetime = strawberry.field(description="When the packages were recalled.")
    undone_by: str | None = strawberry.field(
        description="Name of the user who undid the recall; null if it is in force."
    )
    undone_at: datetime | None = strawberry.field(
        description="When the recall was undone; null if it is in force."
    )
    locks: int = strawberry.field(
        description="Number of stored locks that contain a recalled package."
    )

    @classmethod
    def of(cls, row: Any) -> RecallNode:
        counted = row.__dict__.get("lock_total")
        return cls(
            **ids_of("Recall", row),
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


@strawberry.type(description="Build that contains a recalled package.")
class RecallHit:
    build: str = strawberry.field(description="Reference of the build, as `namespace/name:number`.")
    build_id: ID = strawberry.field(description="Id of the build.")
    namespace: str = strawberry.field(description="Name of the namespace.")
    environment: str = strawberry.field(description="Name of the environment.")
    number: int = strawberry.field(description="Number of the build.")
    state: BuildState = strawberry.field(description="State of the build.")
    is_current: bool = strawberry.field(
        description="True when the build is the current build of its environment."
    )
    requested_by: str | None = strawberry.field(
        description="Name of the user who submitted the build; null if the account was deleted."
    )
    packages: list[str] = strawberry.field(description="Recalled packages in the build.")


#: Builds that a preview of a recall lists.
PREVIEWED_BUILDS = 100


@strawberry.type(description="What a recall would stop building and serving.")
class RecallPreview:
    build_count: int = strawberry.field(description="Number of builds that contain the packages.")
    environment_count: int = strawberry.field(description="Number of their environments.")
    namespace_count: int = strawberry.field(description="Number of their namespaces.")
    requester_count: int = strawberry.field(description="Number of users who submitted the builds.")
    builds: list[RecallHit] = strawberry.field(
        description=f"The latest builds, newest first; at most {PREVIEWED_BUILDS}."
    )


def _hits_of(recall: Recall) -> Callable[[list[Any]], list[Any]]:
    """Answer a page of the builds that a recall hits, with the recalled packages of each."""

    def convert(page: list[Any]) -> list[Any]:
        locks = {build.lock_id for build in page}
        held = RecalledLock.objects.filter(recall=recall, lock__in=locks)
        packages = dict(held.values_list("lock", "packages"))
        return [_hit(build, packages.get(build.lock_id or 0, [])) for build in page]

    return convert


def _hit(build: Build, packages: Sequence[str]) -> RecallHit:
    environment = build.environment
    return RecallHit(
        build=f"{environment}:{build.number}",
        build_id=global_id("Build", build.pk),
        namespace=environment.namespace.name,
        environment=environment.name,
        number=build.number,
        state=BuildState(build.state),
        is_current=environment.current_id == build.pk,
        requested_by=build.requested_by.get_username() if build.requested_by else None,
        packages=list(packages),
    )


@strawberry.type(name="Webhook", description="URL that receives signed messages about events.")
class WebhookNode(Node):
    namespace: str | None = strawberry.field(
        description="Name of the namespace whose events are sent; null means the whole "
        "installation."
    )
    url: str = strawberry.field(description="URL that receives the messages.")
    events: list[str] = strawberry.field(
        description="Event types to deliver; an empty list means all."
    )
    enabled: bool = strawberry.field(description="False after the receiver answered 410 Gone.")
    created_at: datetime = strawberry.field(description="When the webhook was created.")

    @classmethod
    def of(cls, row: Webhook) -> WebhookNode:
        return cls(
            **ids_of("Webhook", row),
            namespace=row.namespace.name if row.namespace else None,
            url=row.url,
            events=list(row.events),
            enabled=row.enabled,
            created_at=row.created_at,
        )


@strawberry.type(description="New webhook with its signing secret.")
class CreatedWebhook:
    secret: str = strawberry.field(
        description="Key that signs the messages; it is shown only once."
    )
    webhook: WebhookNode = strawberry.field(description="The new webhook.")


@strawberry.type(description="Result of deciding approval requests.")
class Decided:
    decisions: list[PackageDecision] = strawberry.field(description="Decisions that were recorded.")
    requests: list[ApprovalRequestNode] = strawberry.field(
        description="The requests after the decision."
    )


DecidePayload = Annotated[Decided | OperationError, refusable("DecidePayload")]
DecisionPayload = Annotated[PackageDecision | OperationError, refusable("DecisionPayload")]
RequestPayload = Annotated[
    ApprovalRequestNode | OperationError, refusable("ApprovalRequestPayload")
]
RecallPayload = Annotated[RecallNode | OperationError, refusable("RecallPayload")]
WebhookPayload = Annotated[WebhookNode | OperationError, refusable("WebhookPayload")]
CreatedWebhookPayload = Annotated[
    CreatedWebhook | OperationError, refusable("CreatedWebhookPayload")
]
TwoPersonPayload = Annotated[NamespaceNode | OperationError, refusable("TwoPersonPayload")]


def _requests(
    info: Info,
    filters: Annotated[
        ApprovalRequestFilter | None, described("Conditions on the requests.")
    ] = None,
    order: Annotated[
        list[ApprovalRequestOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[ApprovalRequestNode]:
    actor = actor_of(info)
    rows: Any = request_rows().visible_to(actor)  # type: ignore[attr-defined]
    rows = ordered(filtered(rows, filters, info), ApprovalRequestOrder, order, info)
    found: Any = Rows(rows, lambda page: shown(actor, page))
    return found  # type: ignore[no-any-return]


def _decisions(
    info: Info,
    filters: Annotated[DecisionFilter | None, described("Conditions on the decisions.")] = None,
    order: Annotated[
        list[DecisionOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[PackageDecision]:
    rows: Any = decision_rows().visible_to(actor_of(info))  # type: ignore[attr-defined]
    rows = ordered(filtered(rows, filters, info), DecisionOrder, order, info)
    found: Any = Rows.each(rows, PackageDecision.of)
    return found  # type: ignore[no-any-return]


def _recall_rows(info: Info) -> QuerySet[Recall]:
    rows = Recall.objects.visible_to(actor_of(info)).select_related("recalled_by", "undone_by")
    return rows.annotate(lock_total=Count("locks"))


def _webhook_rows(info: Info) -> QuerySet[Webhook]:
    return Webhook.objects.visible_to(actor_of(info)).select_related("namespace")


def _recalls(
    info: Info,
    filters: Annotated[RecallFilter | None, described("Conditions on the recalls.")] = None,
    order: Annotated[
        list[RecallOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[RecallNode]:
    rows = ordered(filtered(_recall_rows(info), filters, info), RecallOrder, order, info)
    found: Any = Rows.each(rows, RecallNode.of)
    return found  # type: ignore[no-any-return]


def _hits(
    info: Info, key: Annotated[ID, described("Id of the recall.", name="id")]
) -> Iterable[RecallHit]:
    actor = actor_of(info)
    recall = recalls.find_recall(actor, key_in(key, "Recall"))
    rows = recalls.hits(actor, recall).select_related("environment__namespace", "requested_by")
    found: Any = Rows(rows.defer("source", "log_archive", "verdicts"), _hits_of(recall))
    return found  # type: ignore[no-any-return]


def _webhooks(info: Info, namespace: OnlyNamespace = None) -> Iterable[WebhookNode]:
    rows = _webhook_rows(info)
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Rows.each(rows, WebhookNode.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class GovernanceQuery:
    approval_requests: Connection[ApprovalRequestNode] = connection(
        _requests,
        graphql_type=Connection[ApprovalRequestNode],
        description="Approval requests of namespaces the caller sees or decides in, newest first.",
    )
    decisions: Connection[PackageDecision] = connection(
        _decisions,
        graphql_type=Connection[PackageDecision],
        description="Package decisions visible to the caller, newest first.",
    )
    recalls: Connection[RecallNode] = connection(
        _recalls,
        graphql_type=Connection[RecallNode],
        description="Recalls that affect builds visible to the caller, or all recalls "
        "for callers who may recall; newest first.",
    )
    recall_hits: Connection[RecallHit] = connection(
        _hits,
        graphql_type=Connection[RecallHit],
        description="Builds visible to the caller that contain a recalled package.",
    )
    webhooks: Connection[WebhookNode] = connection(
        _webhooks,
        graphql_type=Connection[WebhookNode],
        description="Webhooks of the namespaces the caller manages.",
    )

    @field(
        description="What a recall would stop building and serving; for callers who may "
        "recall. Nothing is recalled."
    )
    def recall_preview(
        self,
        info: Info,
        spec: Annotated[str, described("MatchSpec of the packages to recall.")] = "",
        sha256: Annotated[str, described("SHA-256 digest of the package file to recall.")] = "",
        manager: Annotated[str, described("Package manager: conda or pypi.")] = "conda",
    ) -> RecallPreview:
        found = recalls.preview_recall(
            actor=actor_of(info), spec=spec, sha256=sha256, manager=manager, limit=PREVIEWED_BUILDS
        )
        return RecallPreview(
            build_count=found.build_count,
            environment_count=found.environment_count,
            namespace_count=found.namespace_count,
            requester_count=found.requester_count,
            builds=[
                _hit(build, found.packages.get(build.lock_id or 0, [])) for build in found.builds
            ],
        )

    @field(description="One approval request; null when it does not exist or is not visible.")
    def approval_request(
        self, info: Info, key: Annotated[ID, described("Id of the request.", name="id")]
    ) -> ApprovalRequestNode | None:
        try:
            found = approvals.find_request(actor_of(info), key_in(key, "ApprovalRequest"))
        except NotFoundError:
            return None
        return _shown(info, [found])[0]


@strawberry.type
class GovernanceMutation:
    @field(
        description="Approve or reject packages. The decision also answers other open "
        "requests that it covers; builds without undecided packages "
        "continue or fail."
    )
    def decide(
        self,
        info: Info,
        requests: Annotated[list[ID], described("Ids of the requests.")],
        approve: Annotated[bool, described("True to approve, false to reject.")],
        reason: Annotated[str, described("Reason for the decision.")],
        scope: Annotated[
            DecisionScope, described("What the decision covers.")
        ] = DecisionScope.VERSION,
        spec: Annotated[
            str, described("MatchSpec of the covered packages; required for scope SPEC.")
        ] = "",
        everywhere: Annotated[bool, described("True to decide for all namespaces.")] = False,
        expires_at: Annotated[
            datetime | None,
            described("When the decision expires; null means never. UTC if no time zone is given."),
        ] = None,
    ) -> DecidePayload:
        actor = actor_of(info)
        found = [approvals.find_request(actor, key_in(key, "ApprovalRequest")) for key in requests]
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

    @field(description="Agree with an approval that requires a second approver.")
    def second_decision(
        self, info: Info, key: Annotated[ID, described("Id of the decision.", name="id")]
    ) -> DecisionPayload:
        actor = actor_of(info)
        decision = approvals.find_decision(actor, key_in(key, "PackageDecision"))
        return PackageDecision.of(approvals.give_second_approval(actor=actor, decision=decision))

    @field(description="Revoke a decision; builds that start later need a new one.")
    def revoke_decision(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the decision.", name="id")],
        reason: Annotated[str, described("Reason for revoking.")],
    ) -> DecisionPayload:
        actor = actor_of(info)
        decision = approvals.find_decision(actor, key_in(key, "PackageDecision"))
        return PackageDecision.of(
            approvals.revoke_decision(actor=actor, decision=decision, reason=reason)
        )

    @field(description="State the purpose of a package for its approvers.")
    def explain_request(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the request.", name="id")],
        note: Annotated[str, described("Purpose of the package.")],
    ) -> RequestPayload:
        actor = actor_of(info)
        found = approvals.find_request(actor, key_in(key, "ApprovalRequest"))
        return _shown(info, [approvals.explain_request(actor=actor, request=found, note=note)])[0]

    @field(description="Set whether approving a package requires two approvers.")
    def set_two_person_approval(
        self,
        info: Info,
        namespace: NamespaceName,
        on: Annotated[bool, described("True to require two approvers.")],
    ) -> TwoPersonPayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        approvals.require_two_people(actor=actor, namespace=found, two=on)
        return found  # type: ignore[no-any-return]

    @field(
        description="Stop building and serving everything that contains a package. Give "
        "`spec` or `sha256`."
    )
    def recall(
        self,
        info: Info,
        reason: Annotated[str, described("Reason for the recall.")],
        spec: Annotated[str, described("MatchSpec of the packages to recall.")] = "",
        sha256: Annotated[str, described("SHA-256 digest of the package file to recall.")] = "",
        manager: Annotated[str, described("Package manager: conda or pypi.")] = "conda",
    ) -> RecallPayload:
        made = recalls.recall(
            actor=actor_of(info), spec=spec, sha256=sha256, manager=manager, reason=reason
        )
        return RecallNode.of(made)

    @field(description="Undo a recall; affected builds are served again.")
    def undo_recall(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the recall.", name="id")],
        reason: Annotated[str, described("Reason for undoing it.")],
    ) -> RecallPayload:
        actor = actor_of(info)
        found = recalls.find_recall(actor, key_in(key, "Recall"))
        return RecallNode.of(recalls.undo_recall(actor=actor, recall=found, reason=reason))

    @field(description="Create a webhook. Administrators only for the installation.")
    def create_webhook(
        self,
        info: Info,
        url: Annotated[str, described("URL that receives the messages.")],
        namespace: Annotated[
            str | None,
            described(
                "Name of the namespace whose events are sent; null means the whole installation."
            ),
        ] = None,
        events: Annotated[
            list[str] | None, described("Event types to deliver; null or an empty list means all.")
        ] = None,
    ) -> CreatedWebhookPayload:
        actor = actor_of(info)
        place = find_namespace(actor, namespace) if namespace is not None else None
        made = notifications.create_webhook(
            actor=actor, namespace=place, url=url, events=events or ()
        )
        return CreatedWebhook(secret=made.secret, webhook=WebhookNode.of(made.webhook))

    @field(description="Send a test message to a webhook.")
    def test_webhook(
        self, info: Info, key: Annotated[ID, described("Id of the webhook.", name="id")]
    ) -> WebhookPayload:
        actor = actor_of(info)
        rows = Webhook.objects.visible_to(actor).select_related("namespace")
        found = find(rows, key, "webhook")
        return WebhookNode.of(notifications.try_webhook(actor=actor, webhook=found))

    @field(description="Delete a webhook.")
    def delete_webhook(
        self, info: Info, key: Annotated[ID, described("Id of the webhook.", name="id")]
    ) -> WebhookPayload:
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


register_batches(
    "ApprovalRequest",
    lambda info: request_rows().visible_to(actor_of(info)),  # type: ignore[attr-defined]
    lambda info, rows: shown(actor_of(info), rows),
)
register_rows(
    "PackageDecision",
    lambda info: decision_rows().visible_to(actor_of(info)),  # type: ignore[attr-defined]
    lambda info, row: PackageDecision.of(row),
)
register_rows("Recall", _recall_rows, lambda info, row: RecallNode.of(row))
register_rows("Webhook", _webhook_rows, lambda info, row: WebhookNode.of(row))
