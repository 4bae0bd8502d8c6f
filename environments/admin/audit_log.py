"""The audit log: search, and export as CSV or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse

from accounts.access import Actor
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import actor_of
from environments.admin.display import RelatedTable, badge, exact_time, long_text
from environments.admin.filters import date_range, start_of_day, text_filter
from environments.models import AuditEvent

#: Filters that the export as JSON lines has too.
EXPORTED = ("actor", "action", "target", "namespace", "since", "until", "refused")


class Refused(admin.SimpleListFilter):
    title, parameter_name = "outcome", "refused"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("true", "Refused"), ("false", "Done")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"true", "false"}:
            return queryset
        return queryset.filter(refused=self.value() == "true")


@admin.register(AuditEvent)
class AuditAdmin(ReadOnlyAdmin):
    title = "Audit log"
    console_group, console_position = ConsoleGroup.SYSTEM, 1
    list_display = ("when", "username", "action", "outcome", "target_text", "address")
    export_fields = (
        "position",
        "at",
        "username",
        "token",
        "address",
        "namespace",
        "action",
        "target",
        "outcome",
        "changes_text",
    )
    list_filter = (
        Refused,
        text_filter("actor", "user", "username"),
        text_filter("action", "start of the action", "action__begins"),
        text_filter("target", "start of the target", "target__begins"),
        text_filter("namespace", "namespace", "namespace__name", lower=True),
        text_filter("address", "address", "address"),
        date_range("at", "time"),
    )
    ordering = ("-pk",)
    fields = (
        "at",
        "username",
        "token",
        "address",
        "namespace",
        "action",
        "target",
        "outcome",
        "position",
        "digest",
    )
    deferred = ("changes",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("namespace", "token__user")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        given = {key: request.GET[key] for key in EXPORTED if request.GET.get(key)}
        try:  # the last day is included here, and excluded by the export
            end = start_of_day(given.pop("until", ""), days_later=1)
        except (ValueError, OverflowError):
            end = None
        if end is not None:
            given["until"] = f"{end:%F}"
        jsonl = f"{reverse('audit-log')}?{urlencode(given)}"
        tools = [
            ("Export as CSV", self.export_url(request)),
            ("Export as JSON lines", jsonl),
        ]
        return super().changelist_view(request, {"tools": tools})

    def record_export(self, request: HttpRequest) -> None:
        filters = {key: values[-1] for key, values in request.GET.lists()} | {"format": "csv"}
        AuditEvent.record(actor_of(request), "audit.export", "audit log", filters)

    @admin.display(description="time (UTC)", ordering="-pk")
    def when(self, event: AuditEvent) -> object:
        return exact_time(event.at)

    @admin.display(description="outcome")
    def outcome(self, event: AuditEvent) -> object:
        return badge("refused" if event.refused else "done")

    @admin.display(description="target")
    def target_text(self, event: AuditEvent) -> object:
        return long_text(event.target)

    @admin.display(description="changes")
    def changes_text(self, event: AuditEvent) -> str:
        return json.dumps(event.changes, ensure_ascii=False)

    def related_tables(self, actor: Actor, row: AuditEvent) -> Sequence[RelatedTable]:
        return (
            RelatedTable(
                title="Details",
                headers=("Name", "Value"),
                rows=[(key, str(value)) for key, value in row.changes.items()],
            ),
        )
