"""Recalled packages and the builds that contain them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction, Reason
from environments.admin.display import RELATED_ROWS, RelatedTable, badge, link, relative_time
from environments.admin.filters import date_range, presence_filter
from environments.models import Build, Recall, RecalledLock
from environments.operations import recalls

#: Builds that a preview and the page of a recall list; both count all.
LISTED_BUILDS = 4 * RELATED_ROWS


class RecallForm(Reason):
    """A MatchSpec or a digest."""

    manager = forms.ChoiceField(choices=[("conda", "conda"), ("pypi", "PyPI")])
    spec = forms.CharField(
        required=False,
        max_length=500,
        label="MatchSpec",
        help_text="Such as openssl <3.0.13 or xz 5.6.*. Or:",
    )
    sha256 = forms.CharField(
        required=False, max_length=71, help_text="The sha256 digest of one package file."
    )
    field_order = ("manager", "spec", "sha256", "reason")


def _recall(actor: Actor, row: None, answers: Mapping[str, Any]) -> str:
    recall = recalls.recall(actor=actor, **answers)
    count = recalls.hits(actor, recall).count()
    return f"{recall} was recalled. Builds that contain it and are no longer served: {count:,}."


def _preview(actor: Actor, row: None, answers: Mapping[str, Any]) -> Sequence[RelatedTable]:
    names = ("manager", "spec", "sha256")
    found = recalls.preview_recall(
        actor=actor, limit=LISTED_BUILDS, **{name: answers[name] for name in names}
    )
    numbers = RelatedTable(
        title="What the recall would stop",
        headers=("Builds", "Environments", "Namespaces", "People who requested them"),
        rows=[
            (
                f"{found.build_count:,}",
                f"{found.environment_count:,}",
                f"{found.namespace_count:,}",
                f"{found.requester_count:,}",
            )
        ],
    )
    return (numbers, _table("Latest builds that would no longer be served", found.builds))


def _table(title: str, builds: Iterable[Build]) -> RelatedTable:
    return RelatedTable(
        title=title,
        headers=("Build", "State", "Requested by", "Created"),
        rows=[
            (
                link(build),
                badge(build.state),
                build.requested_by or "",
                relative_time(build.created_at),
            )
            for build in builds
        ],
    )


def _undo(actor: Actor, row: Recall, answers: Mapping[str, Any]) -> str:
    recalls.undo_recall(actor=actor, recall=row, reason=answers["reason"])
    return f"The recall of {row} was undone."


@admin.register(Recall)
class RecallAdmin(ReadOnlyAdmin):
    title = "Recalls"
    console_group, console_position = ConsoleGroup.DECISIONS, 3
    list_display = ("package", "manager", "shown_state", "lock_count", "recalled_by", "age")
    export_fields = (
        "package",
        "manager",
        "shown_state",
        "reason",
        "lock_count",
        "recalled_by",
        "recalled_at",
        "undone_by",
        "undone_at",
    )
    list_filter = (
        presence_filter("undone", "state", "undone_at", present="Undone", absent="In force"),
        date_range("recalled_at", "recall date"),
    )
    search_fields = ("spec", "sha256__startswith")
    ordering = ("-pk",)
    fields = (
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
    confirmed_actions = (
        ConfirmedAction(
            name="new",
            title="Recall a package",
            text="Builds that contain it are no longer served by any interface, and new builds "
            "with it are refused. A recall can be undone.",
            run=_recall,
            form=RecallForm,
            rows=False,
            dry_run_label="Show what it stops",
            dry_run=_preview,
            dry_run_first=True,
        ),
        ConfirmedAction(
            name="undo",
            title="Undo",
            text="The builds are served again, unless another recall applies to them.",
            run=_undo,
            form=Reason,
            applies_to=lambda row: row.undone_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        hit = RecalledLock.objects.filter(recall=OuterRef("pk")).order_by().values("recall")
        count = hit.annotate(n=Count("pk")).values("n")
        rows = super().get_queryset(request).select_related("recalled_by", "undone_by")
        return rows.annotate(hit=Coalesce(Subquery(count), 0))

    @admin.display(description="package")
    def package(self, recall: Recall) -> str:
        return str(recall)

    @admin.display(description="state")
    def shown_state(self, recall: Recall) -> object:
        return badge("recalled" if recall.undone_at is None else "undone")

    @admin.display(description="locks that contain it")
    def lock_count(self, recall: Any) -> int:
        return int(recall.hit)

    @admin.display(description="recalled")
    def age(self, recall: Recall) -> object:
        return relative_time(recall.recalled_at)

    def related_tables(self, actor: Actor, row: Recall) -> Sequence[RelatedTable]:
        hit = recalls.hits(actor, row).select_related("environment__namespace", "requested_by")
        hit = hit.defer("source", "log_archive", "verdicts")
        return (_table(f"Builds that contain it ({hit.count():,})", hit[:LISTED_BUILDS]),)
