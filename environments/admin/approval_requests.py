"""Packages that wait for a decision, with all that is known of each."""

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
from condastore.errors import InvalidInputError
from environments.admin.access import ApproversRoom
from environments.admin.base import (
    BESIDE,
    MOST_AT_ONCE,
    Panel,
    Question,
    Reason,
    actor_of,
    badge,
    link,
    list_url,
    moment,
    size,
)
from environments.admin.changelist import text_filter
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
from environments.operations import approvals


class StateFilter(admin.SimpleListFilter):
    """Waiting ones, unless something else is asked for."""

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
        return [("1", "older than a day"), ("7", "older than a week"), ("30", "older than 30 days")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"1", "7", "30"}:
            return queryset
        days = datetime.timedelta(days=int(self.value() or 0))
        return queryset.filter(opened_at__lt=timezone.now() - days)


class DecisionForm(Reason):
    """Reason, reach and end of what is decided."""

    scope = forms.ChoiceField(
        choices=[
            (DecisionScope.VERSION.value, "this version of the package, from this channel"),
            (DecisionScope.BUILD.value, "this file alone, by its sha256"),
            (DecisionScope.SPEC.value, "all that the MatchSpec below matches"),
        ],
        initial=DecisionScope.VERSION.value,
        widget=forms.RadioSelect,
        label="It holds for",
    )
    spec = forms.CharField(
        required=False,
        max_length=500,
        label="MatchSpec",
        help_text="Such as numpy >=1.26,<2, or conda-forge::openssl. Only with that choice.",
    )
    everywhere = forms.ChoiceField(
        choices=[("", "the namespace of each request"), ("yes", "all namespaces")],
        required=False,
        widget=forms.RadioSelect,
        initial="",
        label="It holds in",
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Until",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
        help_text="UTC. Builds that start later need another decision. Empty: for good.",
    )


def _decide(
    actor: Actor, requests: Sequence[ApprovalRequest], answers: Mapping[str, Any], *, approve: bool
) -> str:
    made = approvals.decide(
        actor=actor,
        requests=requests,
        approve=approve,
        reason=answers["reason"],
        scope=DecisionScope(answers["scope"]),
        spec=answers["spec"],
        everywhere=bool(answers["everywhere"]),
        expires_at=answers["expires_at"],
    )
    halves = sum(not decision.complete for decision in made)
    if halves:
        return f"Approved by you; {halves} wait for a second person, who must agree."
    said = "Approved" if approve else "Rejected"
    return f"{said}: {', '.join(str(one) for one in requests[:3])}" + (
        f" and {len(requests) - 3} more." if len(requests) > 3 else "."
    )


def _approve(actor: Actor, rows: Sequence[ApprovalRequest], answers: Mapping[str, Any]) -> str:
    return _decide(actor, rows, answers, approve=True)


def _reject(actor: Actor, rows: Sequence[ApprovalRequest], answers: Mapping[str, Any]) -> str:
    return _decide(actor, rows, answers, approve=False)


def _second(actor: Actor, rows: Sequence[ApprovalRequest], answers: Mapping[str, Any]) -> str:
    halves = {row.decision_id: row.decision for row in rows if row.state == RequestState.SECOND}
    if not halves:
        raise InvalidInputError("None of them waits for a second person.")
    for decision in halves.values():
        assert decision is not None, "the database holds this"
        approvals.give_second_approval(actor=actor, decision=decision)
    return "You agreed; it is approved."


def _about(actor: Actor, rows: Sequence[ApprovalRequest]) -> Sequence[Panel]:
    return (
        Panel(
            title="What is decided on",
            headers=("Package", "In", "Channel", "License", "Why"),
            rows=[
                (
                    link(row, f"{row.name} {row.version}"),
                    row.namespace,
                    getattr(row.package, "channel", "") or row.manager,
                    getattr(row.package, "license", ""),
                    row.reason,
                )
                for row in rows[:MOST_AT_ONCE]
            ],
        ),
    )


def _undecided(row: ApprovalRequest) -> bool:
    return row.state in UNDECIDED


