"""Approval requests: packages that wait for a decision, and what is known about each."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from condastore.admin_site import ConsoleGroup
from condastore.errors import InvalidInputError
from environments.admin.access import ApproverAdmin
from environments.admin.confirmed_actions import MAX_SELECTED, ConfirmedAction, Reason, actor_of
from environments.admin.display import (
    RELATED_ROWS,
    RelatedTable,
    badge,
    link,
    list_url,
    long_text,
    relative_time,
    size,
)
from environments.admin.filters import date_range, text_filter
from environments.domain.policy.subjects import in_seconds
from environments.models import (
    ApprovalRequest,
    CondaRecord,
    Decision,
    DecisionScope,
    Environment,
    LockedConda,
    LockedPypi,
    PypiRecord,
    RequestState,
    WaitingBuild,
)
from environments.models.approvals import UNDECIDED
from environments.models.namespaces import DECIDE_EVERYWHERE, holds_everywhere
from environments.operations import approvals

#: Waiting builds that the confirmation page names for each package.
MAX_WAITING = 5


class StateFilter(admin.SimpleListFilter):
    """Undecided requests by default."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("all", "All"), *((state.value, state.label) for state in RequestState)]

    def choices(self, changelist: Any) -> Any:
        chosen = self.value()
        query = changelist.get_query_string
        waiting = query(remove=[self.parameter_name])
        yield {"selected": chosen is None, "query_string": waiting, "display": "Waiting"}
        for value, title in self.lookup_choices:
            here = query({self.parameter_name: value})
            yield {"selected": chosen == value, "query_string": here, "display": title}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        return queryset.filter(state__in=[self.value()] if self.value() else UNDECIDED)


class AgeFilter(admin.SimpleListFilter):
    title = "age"
    parameter_name = "older"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "Older than a day"), ("7", "Older than a week"), ("30", "Older than 30 days")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"1", "7", "30"}:
            return queryset
        days = datetime.timedelta(days=int(self.value() or 0))
        return queryset.filter(opened_at__lt=timezone.now() - days)


class DecisionForm(Reason):
    """Reason, scope and expiry of a decision."""

    scope = forms.ChoiceField(
        choices=[
            (DecisionScope.VERSION.value, "this version of the package, from this channel"),
            (DecisionScope.BUILD.value, "this file only, by its sha256"),
            (DecisionScope.SPEC.value, "all packages that the MatchSpec below matches"),
        ],
        initial=DecisionScope.VERSION.value,
        widget=forms.RadioSelect,
        label="Applies to",
    )
    spec = forms.CharField(
        required=False,
        max_length=500,
        label="MatchSpec",
        help_text="Such as numpy >=1.26,<2 or conda-forge::openssl. For the last choice only.",
    )
    everywhere = forms.ChoiceField(
        choices=[("", "the namespace of each request"), ("yes", "all namespaces")],
        required=False,
        widget=forms.RadioSelect,
        initial="",
        label="Valid in",
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires at",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
        help_text="In UTC. Builds that start later need another decision. Empty: never.",
    )

    def __init__(self, *args: Any, everywhere: bool = True, **options: Any) -> None:
        super().__init__(*args, **options)
        if not everywhere:  # the approver may decide in some namespaces only
            field: Any = self.fields["everywhere"]
            field.widget.choices = field.choices[:1]


def _decide(
    actor: Actor, requests: Sequence[ApprovalRequest], answers: Mapping[str, Any], *, approve: bool
) -> str:
    created = approvals.decide(
        actor=actor,
        requests=requests,
        approve=approve,
        reason=answers["reason"],
        scope=DecisionScope(answers["scope"]),
        spec=answers["spec"],
        everywhere=bool(answers["everywhere"]),
        expires_at=answers["expires_at"],
    )
    incomplete = sum(not decision.complete for decision in created)
    if incomplete:
        return f"Approved by you; {incomplete} still need a second approver."
    verdict = "Approved" if approve else "Rejected"
    return f"{verdict}: {', '.join(str(one) for one in requests[:3])}" + (
        f" and {len(requests) - 3} more." if len(requests) > 3 else "."
    )


def _approve(actor: Actor, rows: Sequence[ApprovalRequest], answers: Mapping[str, Any]) -> str:
    return _decide(actor, rows, answers, approve=True)


def _reject(actor: Actor, rows: Sequence[ApprovalRequest], answers: Mapping[str, Any]) -> str:
    return _decide(actor, rows, answers, approve=False)


