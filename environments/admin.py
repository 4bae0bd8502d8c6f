"""The operators' view of the rows: to look at, and to do what everybody's operations do."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from environments.domain.errors import StoreError
from environments.models import (
    AuditEvent,
    Build,
    BuildEvent,
    Channel,
    ChannelCredential,
    Environment,
    Namespace,
    Worker,
)
from environments.operations import builds


def actor_of(request: HttpRequest) -> Actor:
    found: Actor = request.actor  # type: ignore[attr-defined]
    return found


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows whose invariants the operations keep are not edited by hand."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)


@admin.register(Namespace)
class NamespaceAdmin(ReadOnly):
    list_display = ("name", "personal", "public", "created_at", "created_by")
    list_select_related = ("created_by",)
    list_filter = ("personal", "public")
    search_fields = ("name",)


@admin.register(Environment)
class EnvironmentAdmin(ReadOnly):
    list_display = ("__str__", "current_number", "pinned", "updated_at", "created_by", "deleted_at")
    list_select_related = ("namespace", "current", "created_by")
    list_filter = ("pinned", ("deleted_at", admin.EmptyFieldListFilter))
    search_fields = ("name", "namespace__name")
    exclude = ("current",)

    @admin.display(description="current build")
    def current_number(self, environment: Environment) -> int | None:
        return environment.current.number if environment.current else None


class BuildEventInline(admin.TabularInline):  # type: ignore[type-arg]
    model = BuildEvent
    extra = 0
    can_delete = False
    readonly_fields = fields = ("at", "state", "message")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Build)
class BuildAdmin(ReadOnly):
    list_display = ("__str__", "state", "attempt", "requested_by", "created_at", "finished_at")
    list_select_related = ("environment__namespace", "requested_by")
    list_filter = ("state", "platform")
    search_fields = ("environment__name", "environment__namespace__name")
    date_hierarchy = "created_at"
    exclude = ("specification", "lock", "prefix", "origin")
    inlines = (BuildEventInline,)
    actions = ("cancel_selected",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Build]:
        return super().get_queryset(request).defer("log_archive", "source")

    @admin.action(description="Cancel the selected builds")
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Build]) -> None:
        refused = 0
        for build in queryset.select_related("environment__namespace"):
            try:
                builds.cancel_build(actor=actor_of(request), build=build)
            except StoreError as error:
                refused += 1
                self.message_user(request, str(error), messages.WARNING)
        self.message_user(request, f"{len(queryset) - refused} cancelled, {refused} could not be.")


@admin.register(Channel)
class ChannelAdmin(ReadOnly):
    list_display = ("url", "first_seen_at", "indexed_at")
    search_fields = ("url",)


@admin.register(ChannelCredential)
class ChannelCredentialAdmin(ReadOnly):
    """The secret is not shown; delete a credential to have it entered again."""

    list_display = ("url_prefix", "kind", "namespace", "created_at")
    list_select_related = ("namespace",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request)


@admin.register(Worker)
class WorkerAdmin(ReadOnly):
    list_display = ("name", "platform", "queues", "started_at", "expires_at")


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnly):
    list_display = ("at", "username", "action", "target", "address")
    list_filter = ("action",)
    search_fields = ("username", "target")
    date_hierarchy = "at"
