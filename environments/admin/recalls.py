"""Packages that were called back, and whom that hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from accounts.access import Actor
from environments.admin.base import BESIDE, Panel, Question, Reason, Room, badge, link, moment
from environments.models import Recall, RecalledLock
from environments.operations import recalls


class RecallForm(Reason):
    """A MatchSpec or a digest."""

    manager = forms.ChoiceField(choices=[("conda", "conda"), ("pypi", "PyPI")])
    spec = forms.CharField(
        required=False,
        max_length=500,
        label="MatchSpec",
        help_text="Such as openssl <3.0.13, or xz 5.6.*; or",
    )
    sha256 = forms.CharField(
        required=False, max_length=71, help_text="the sha256 of one package's file."
    )
    field_order = ("manager", "spec", "sha256", "reason")


def _recall(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    made = recalls.recall(actor=actor, **answers)
    hit = recalls.hits(actor, made).count()
    return f"{made} is recalled: {hit} builds hold it, and are neither served nor built."


def _undo(actor: Actor, row: Recall, answers: Mapping[str, Any]) -> str:
    recalls.undo_recall(actor=actor, recall=row, reason=answers["reason"])
    return f"{row} is no longer recalled."


@admin.register(Recall)
class RecallRoom(Room):
    list_display = ("__str__", "manager", "shown_state", "locks_hit", "recalled_by", "age")
    list_filter = (("undone_at", admin.EmptyFieldListFilter),)
    search_fields = ("spec", "sha256__startswith")
    ordering = ("-pk",)
    facts = (
        "manager",
        "spec",
        "sha256",
        "reason",
        "shown_state",
        "recalled_by",
        "recalled_at",
        "undone_by",
        "undone_at",
    )
    questions = (
        Question(
            name="new",
            title="Recall a package",
            text="Nothing that holds it is built or served from now on, at any door. "
            "It can be undone.",
            do=_recall,
            form=RecallForm,
            rows=False,
        ),
        Question(
            name="undo",
            title="Undo",
            text="What it took away is served again, unless another recall holds it too.",
            do=_undo,
            form=Reason,
            fits=lambda row: row.undone_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        hit = RecalledLock.objects.filter(recall=OuterRef("pk")).order_by().values("recall")
        count = hit.annotate(n=Count("pk")).values("n")
        rows = super().get_queryset(request).select_related("recalled_by", "undone_by")
        return rows.annotate(hit=Coalesce(Subquery(count), 0))

    @admin.display(description="state")
    def shown_state(self, recall: Recall) -> object:
        return badge("recalled" if recall.undone_at is None else "undone")

    @admin.display(description="locks that hold it")
    def locks_hit(self, recall: Any) -> int:
        return int(recall.hit)

    @admin.display(description="recalled")
    def age(self, recall: Recall) -> object:
        return moment(recall.recalled_at)

    def panels(self, actor: Actor, row: Recall) -> Sequence[Panel]:
        hit = recalls.hits(actor, row).select_related("environment__namespace", "requested_by")
        hit = hit.defer("source", "log_archive", "verdicts")
        return (
            Panel(
                title=f"Builds that hold it ({hit.count():,})",
                headers=("Build", "State", "Asked for by", "Made"),
                rows=[
                    (
                        link(build),
                        badge(build.state),
                        build.requested_by or "",
                        moment(build.created_at),
                    )
                    for build in hit[: 4 * BESIDE]
                ],
            ),
        )