def _second(actor: Actor, rows: Sequence[ApprovalRequest], answers: Mapping[str, Any]) -> str:
    halves = {row.decision_id: row.decision for row in rows if row.state == RequestState.SECOND}
    if not halves:
        raise InvalidInputError("None of the requests waits for a second approver.")
    for decision in halves.values():
        assert decision is not None, "the database holds this"
        approvals.give_second_approval(actor=actor, decision=decision)
    return "Approved by two people."


def _about(actor: Actor, rows: Sequence[ApprovalRequest]) -> Sequence[RelatedTable]:
    return (
        RelatedTable(
            title="Packages",
            headers=("Package", "Namespace", "Channel", "License", "Reason", "Waiting builds"),
            rows=[
                (
                    link(row, f"{row.name} {row.version}"),
                    row.namespace,
                    getattr(row.package, "channel", "") or row.manager,
                    getattr(row.package, "license", ""),
                    row.reason,
                    _waiting(row),
                )
                for row in rows[:MAX_SELECTED]
            ],
        ),
    )


def _waiting(row: ApprovalRequest) -> str:
    """Name the first builds that wait for the package, with who asked and what for."""
    waiting = row.waiting.select_related("build__environment__namespace", "asked_by")
    waiting = waiting.defer("build__source", "build__log_archive", "build__verdicts")
    found = list(waiting.order_by("pk")[: MAX_WAITING + 1])
    lines = [
        f"{one.build}, {one.asked_by or 'unknown user'}" + (f": {one.note}" if one.note else "")
        for one in found[:MAX_WAITING]
    ]
    return "\n".join([*lines, "and more"] if len(found) > MAX_WAITING else lines)


def _undecided(row: ApprovalRequest) -> bool:
    return row.state in UNDECIDED