@admin.register(ApprovalRequest)
class RequestRoom(ApproversRoom):
    title = "Approval requests"
    list_display = (
        "package_version",
        "namespace",
        "shown_state",
        "rule",
        "why",
        "first_asked_by",
        "builds_waiting",
        "age",
    )
    list_filter = (
        StateFilter,
        AgeFilter,
        text_filter("namespace", "namespace", "namespace__name", lower=True),
        text_filter("rule", "rule", "rule"),
    )
    search_fields = ("name__begins",)
    search_help_text = "How the package's name starts."
    ordering = ("-pk",)
    facts = (
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
        "known_since",
        "install_scripts",
        "used_in",
        "sha256",
        "opened_at",
        "decided_at",
        "decision_link",
    )
    questions = (
        Question(
            name="approve",
            title="Approve",
            text="Builds for which nothing else is undecided go on at once.",
            do=_approve,
            form=DecisionForm,
            together=True,
            superuser=False,
            fits=_undecided,
            panels=_about,
        ),
        Question(
            name="reject",
            title="Reject",
            text="Builds that wait for it fail, with your reason.",
            do=_reject,
            form=DecisionForm,
            together=True,
            superuser=False,
            fits=_undecided,
            panels=_about,
        ),
        Question(
            name="second",
            title="Agree as the second person",
            text="Another approver has approved it; two must.",
            do=_second,
            together=True,
            superuser=False,
            fits=lambda row: row.state == RequestState.SECOND,
            panels=_about,
        ),
    )

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

    @admin.display(description="why")
    def why(self, request: ApprovalRequest) -> str:
        return request.reason[:120]

    @admin.display(description="asked by")
    def first_asked_by(self, request: Any) -> str:
        return request.asker or ""

    @admin.display(description="builds")
    def builds_waiting(self, request: Any) -> int:
        return int(request.waiting_count)

    @admin.display(description="opened")
    def age(self, request: ApprovalRequest) -> object:
        return moment(request.opened_at)

    @admin.display(description="needed through")
    def shown_chain(self, request: ApprovalRequest) -> str:
        return " → ".join(request.chain) or "it was asked for itself"

    @admin.display
    def channel(self, request: ApprovalRequest) -> str:
        package = request.package
        return package.channel if isinstance(package, CondaRecord) else "PyPI" if package else ""

    @admin.display(description="license")
    def license(self, request: ApprovalRequest) -> str:
        return (request.package.license or "none is named") if request.package else ""

    @admin.display(description="size")
    def package_size(self, request: ApprovalRequest) -> str:
        return size(request.package.size) if request.package else ""

    @admin.display(description="released, by its publisher")
    def released(self, request: ApprovalRequest) -> object:
        package = request.package
        stamp = package.timestamp if isinstance(package, CondaRecord) else None
        stamp = package.uploaded if isinstance(package, PypiRecord) else stamp
        if not stamp:
            return "unknown"
        return moment(datetime.datetime.fromtimestamp(in_seconds(stamp), tz=datetime.UTC))

    @admin.display(description="known here for")
    def known_since(self, request: ApprovalRequest) -> object:
        return moment(request.package.first_seen_at) if request.package else ""

    @admin.display(description="install scripts")
    def install_scripts(self, request: ApprovalRequest) -> str:
        package = request.package
        if not isinstance(package, CondaRecord):
            return "none: it is no conda package"
        if package.link_scripts is None:
            return "unknown: nobody has opened it yet"
        return ", ".join(package.link_scripts) or "none"

    @admin.display(description="environments with this package, any version")
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

    def panels(self, actor: Actor, row: ApprovalRequest) -> Sequence[Panel]:
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
            Panel(
                title="Who waits for it",
                headers=("Build", "State", "Asked by", "What it is for"),
                rows=[
                    (build(one.build), badge(one.build.state), one.asked_by or "", one.note)
                    for one in waiting.order_by("pk")[:BESIDE]
                ],
            ),
            Panel(
                title="Decided on other versions of it",
                headers=("Decision", "In", "Until", "By", "Reason"),
                rows=[_told(one) for one in decided[:BESIDE]],
                more=list_url(Decision, q=row.name),
            ),
        )


def _told(decision: Decision) -> tuple[object, ...]:
    return (
        link(decision),
        decision.namespace or "all namespaces",
        moment(decision.expires_at) or "for good",
        decision.decided_by or "",
        decision.reason,
    )
