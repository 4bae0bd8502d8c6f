"""The operators' view of accounts and tokens."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.http import HttpRequest

from accounts.models import ApiToken, User


@admin.register(User)
class AccountAdmin(UserAdmin):  # type: ignore[type-arg]
    list_display = ("username", "email", "is_active", "is_superuser", "is_service", "last_login")
    list_filter = ("is_active", "is_superuser", "is_service", "groups")
    fieldsets = (
        *(UserAdmin.fieldsets or ()),
        ("Service account", {"fields": ("is_service", "owner")}),
    )
    raw_id_fields = ("owner",)


@admin.register(ApiToken)
class ApiTokenAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To look at: tokens are made and revoked at the API, where the secret is shown once."""

    list_display = ("name", "user", "hint", "role", "expires_at", "revoked_at", "last_used_at")
    list_select_related = ("user",)
    list_filter = ("role", "revoked_at")
    search_fields = ("name", "user__username", "hint")
    date_hierarchy = "created_at"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