@admin.register(ApprovalRequest)
class RequestAdmin(ApproverAdmin):
    title = "Approval requests"
    console_group, console_position = ConsoleGroup.DECISIONS, 1
    list_display = (
        "package_version",
        "namespace",
        "shown_state",
        "short_reason",
        "first_asked_by",
        "builds_waiting",
        "age",
    )
    export_fields = (
        "package_version",
        "namespace",
        "state",
        "rule",
        "reason",
        "first_asked_by",
        "builds_waiting",
        "opened_at",
        "decided_at",
    )
    list_filter = (
        StateFilter,
        AgeFilter,
        text_filter("namespace", "namespace", "namespace__name", lower=True),
        text_filter("rule", "rule", "rule"),
        date_range("opened_at", "opening date"),
    )
    search_fields = ("name__begins",)
    search_help_text = "Start of the package name."
    ordering = ("-pk",)
    fields = (
        "package_version",
        "namespace",
        "shown_state",
        "rule",
        "reason",
        "shown_chain",
        "channel",
        "license",
        "package_size",
        "released",
        "first_seen",
        "install_scripts",
        "used_in",
        "sha256",
        "opened_at",
        "decided_at",
        "decision_link",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="approve",
            title="Approve",
            text="Builds that wait for no other decision continue at once.",
            run=_approve,
            form=DecisionForm,
            in_bulk=True,
            superuser_only=False,
            applies_to=_undecided,
            related_tables=_about,
        ),
        ConfirmedAction(
            name="reject",
            title="Reject",
            text="Builds that wait for the package fail with your reason.",
            run=_reject,
            form=DecisionForm,
            in_bulk=True,
            superuser_only=False,
            applies_to=_undecided,
            related_tables=_about,
        ),
        ConfirmedAction(
            name="second",
            title="Agree as the second person",
            text="Another approver has approved the package; two approvals are required.",
            run=_second,
            in_bulk=True,
            superuser_only=False,
            applies_to=lambda row: row.state == RequestState.SECOND,
            related_tables=_about,
        ),
    )

    def form_options(
        self, request: HttpRequest, action: ConfirmedAction, about: Any
    ) -> dict[str, Any]:
        if action.name == "second":
            return {}
        return {"everywhere": holds_everywhere(actor_of(request), DECIDE_EVERYWHERE, Perm.APPROVE)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request).with_perm(actor_of(request), Perm.APPROVE)  # type: ignore[attr-defined]
        waiting = WaitingBuild.objects.filter(request=OuterRef("pk")).order_by()
        count = waiting.values("request").annotate(n=Count("pk")).values("n")
        first = waiting.order_by("pk").values("asked_by__username")[:1]
        return (
            rows.select_related("namespace", "conda", "pypi", "decision__decided_by")
            .defer("conda__record")
            .annotate(waiting_count=Coalesce(Subquery(count), 0), asker=Subquery(first))
        )

    @admin.display(description="package")
    def package_version(self, request: ApprovalRequest) -> str:
        return f"{request.name} {request.version}".strip()

    @admin.display(description="state")
    def shown_state(self, request: ApprovalRequest) -> object:
        return badge(request.state)

    @admin.display(description="reason")
    def short_reason(self, request: ApprovalRequest) -> object:
        return long_text(f"{request.reason[:300]} (rule “{request.rule}”)")

    @admin.display(description="requested by")
    def first_asked_by(self, request: Any) -> str:
        return request.asker or ""

    @admin.display(description="waiting builds")
    def builds_waiting(self, request: Any) -> int:
        return int(request.waiting_count)

    @admin.display(description="opened")
    def age(self, request: ApprovalRequest) -> object:
        return relative_time(request.opened_at)

    @admin.display(description="required by")
    def shown_chain(self, request: ApprovalRequest) -> str:
        return " → ".join(request.chain) or "requested directly"

    @admin.display
    def channel(self, request: ApprovalRequest) -> str:
        package = request.package
        return package.channel if isinstance(package, CondaRecord) else "PyPI" if package else ""

    @admin.display(description="license")
    def license(self, request: ApprovalRequest) -> str:
        return (request.package.license or "not stated") if request.package else ""

    @admin.display(description="size")
    def package_size(self, request: ApprovalRequest) -> str:
        return size(request.package.size) if request.package else ""

    @admin.display(description="released by its publisher")
    def released(self, request: ApprovalRequest) -> object:
        package = request.package
        stamp = package.timestamp if isinstance(package, CondaRecord) else None
        stamp = package.uploaded if isinstance(package, PypiRecord) else stamp
        if not stamp:
            return "unknown"
        return relative_time(datetime.datetime.fromtimestamp(in_seconds(stamp), tz=datetime.UTC))

    @admin.display(description="first seen here")
    def first_seen(self, request: ApprovalRequest) -> object:
        return relative_time(request.package.first_seen_at) if request.package else ""

    @admin.display(description="install scripts")
    def install_scripts(self, request: ApprovalRequest) -> str:
        package = request.package
        if not isinstance(package, CondaRecord):
            return "none: it is not a conda package"
        if package.link_scripts is None:
            return "unknown: the package was not unpacked yet"
        return ", ".join(package.link_scripts) or "none"

    @admin.display(description="environments with any version of the package")
    def used_in(self, request: ApprovalRequest) -> int:
        locked: Any = LockedConda if request.manager == "conda" else LockedPypi
        locks = locked.objects.filter(package__name=request.name).order_by().values("lock")
        return Environment.objects.present().filter(current__lock__in=locks).count()

    @admin.display
    def sha256(self, request: ApprovalRequest) -> str:
        return request.package.sha256 if request.package else ""

    @admin.display(description="decision")
    def decision_link(self, request: ApprovalRequest) -> object:
        return link(request.decision)

    def related_tables(self, actor: Actor, row: ApprovalRequest) -> Sequence[RelatedTable]:
        waiting = row.waiting.select_related("build__environment__namespace", "asked_by")
        waiting = waiting.defer("build__source", "build__log_archive", "build__verdicts")
        decided = (
            Decision.objects.visible_to(actor)
            .in_force(timezone.now())
            .filter(name=row.name, manager=row.manager)
            .select_related("namespace", "decided_by")
        )
        build: Any = link if actor.is_superuser else str
        return (
            RelatedTable(
                title="Waiting builds",
                headers=("Build", "State", "Requested by", "Purpose"),
                rows=[
                    (build(one.build), badge(one.build.state), one.asked_by or "", one.note)
                    for one in waiting.order_by("pk")[:RELATED_ROWS]
                ],
            ),
            RelatedTable(
                title="Decisions on the package",
                headers=("Decision", "Valid in", "Expires", "By", "Reason"),
                rows=[_decision_cells(one) for one in decided[:RELATED_ROWS]],
                more=list_url(Decision, q=row.name),
            ),
        )


def _decision_cells(decision: Decision) -> tuple[object, ...]:
    return (
        link(decision),
        decision.namespace or "all namespaces",
        relative_time(decision.expires_at) or "never",
        decision.decided_by or "",
        decision.reason,
    )
