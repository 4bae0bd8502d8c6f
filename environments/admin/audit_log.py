"""What was done and refused, and by whom: the audit log, to search and to take away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse

from accounts.access import Actor
from environments.admin.base import Panel, Room, badge
from environments.admin.changelist import day_filter, text_filter
from environments.models import AuditEvent

#: Filters that the export knows too.
EXPORTED = ("actor", "action", "target", "namespace", "since", "until", "refused")


class Refused(admin.SimpleListFilter):
    title, parameter_name = "refused", "refused"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("true", "Refused attempts"), ("false", "What was done")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"true", "false"}:
            return queryset
        return queryset.filter(refused=self.value() == "true")


@admin.register(AuditEvent)
class AuditRoom(Room):
    title = "Audit log"
    list_display = ("when", "username", "action", "target", "outcome", "address")
    list_filter = (
        Refused,
        text_filter("actor", "person", "username"),
        text_filter("action", "action, how it starts", "action__begins"),
        text_filter("target", "target, how it starts", "target__begins"),
        text_filter("namespace", "namespace", "namespace__name", lower=True),
        text_filter("address", "address", "address"),
        day_filter("since", "since the day", "at__gte"),
        day_filter("until", "before the day", "at__lt"),
    )
    ordering = ("-pk",)
    facts = (
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
        url = f"{reverse('audit-log')}?{urlencode(given)}"
        return super().changelist_view(request, {"tools": [("Export as JSON lines", url)]})

    @admin.display(description="at", ordering="-pk")
    def when(self, event: AuditEvent) -> object:
        return f"{event.at:%F %T}"

    @admin.display(description="")
    def outcome(self, event: AuditEvent) -> object:
        return badge("refused") if event.refused else ""

    def panels(self, actor: Actor, row: AuditEvent) -> Sequence[Panel]:
        return (
            Panel(
                title="In detail",
                headers=("", ""),
                rows=[(key, str(value)) for key, value in row.changes.items()],
            ),
        )
