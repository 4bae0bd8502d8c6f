"""Authentication of the registry: short-lived signed tokens for one repository.

Docker's token flow: a request without a token is answered with the URL of the token service. There
an API token (as password of any user name) or an anonymous client gets a signed claim of identity
and scope that is valid for minutes. The claim saves a lookup and grants no rights: the statement
that finds a blob checks the API token, its user and their rights in the database, so a revoked
right or token ends with the next request.
"""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core import signing
from django.http import HttpRequest, JsonResponse
from django.utils import timezone

from accounts.access import Actor
from accounts.authentication import (
    TokenClaim,
    TokenInvalidError,
    actor_with_token,
    client_address,
    secret_in,
    usable_token,
)
from condastore.errors import NotSignedInError
from environments.operations.served_builds import Asking
from environments.registry.errors import ChallengeError, ScopeError

LIFE = 300  # seconds; clients assume at least 60
SALT = "condastore.registry"
CATALOG = "registry:catalog:*"
#: Characters of repository names; other faults of a name are not found.
NAME = re.compile(r"[a-z0-9._/-]{1,200}")
_SCOPES = re.compile(rf"(?:repository:{NAME.pattern}|registry:catalog):[a-z,*]{{1,60}}")
MOST_SCOPES = 20


def token_for(request: HttpRequest) -> JsonResponse:
    """Return the response of the token service.

    Raises:
        TokenInvalidError: the API token is invalid; it is never treated as anonymous.
    """
    given = request.POST if request.method == "POST" else request.GET
    address = client_address(request.META)
    secret = secret_in(request.headers.get("Authorization", ""))
    if secret is None and request.method == "POST":  # OAuth2, as docker does it after a login
        secret = given.get("password") or given.get("refresh_token")
    actor = actor_with_token(secret, address=address) if secret is not None else None
    requested = [scope for text in given.getlist("scope") for scope in text.split()]
    scopes = [scope for scope in requested if _SCOPES.fullmatch(scope)][:MOST_SCOPES]
    names = [scope.rpartition(":")[0] for scope in scopes]
    said: dict[str, Any] = {"token": 0, "for": names}
    if actor is not None and actor.token is not None:
        said |= {"token": actor.token.pk, "as": TokenClaim(actor).to_json()}
    signed = signing.dumps(said, key=settings.REGISTRY_KEY, salt=SALT)
    body: dict[str, Any] = {
        "token": signed,
        "access_token": signed,
        "expires_in": LIFE,
        "issued_at": f"{timezone.now():%Y-%m-%dT%H:%M:%SZ}",
    }
    answer = JsonResponse(body)
    answer["Cache-Control"] = "no-store"
    return answer


def actor_of(request: HttpRequest, scope: str = "") -> Actor:
    """Return the caller of `request`, with a token for `scope` (`repository:NAME:pull`).

    Raises:
        ChallengeError: a token for the scope is required.
    """
    try:
        actor = _actor(request, scope)
    except NotSignedInError as error:
        raise ChallengeError(
            error.message,
            hint=error.hint,
            scope=scope,
            insufficient=isinstance(error, ScopeError),
        ) from error
    request.actor = actor  # type: ignore[attr-defined]
    return actor


def asking(request: HttpRequest, scope: str) -> Asking | None:
    """Return the claim in the token of `request`, for a statement that proves it.

    Returns:
        None if it is not a registry token, has another scope, or expired: `actor_of` raises the
        error. The database is not used.
    """
    header = request.headers.get("Authorization", "")
    try:
        said = _said(header)
    except NotSignedInError:
        return None
    if said is None or scope.rpartition(":")[0] not in said["for"]:
        return None
    address = client_address(request.META)
    if not said["token"]:
        return Actor(AnonymousUser(), address=address)
    claimed = said.get("as")
    return TokenClaim.parse(claimed, key=said["token"], address=address) if claimed else None


def _actor(request: HttpRequest, scope: str) -> Actor:
    header = request.headers.get("Authorization", "")
    secret = secret_in(header)
    if secret is None:
        raise NotSignedInError("A token is required.")
    address = client_address(request.META)
    said = _said(header)
    if said is not None:
        return _known(said, scope, address)
    return actor_with_token(secret, address=address)


def _said(header: str) -> dict[str, Any] | None:
    """Parse a token of this service; None for other credentials.

    Raises:
        TokenInvalidError: it has expired.
    """
    if not header.lower().startswith("bearer "):
        return None
    try:
        said: dict[str, Any] = signing.loads(
            secret_in(header) or "",
            key=settings.REGISTRY_KEY,
            salt=SALT,
            max_age=LIFE,
            fallback_keys=list(settings.REGISTRY_KEY_FALLBACKS),
        )
    except signing.SignatureExpired:
        raise TokenInvalidError("The token has expired.") from None
    except signing.BadSignature:
        return None
    return said


def _known(said: dict[str, Any], scope: str, address: str) -> Actor:
    if scope and scope.rpartition(":")[0] not in said["for"]:
        raise ScopeError("The token has another scope.")
    if not said["token"]:
        return Actor(AnonymousUser(), address=address)
    token = usable_token(key=said["token"])
    if token is None:
        raise TokenInvalidError("The API token of this token is no longer valid.")
    return Actor(token.user, token=token, address=address)
