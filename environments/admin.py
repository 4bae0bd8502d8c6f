"""The operators' view of the rows: to look, search, and cancel by everybody's operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from accounts.roles import Role
from environments.domain.errors import StoreError
from environments.models import (
    AuditEvent,
    Build,
    BuildEvent,
    Channel,
    ChannelCredential,
    Environment,
    Leader,
    LockRow,
    Namespace,
    Preview,
    RoleMapping,
    Worker,
)
from environments.models.role_mappings import check_patterns
from environments.operations import audit, role_mappings
from environments.operations.builds import cancel_build

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
    _TabularInline = admin.TabularInline[Any, Any]
    _ModelForm = forms.ModelForm[Any]
else:  # generic for the type checker only
    _ModelAdmin, _TabularInline = admin.ModelAdmin, admin.TabularInline
    _ModelForm = forms.ModelForm


class ReadOnly:
    """For administrators of the installation, and only to look."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Rows(ReadOnly, _ModelAdmin):
    list_per_page = 50
    show_full_result_count = False  # counting a hundred thousand rows twice for nothing
    #: Columns that may be large, and that a list does not show.
    deferred: tuple[str, ...] = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer(*self.deferred)


class Listed(ReadOnly, _TabularInline):
    extra = 0


@admin.register(Namespace)
class NamespaceAdmin(Rows):
    list_display = ("name", "personal", "public", "created_at", "created_by")
    list_select_related = ("created_by",)
    list_filter = ("personal", "public")
    search_fields = ("name", "description")


class RoleMappingForm(_ModelForm):
    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        try:
            check_patterns(cleaned.get("group", ""), cleaned.get("namespace", ""))
        except StoreError as error:
            raise forms.ValidationError({error.where: f"{error.message} {error.hint}"}) from error
        return cleaned


@admin.register(RoleMapping)
class RoleMappingAdmin(Rows):
    """Added and removed; another pattern is another mapping."""

    form = RoleMappingForm
    fields = ("group", "namespace", "role")
    list_display = ("group", "role", "namespace", "created_by", "created_at")
    list_select_related = ("created_by",)
    list_filter = ("role",)
    search_fields = ("group", "namespace")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        made = role_mappings.add_role_mapping(
            actor=request.actor,  # type: ignore[attr-defined]
            group=obj.group,
            namespace=obj.namespace,
            role=Role(obj.role),
        )
        obj.pk = made.pk

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        role_mappings.remove_role_mapping(
            actor=request.actor,  # type: ignore[attr-defined]
            mapping=obj,
        )

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for mapping in queryset:
            self.delete_model(request, mapping)


@admin.register(Environment)
class EnvironmentAdmin(Rows):
    list_display = ("name", "namespace", "current_number", "pinned", "updated_at", "deleted_at")
    list_select_related = ("namespace", "current")
    list_filter = ("pinned",)
    search_fields = ("name", "namespace__name")
    deferred = ("current__source", "current__log_archive", "current__verdicts")

    @admin.display(description="current build")
    def current_number(self, environment: Environment) -> int | None:
        return environment.current.number if environment.current else None


class BuildEvents(Listed):
    model = BuildEvent


@admin.register(Build)
class BuildAdmin(Rows):
    list_display = ("place", "number", "state", "attempt", "requested_by", "created_at")
    list_select_related = ("environment__namespace", "requested_by")
    list_filter = ("state", "platform")
    search_fields = ("environment__name", "environment__namespace__name")
    deferred = ("log_archive",)
    exclude = ("log_archive", "idempotency_key")
    inlines = (BuildEvents,)
    actions = ("cancel_selected",)

    @admin.action(description="Cancel the selected builds")
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[Build]) -> None:
        refused = 0
        actor: Actor = request.actor  # type: ignore[attr-defined]
        for build in queryset.select_related("environment__namespace"):
            try:
                cancel_build(actor=actor, build=build)  # the same door as everyone
            except StoreError as error:
                refused += 1
                audit.refused_request(request, error)
                self.message_user(request, str(error), messages.WARNING)
        self.message_user(request, f"{len(queryset) - refused} cancelled, {refused} could not be.")

    @admin.display(description="environment")
    def place(self, build: Build) -> str:
        return str(build.environment)


@admin.register(LockRow)
class LockAdmin(Rows):
    list_display = ("digest", "package_count", "size", "created_at")
    search_fields = ("digest",)


@admin.register(Preview)
class PreviewAdmin(Rows):
    list_display = ("id", "namespace", "state", "requested_by", "created_at")
    list_select_related = ("namespace", "requested_by")
    list_filter = ("state",)


@admin.register(Channel)
class ChannelAdmin(Rows):
    list_display = ("url", "first_seen_at", "indexed_at")
    search_fields = ("url",)


@admin.register(ChannelCredential)
class CredentialAdmin(Rows):
    """The secrets themselves are never shown; a credential that is not needed can go."""

    list_display = ("url_prefix", "kind", "namespace", "created_at")
    list_select_related = ("namespace",)
    search_fields = ("url_prefix",)
    exclude = ("sealed",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request)


@admin.register(Worker)
class WorkerAdmin(Rows):
    list_display = ("name", "platform", "queues", "started_at", "expires_at")


@admin.register(Leader)
class LeaderAdmin(Rows):
    list_display = ("duty", "owner", "expires_at")


@admin.register(AuditEvent)
class AuditAdmin(Rows):
    list_display = ("at", "username", "action", "target", "refused", "address")
    list_filter = ("refused", "action")
    search_fields = ("username", "target")
    date_hierarchy = "at"
