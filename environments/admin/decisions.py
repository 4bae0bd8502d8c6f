"""Approval decisions: list, second approval and revocation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from condastore.admin_site import ConsoleGroup
from environments.admin.access import ApproverAdmin
from environments.admin.confirmed_actions import ConfirmedAction, Reason, actor_of
from environments.admin.display import badge, relative_time
from environments.admin.filters import date_range, flag_filter, text_filter
from environments.models import (
    Decision,
    Namespace,
)
from environments.operations import approvals


class InForceFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "holds"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("now", "In force"),
            ("second", "Waiting for a second approver"),
            ("expired", "Expired"),
            ("revoked", "Revoked"),
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
class DecisionAdmin(ApproverAdmin):
    title = "Decisions"
    console_group, console_position = ConsoleGroup.DECISIONS, 2
    list_display = ("what", "scope", "valid_in", "status", "until", "decided_by", "age")
    export_fields = (
        "what",
        "scope",
        "valid_in",
        "status",
        "reason",
        "decided_by",
        "decided_at",
        "expires_at",
        "revoked_by",
        "revoked_at",
    )
    list_filter = (
        InForceFilter,
        ("approved", flag_filter("decision", yes="Approved", no="Rejected")),
        text_filter("namespace", "namespace", "namespace__name", lower=True),
        date_range("decided_at", "decision date"),
    )
    search_fields = ("name__begins",)
    search_help_text = "Start of the package name."
    ordering = ("-pk",)
    fields = (
        "what",
        "scope",
        "spec",
        "channel",
        "sha256",
        "valid_in",
        "reason",
        "status",
        "expires_at",
        "decided_by",
        "decided_at",
        "seconded_by",
        "seconded_at",
        "revoked_by",
        "revoked_at",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="second",
            title="Agree as the second person",
            run=_agree,
            superuser_only=False,
            applies_to=lambda row: not row.complete and row.revoked_at is None,
        ),
        ConfirmedAction(
            name="revoke",
            title="Revoke",
            text="Builds that start later need another decision. Running builds continue.",
            run=_revoke,
            form=Reason,
            superuser_only=False,
            applies_to=lambda row: row.revoked_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        actor, rows = actor_of(request), super().get_queryset(request)
        if not actor.sees_everything:
            own = Namespace.objects.with_perm(actor, Perm.APPROVE).order_by().values("pk")
            rows = rows.filter(Q(namespace=None) | Q(namespace__in=own))
        return rows.select_related("namespace", "decided_by", "seconded_by", "revoked_by")

    @admin.display(description="decision")
    def what(self, decision: Decision) -> str:
        verdict = "approved" if decision.approved else "rejected"
        return f"{verdict}: {decision.spec or decision.name} ({decision.manager})"

    @admin.display(description="valid in")
    def valid_in(self, decision: Decision) -> str:
        return str(decision.namespace or "all namespaces")

    @admin.display(description="status")
    def status(self, decision: Decision) -> object:
        if decision.revoked_at is not None:
            return badge("revoked")
        if decision.expires_at is not None and decision.expires_at <= timezone.now():
            return badge("expired")
        return badge("in force" if decision.complete else "needs a second approver")

    @admin.display(description="expires")
    def until(self, decision: Decision) -> object:
        return relative_time(decision.expires_at) or "never"

    @admin.display(description="decided")
    def age(self, decision: Decision) -> object:
        return relative_time(decision.decided_at)
