"""A person's API tokens: create, show once, revoke."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from accounts.access import Actor
from accounts.models import ApiToken
from accounts.roles import Role
from condastore.errors import InvalidInputError, NotFoundError, StoreError
from environments.console.responses import ERROR_PAGES, act, actor_of, text_of
from environments.operations.tokens import NewToken, create_token, revoke_token, tokens_of

#: Validity that the form offers, in days.
VALIDITIES = (7, 30, 90, 180, 365)
ROLES = {
    "": ("All my rights", "acts exactly as you"),
    Role.VIEWER.value: ("View and download", "for scripts and machines that only read"),
    Role.DEVELOPER.value: ("Build", "also creates environments and builds"),
}


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def tokens(request: HttpRequest) -> HttpResponse:
    """List the tokens, and create one; its secret is in the answer to the form only."""
    actor = actor_of(request)
    created, wrong = None, ""
    if request.method == "POST":
        try:
            created = _create(actor, request)
        except ERROR_PAGES as error:
            if not isinstance(error, NotFoundError):
                raise
            wrong = text_of(error)
        except StoreError as error:
            wrong = text_of(error)
    now = timezone.now()
    context = {
        "tokens": tokens_of(actor).filter(revoked_at=None).select_related("user"),
        "now": now,
        "created": created,
        "wrong": wrong,
        "form": request.POST if wrong else {"days": "90", "role": ""},
        "roles": ROLES,
        "validities": [days for days in VALIDITIES if days <= settings.TOKEN_MAX_AGE.days],
        "address": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "account/tokens.html", context, status=400 if wrong else None)


def _create(actor: Actor, request: HttpRequest) -> NewToken:
    role, days = request.POST.get("role", ""), request.POST.get("days", "")
    if role not in ROLES:
        raise InvalidInputError("Choose one of the listed rights.", where="role")
    if not (days.isascii() and days.isdecimal() and len(days) < 6):
        raise InvalidInputError("Choose how many days the token is valid.", where="days")
    return create_token(
        actor=actor,
        name=request.POST.get("name", "").strip(),
        role=Role(role) if role else None,
        namespaces=request.POST.get("namespaces", "").replace(",", " ").split(),
        days=int(days),
    )


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def revoke(request: HttpRequest, key: int) -> HttpResponse:
    """Show what stops working, and revoke the token."""
    actor = actor_of(request)
    token: ApiToken | None = tokens_of(actor).filter(pk=min(key, 2**62), revoked_at=None).first()
    if token is None:
        raise NotFoundError("There is no such token.")
    back = reverse("tokens")
    if request.method == "POST":
        return act(
            request,
            lambda: revoke_token(actor=actor, token_id=token.pk),
            done=f"The token {token.name} is revoked.",
            then=back,
        )
    context: dict[str, Any] = {"token": token, "back": back}
    return render(request, "account/token_revoke.html", context)
