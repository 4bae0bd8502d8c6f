"""Sign-in of programs: available methods, by password, by approval in the browser."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_POST, require_safe

from accounts.access import Actor
from accounts.authentication import client_address
from accounts.sign_in import TooManyAttemptsError, with_password
from accounts.throttling import exceeded
from condastore.errors import InvalidInputError
from environments.domain.json_text import json_object
from environments.operations import device_sign_in, tokens
from environments.operations.device_sign_in import INTERVAL, LIFE, NotYetError
from environments.operations.tokens import NewToken

#: Rate limit of new device sign-ins from one address.
STARTS = "30/m/ip"


@require_safe
def ways(request: HttpRequest) -> JsonResponse:
    """Return the available sign-in methods and the default."""
    single_sign_on = bool(settings.SIGN_IN_PROVIDERS)
    password = settings.LOCAL_ACCOUNTS or bool(settings.LDAP["url"])
    preferred = "browser" if single_sign_on or not password else "password"
    return JsonResponse({"password": password, "browser": True, "preferred": preferred})


@csrf_exempt  # authenticated by password, never by cookie, so CSRF does not apply
@require_POST
@sensitive_variables("body", "password")
def sign_in(request: HttpRequest) -> JsonResponse:
    """Create a token by password: `{username, password, name?}` -> {token, expires_at, name}."""
    body = _body(request)
    username, password = (_text(body, key) for key in ("username", "password"))
    user = with_password(request, username=username, password=password)
    created = tokens.create_token(
        actor=Actor(user, address=client_address(request.META)),
        name=_text(body, "name", f"sign-in-{secrets.token_hex(4)}"),
    )
    return _made(created)


@csrf_exempt  # unauthenticated, and only creates a code
@require_POST
def start_device(request: HttpRequest) -> JsonResponse:
    """Start a device sign-in (RFC 8628): `{name?}` -> codes and the URL to enter them."""
    body = _body(request)
    if exceeded(request, action="device", rate=STARTS):
        raise TooManyAttemptsError("Too many command lines are waiting for approval.")
    started = device_sign_in.start(
        actor=Actor(request.user, address=client_address(request.META)),
        name=_text(body, "name", f"sign-in-{secrets.token_hex(4)}"),
    )
    page = settings.PUBLIC_URL.rstrip("/") + reverse("device")
    page = page if settings.PUBLIC_URL else request.build_absolute_uri(reverse("device"))
    return JsonResponse(
        {
            "device_code": started.device_code,
            "user_code": started.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?{urlencode({'code': started.user_code})}",
            "expires_in": int(LIFE.total_seconds()),
            "interval": int(INTERVAL.total_seconds()),
        }
    )


@csrf_exempt  # authenticated by a secret, never by cookie, so CSRF does not apply
@require_POST
@sensitive_variables("body")
def collect_device(request: HttpRequest) -> JsonResponse:
    """Poll a device sign-in: {device_code} -> {token, expires_at, name}, or 400 with `error`."""
    body = _body(request)
    try:
        created = device_sign_in.collect(
            device_code=_text(body, "device_code"), address=client_address(request.META)
        )
    except NotYetError as why:
        return JsonResponse({"error": why.code}, status=HTTPStatus.BAD_REQUEST)
    return _made(created)


def _made(made: NewToken) -> JsonResponse:
    left = made.token.expires_at - timezone.now()
    answer = JsonResponse(
        {
            "token": made.secret,
            "access_token": made.secret,
            "token_type": "Bearer",
            "expires_in": int(left.total_seconds()),
            "name": made.token.name,
            "expires_at": made.token.expires_at.isoformat(),
        },
        status=HTTPStatus.CREATED,
    )
    answer["Cache-Control"] = "no-store"
    return answer


def _body(request: HttpRequest) -> dict[str, Any]:
    return json_object(request.body, hint='Send {"username": "...", "password": "..."}.')


def _text(body: dict[str, Any], key: str, default: str | None = None) -> str:
    value = body.get(key) or default
    if not isinstance(value, str) or "\0" in value or len(value) > 4096:
        raise InvalidInputError(f"{key} must be a text.", where=key)
    return value
