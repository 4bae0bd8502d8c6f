"""API tokens of all users: list and revocation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from accounts.models import ApiToken
from condastore.admin_site import ConsoleGroup
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import ConfirmedAction
from environments.admin.display import badge, relative_time
from environments.admin.filters import date_range, presence_filter, text_filter
from environments.operations import tokens


def _revoke(actor: Actor, row: ApiToken, answers: Mapping[str, Any]) -> None:
    tokens.revoke_token(actor=actor, token_id=row.pk)


@admin.register(ApiToken)
class TokenAdmin(ReadOnlyAdmin):
    """API tokens. Only the digest of a token is stored: the token cannot be shown again."""

    title = "API tokens"
    console_group, console_position = ConsoleGroup.PEOPLE, 6
    list_display = ("name", "user", "role", "namespaces", "shown_state", "used")
    export_fields = (
        "name",
        "user",
        "role",
        "namespaces",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
        "last_used_address",
    )
    list_filter = (
        presence_filter("revoked", "state", "revoked_at", present="Revoked", absent="Not revoked"),
        "role",
        text_filter("user", "user", "user__username"),
        date_range("created_at", "creation"),
        date_range("last_used_at", "last use", prefix="used_"),
    )
    search_fields = ("name__startswith",)
    search_help_text = "Start of the token's name."
    ordering = ("-pk",)
    fields = (
        "name",
        "user",
        "hint",
        "role",
        "namespaces",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
        "last_used_address",
    )
    confirmed_actions = (
        ConfirmedAction(
            name="revoke",
            title="Revoke",
            text="Programs that use the token are signed out at once.",
            run=_revoke,
            applies_to=lambda row: row.revoked_at is None,
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("user")

    @admin.display(description="expires")
    def shown_state(self, token: ApiToken) -> object:
        return badge("revoked") if token.revoked_at else relative_time(token.expires_at)

    @admin.display(description="last used")
    def used(self, token: ApiToken) -> object:
        return relative_time(token.last_used_at) or "never"
