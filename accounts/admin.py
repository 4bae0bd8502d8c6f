"""Accounts for operators: people can be made and closed; tokens can be looked at and revoked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.models import ApiToken, User

if TYPE_CHECKING:

    class _ModelAdmin(admin.ModelAdmin[ApiToken]):
        """Generic for the type checker only."""

    class _UserAdmin(DjangoUserAdmin[User]):
        """Likewise."""

else:
    _ModelAdmin, _UserAdmin = admin.ModelAdmin, DjangoUserAdmin


@admin.register(User)
class UserAdmin(_UserAdmin):
    list_display = ("username", "email", "is_active", "is_superuser", "is_service", "last_login")
    list_filter = ("is_active", "is_superuser", "is_service", "groups")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Rights", {"fields": ("is_active", "is_staff", "is_superuser", "groups")}),
        ("Service account", {"fields": ("is_service", "owner")}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    filter_horizontal = ("groups",)
    autocomplete_fields = ("owner",)


@admin.register(ApiToken)
class TokenAdmin(_ModelAdmin):
    """The secret is stored as its digest: nobody can show it again."""

    list_display = ("name", "user", "role", "expires_at", "last_used_at", "revoked_at")
    list_select_related = ("user",)
    list_filter = ("role",)
    search_fields = ("name", "user__username")
    actions = ("revoke",)
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    @admin.action(description="Revoke the selected tokens", permissions=["revoke"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        revoked = queryset.filter(revoked_at=None).update(revoked_at=timezone.now())
        for token in queryset:
            self.log_change(request, token, "revoked")
        self.message_user(request, f"{revoked} revoked.")
