"""What was decided on packages, whether it holds, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from environments.admin.access import ApproversRoom
from environments.admin.base import Question, Reason, actor_of, badge, moment
from environments.admin.changelist import text_filter
from environments.models import (
    Decision,
    Namespace,
)
from environments.operations import approvals


class InForceFilter(admin.SimpleListFilter):
    title = "whether it holds"
    parameter_name = "holds"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("now", "holds now"),
            ("second", "waits for a second person"),
            ("expired", "has expired"),
            ("revoked", "was revoked"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        now = timezone.now()
        kinds = {
            "now": Q(expires_at=None) | Q(expires_at__gt=now),
            "second": Q(complete=False),
            "expired": Q(expires_at__lte=now),
            "revoked": Q(revoked_at__isnull=False),
        }
        if self.value() not in kinds:
            return queryset
        if self.value() != "revoked":
            queryset = queryset.filter(revoked_at=None)
        if self.value() == "now":
            queryset = queryset.filter(complete=True)
        return queryset.filter(kinds[self.value() or ""])


def _revoke(actor: Actor, row: Decision, answers: Mapping[str, Any]) -> None:
    approvals.revoke_decision(actor=actor, decision=row, reason=answers["reason"])


def _agree(actor: Actor, row: Decision, answers: Mapping[str, Any]) -> None:
    approvals.give_second_approval(actor=actor, decision=row)


@admin.register(Decision)
class DecisionRoom(ApproversRoom):
    list_display = ("what", "scope", "place", "holds", "until", "decided_by", "age")
    list_filter = (
        InForceFilter,
        "approved",
        text_filter("namespace", "namespace", "namespace__name", lower=True),
    )
    search_fields = ("name__begins",)
    search_help_text = "How the package's name starts."
    ordering = ("-pk",)
    facts = (
        "what",
        "scope",
        "spec",
        "channel",
        "sha256",
        "place",
        "reason",
        "holds",
        "expires_at",
        "decided_by",
        "decided_at",
        "seconded_by",
        "seconded_at",
        "revoked_by",
        "revoked_at",
    )
    questions = (
        Question(
            name="second",
            title="Agree as the second person",
            do=_agree,
            superuser=False,
            fits=lambda row: not row.complete and row.revoked_at is None,
        ),
        Question(
            name="revoke",
            title="Revoke",
            text="Builds that start from now on need another decision; what runs, goes on.",
            do=_revoke,
            form=Reason,
            superuser=False,
            fits=lambda row: row.revoked_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        actor, rows = actor_of(request), super().get_queryset(request)
        if not actor.sees_everything:
            theirs = Namespace.objects.with_perm(actor, Perm.APPROVE).order_by().values("pk")
            rows = rows.filter(Q(namespace=None) | Q(namespace__in=theirs))
        return rows.select_related("namespace", "decided_by", "seconded_by", "revoked_by")

    @admin.display(description="decision")
    def what(self, decision: Decision) -> str:
        said = "approved" if decision.approved else "rejected"
        return f"{said}: {decision.spec or decision.name} ({decision.manager})"

    @admin.display(description="in")
    def place(self, decision: Decision) -> str:
        return str(decision.namespace or "all namespaces")

    @admin.display(description="holds")
    def holds(self, decision: Decision) -> object:
        if decision.revoked_at is not None:
            return badge("revoked")
        if decision.expires_at is not None and decision.expires_at <= timezone.now():
            return badge("expired")
        return badge("holds" if decision.complete else "half")

    @admin.display(description="until")
    def until(self, decision: Decision) -> object:
        return moment(decision.expires_at) or "for good"

    @admin.display(description="decided")
    def age(self, decision: Decision) -> object:
        return moment(decision.decided_at)
