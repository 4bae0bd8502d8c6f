"""Accounts for operators: people can be made and closed; tokens can be looked at and revoked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from django.contrib import admin
from django.contrib.admin.widgets import AutocompleteSelect
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from accounts.models import OWNER_LEFT, ApiToken, Identity, User

if TYPE_CHECKING:

    class _ModelAdmin(admin.ModelAdmin[ApiToken]):
        """Generic for the type checker only."""

    class _UserAdmin(DjangoUserAdmin[User]):
        """Likewise."""

    class _TabularInline(admin.TabularInline[Identity, User]):
        """Likewise."""

else:
    _ModelAdmin, _UserAdmin = admin.ModelAdmin, DjangoUserAdmin
    _TabularInline = admin.TabularInline


# They are empty: who someone is, is said by identities; providers are named by the settings.
for model in (EmailAddress, SocialAccount, SocialApp, SocialToken, Authenticator):
    if admin.site.is_registered(model):
        admin.site.unregister(model)


class Identities(_TabularInline):
    """Added by hand where a person's account is older than the directory's word for them."""

    model = Identity
    extra = 0
    readonly_fields = ("seen_at", "gone_at")


class OwnerLeft(admin.SimpleListFilter):
    title = "owner"
    parameter_name = "owner"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("left", "left: nobody answers for it")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(OWNER_LEFT) if self.value() == "left" else queryset


class OwnerSelect(AutocompleteSelect):
    """Shows a form again whose owner is no key: Django looks each value up, and fails."""

    def optgroups(self, name: str, value: Any, attrs: dict[str, Any] | None = None) -> Any:
        return super().optgroups(name, [one for one in value if str(one).isdecimal()], attrs)


@admin.register(User)
class UserAdmin(_UserAdmin):
    list_display = ("username", "email", "is_active", "is_superuser", "service", "last_login")
    list_select_related = ("owner",)
    list_filter = ("is_active", "is_superuser", "is_service", OwnerLeft, "groups")
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Rights", {"fields": ("is_active", "is_staff", "is_superuser", "groups")}),
        ("Service account", {"fields": ("is_service", "owner")}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    filter_horizontal = ("groups",)
    autocomplete_fields = ("owner",)
    inlines = (Identities,)
    actions = ("remove_second_factors",)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        if db_field.name == "owner":
            options["widget"] = OwnerSelect(db_field, self.admin_site)
        return super().formfield_for_foreignkey(db_field, request, **options)

    @admin.display(description="service account", ordering="is_service")
    def service(self, user: User) -> str:
        if not user.is_service:
            return ""
        owner = user.owner.username if user.owner else "nobody"
        return f"of {owner}: owner left" if user.owner_left else f"of {owner}"

    @admin.action(description="Remove second factors (lost devices)", permissions=["change"])
    def remove_second_factors(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        removed, _ = Authenticator.objects.filter(user__in=queryset).delete()
        for user in queryset:
            self.log_change(request, user, "removed the second factors")
        self.message_user(request, f"{removed} removed.")


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
