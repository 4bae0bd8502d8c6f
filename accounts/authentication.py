"""Session and token sign-in: every request gets `request.actor`."""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.base import SessionBase
from django.db.models import Exists, QuerySet, TextField
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect, JsonResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.module_loading import import_string

from accounts._private import exempt_from_csrf, ratelimit
from accounts.access import ANONYMOUS, Actor
from accounts.models import ApiToken, User, token_digest
from accounts.sign_in import SecondFactorError, TooManyAttemptsError, lacks_second_factor
from accounts.signals import token_moved, token_refused
from condastore.errors import NotSignedInError
from condastore.statements import KEY, MOMENT, Lookup, word

#: Placeholder of the key of a token (condastore.statements).
TOKEN_KEY = KEY + 1
#: Minimum interval between two updates of the last use of a token.
LAST_USE_RESOLUTION = timedelta(minutes=1)
#: Paths with a token, as conda clients send them: `/t/<token>/channel/...`.
_TOKEN_IN_PATH = re.compile(r"/t/([^/]+)(/channel/.*)")
#: Prefix of the routes of SCIM.
PROVISIONING = "/scim/"
#: Prefix of the container registry, whose tokens are signed for one repository.
REGISTRY = "/v2/"


class TokenInvalidError(NotSignedInError):
    code = "token-invalid"
    hint = "The token is unknown, expired or revoked: create a new one and sign in with it."


def client_address(meta: dict[str, Any]) -> str:
    """Return the address of the caller; forwarded headers count only behind a configured proxy."""
    return address_of(str(meta.get("REMOTE_ADDR") or ""), meta.get("HTTP_X_FORWARDED_FOR") or "")


def address_of(peer: str, forwarded: str) -> str:
    """Return the address of the client of a connection.

    Args:
        peer: address of the connection.
        forwarded: the values of X-Forwarded-For, joined by commas. Only its end was written by
            configured proxies; the rest is written by the client.
    """
    if not settings.BEHIND_PROXY or not forwarded:
        return peer
    found = None
    for text in reversed(forwarded.split(",")):
        address = _parsed_address(text)
        if address is None:
            break
        found = address
        if not any(address in network for network in _trusted_proxies()):
            break
    return str(found) if found is not None else peer


def _parsed_address(text: str) -> IPv4Address | IPv6Address | None:
    """Parse an address of X-Forwarded-For, which some proxies write with a port."""
    text = text.strip()
    if found := re.fullmatch(r"\[([^\]]+)\](?::\d+)?|(\d+(?:\.\d+){3}):\d+", text):
        text = found[1] or found[2]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _trusted_proxies() -> list[IPv4Network | IPv6Network]:
    return [ip_network(text, strict=False) for text in settings.TRUSTED_PROXIES]


def secret_in(authorization: str) -> str | None:
    """Return the token of an Authorization header: `Bearer`, `token`, or the `Basic` password."""
    kind, _, value = authorization.partition(" ")
    match kind.lower():
        case "bearer" | "token":
            return value.strip()
        case "basic":
            try:
                return base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                raise TokenInvalidError("The Authorization header cannot be read.") from None
        case _:
            return None


def actor_with_token(secret: str, *, address: str = "") -> Actor:
    """Return the valid token with its user.

    Raises:
        TokenInvalidError: it is unknown, expired or revoked.
    """
    token = usable_token(digest=token_digest(secret))
    if token is None:
        known = ApiToken.objects.with_secret(secret).select_related("user").first()
        token_refused.send(ApiToken, address=address, token=known)
        raise TokenInvalidError("The API token is not valid.")
    actor = Actor(token.user, token=token, address=address)
    now = timezone.now()
    fresh = token.last_used_at and now - token.last_used_at < LAST_USE_RESOLUTION
    if not fresh or token.last_used_address != (address or None):
        if token.last_used_address != (address or None):
            token_moved.send(ApiToken, actor=actor)
        token.used(at=now, address=address or None)
    return actor


_TOKEN_LOOKUP: Lookup[ApiToken] = Lookup(
    ApiToken,
    own=[field.attname for field in ApiToken._meta.concrete_fields],
    user=[field.attname for field in User._meta.concrete_fields],
)


def usable_token(*, digest: str = "", key: int | None = None) -> ApiToken | None:
    """Return the valid token with this digest, or this key, and its user; else None."""

    def build() -> QuerySet[ApiToken]:
        rows = ApiToken.objects.usable(now=MOMENT).order_by()
        return rows.filter(digest=word("digest")) if digest else rows.filter(pk=KEY)

    return _TOKEN_LOOKUP.first(
        ("token", bool(digest), *_switches()),
        build,
        {word("digest"): digest, KEY: key, MOMENT: timezone.now()},
    )


@dataclass(frozen=True, slots=True)
class TokenClaim:
    """Claim of a signed registry token about an API token and its user, as of the signature.

    A statement that runs for `actor` must include `proof`, which checks the claim against the
    database. Nothing else may be done as `actor`.
    """

    actor: Actor

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """Key of the text of a statement with `proof`."""
        return "claim", self.actor.user.is_superuser, *_switches()

    def proof(self) -> Exists:
        """Condition, with placeholders, that token and user are still valid and unchanged."""
        user = {
            "user": KEY,
            "user__username": word("username"),
            "user__is_superuser": self.actor.user.is_superuser,
        }
        rows = ApiToken.objects.usable(now=MOMENT).order_by()
        rows = rows.alias(limits=Cast("namespaces", TextField()))
        limits = {"role": word("role"), "limits": word("limits")}
        return Exists(rows.filter(pk=TOKEN_KEY, **user, **limits))

    def values(self) -> dict[Any, Any]:
        """Return the values of the placeholders of `proof`, except KEY."""
        token = self.actor.token
        assert token is not None, "the claim has a token"
        return {
            TOKEN_KEY: token.pk,
            MOMENT: timezone.now(),
            word("username"): self.actor.name,
            word("role"): token.role,
            word("limits"): json.dumps(token.namespaces),  # in the format of the databases
        }

    def to_json(self) -> dict[str, Any]:
        token, account = self.actor.token, self.actor.account
        assert token is not None, "the claim has a token"
        return {
            "user": account.pk,
            "name": account.username,
            "super": account.is_superuser,
            "role": token.role,
            "namespaces": token.namespaces,
        }

    @classmethod
    def parse(cls, said: Mapping[str, Any], *, key: int, address: str) -> TokenClaim:
        """Parse `to_json` of a signed claim.

        Args:
            key: primary key of the token.
        """
        user = User(
            pk=said["user"], username=said["name"], is_superuser=said["super"], is_active=True
        )
        token = ApiToken(pk=key, user=user, role=said["role"], namespaces=said["namespaces"])
        return cls(Actor(user, token=token, address=address))


def _switches() -> tuple[bool, bool]:
    """Return the settings that decide which accounts may use tokens."""
    return settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS, settings.LOCAL_ACCOUNTS


def actor_of(request: HttpRequest) -> Actor:
    """Return the caller of `request`, by its token if it has one, else by session."""
    address = client_address(request.META)
    if (header := request.headers.get("Authorization")) and (secret := secret_in(header)):
        return actor_with_token(secret, address=address)
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return Actor(AnonymousUser(), address=address)
    return Actor(user, address=address, session=request.session.session_key or "")


def actor_with_session(key: str, *, address: str = "") -> Actor:
    """Return the actor of the session `key`; nobody if it ended or needs a second factor."""
    store: type[SessionBase] = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
    request = HttpRequest()
    request.session = store(key)
    request.user = get_user(request)
    if not request.user.is_authenticated or lacks_second_factor(request):
        return Actor(AnonymousUser(), address=address)
    return Actor(request.user, address=address, session=key)


# --- sign-ins of connections that stay open -------------------------------------------------------

#: Seconds between two checks of one connection's sign-in.
CHECK_INTERVAL = 2.0
#: Seconds for which a result is reused by connections with the same token or session.
_ANSWER_LIFE = 1.0
_MOST_ANSWERS = 1000


class SignInEndedError(NotSignedInError):
    """The session has expired, was signed out, or its password or account has changed."""

    hint = "Sign in again."


#: (time of the lookup, result) by digest of the token or key of the session.
_answers: dict[str, tuple[float, Actor | NotSignedInError]] = {}


def renewed(actor: Actor) -> Actor:
    """Return the actor with the current rights of token and account.

    Raises:
        TokenInvalidError: the token was revoked or has expired, or the account was closed.
        SignInEndedError: the session has ended or no longer belongs to the account.
    """
    if not isinstance(actor.user, User):
        return actor
    if actor.token is None and not actor.session:
        return _looked_up(actor)
    key = actor.token.digest if actor.token is not None else actor.session
    now = time.monotonic()
    known = _answers.get(key)
    if known is None or now - known[0] > _ANSWER_LIFE:
        if len(_answers) >= _MOST_ANSWERS:
            _answers.clear()
        try:
            known = (now, _looked_up(actor))
        except NotSignedInError as error:
            known = (now, error)
        _answers[key] = known
    found = known[1]
    if isinstance(found, NotSignedInError):
        raise type(found)(found.message)
    return replace(found, address=actor.address)


def _looked_up(actor: Actor) -> Actor:
    if actor.token is not None:
        token = usable_token(key=actor.token.pk)
        if token is None:
            raise TokenInvalidError("The API token is no longer valid.")
        return Actor(token.user, token=token)
    if actor.session:
        found = actor_with_session(actor.session)
    else:
        user = User.objects.filter(pk=actor.account.pk, is_active=True).first()
        found = replace(actor, user=user or AnonymousUser())
    if found.user != actor.user:
        raise SignInEndedError("The sign-in has ended.")
    return found


def directory_of(request: HttpRequest) -> Actor:
    """Return the directory that sends `request` to the SCIM routes, by the token of the settings.

    Sessions and API tokens are ignored on these routes.

    Raises:
        TokenInvalidError: the token is missing or wrong.
        TooManyAttemptsError: too many failed attempts from its address.
    """

    address = client_address(request.META)
    limit: dict[str, Any] = {
        "app": "provisioning",
        "action": "failed",
        "config": {"failed": settings.SCIM_FAILURES},
        "limit_get": True,
    }
    if ratelimit.consume(request, **limit, dry_run=True) is None:
        raise TooManyAttemptsError("Too many attempts with wrong tokens.")
    secret = secret_in(request.headers.get("Authorization", "")) or ""
    if settings.SCIM is None or not settings.SCIM.admits(secret):
        ratelimit.consume(request, **limit)
        token_refused.send(ApiToken, address=address, token=None)
        raise TokenInvalidError("This is not the SCIM token.", hint="It is CONDASTORE_SCIM_TOKEN.")
    return Actor(AnonymousUser(), address=address, directory=settings.SCIM.directory)


class ActorMiddleware:
    """Set `request.actor`; an invalid token is answered with 401, never treated as signed out."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._asynchronous = iscoroutinefunction(get_response)
        if self._asynchronous:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._asynchronous:
            return self._acall(request)
        refused = self._identify(request)
        answer: HttpResponseBase = refused or self.get_response(request)
        return answer

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        refused = await sync_to_async(self._identify)(request)
        answer: HttpResponseBase = refused or await self.get_response(request)
        return answer

    def _identify(self, request: HttpRequest) -> HttpResponseBase | None:
        request.actor = ANONYMOUS  # type: ignore[attr-defined]
        _take_token_out_of_path(request)
        if request.path_info.startswith((PROVISIONING, REGISTRY)):
            return None  # see `directory_of` and registry/sign_in.py
        try:
            actor = actor_of(request)
            if actor.token is None and lacks_second_factor(request):
                return _to_second_factor(request)
        except NotSignedInError as error:
            body = {
                "title": "Unauthorized",
                "status": 401,
                "code": error.code,
                "detail": error.message,
                "where": error.where,
                "hint": error.hint,
                "details": dict(error.details),
            }
            answer = JsonResponse(body, status=401, content_type="application/problem+json")
            answer["WWW-Authenticate"] = 'Bearer realm="condastore"'
            return answer
        request.actor = actor  # type: ignore[attr-defined]
        if actor.token is not None:
            # Views that use `request.user` need a session: the admin, account pages.
            # They would ignore the limits of a token.
            request.user = AnonymousUser()
            # Browsers never send tokens on their own, so CSRF does not apply.
            exempt_from_csrf(request)
        return None


def _take_token_out_of_path(request: HttpRequest) -> None:
    """Move a token from the path to the header, before the path is logged or resolved."""
    if found := _TOKEN_IN_PATH.fullmatch(request.path_info):
        request.META["HTTP_AUTHORIZATION"] = f"Bearer {found[1]}"
        request.__dict__.pop("headers", None)  # cached from META
        request.path_info = found[2]
        request.path = request.META.get("SCRIPT_NAME", "").rstrip("/") + found[2]


def _to_second_factor(request: HttpRequest) -> HttpResponseBase | None:
    """Restrict administrators without a required second factor to the pages that set it up."""
    if request.path_info.startswith(("/accounts/", "/logout/", settings.STATIC_URL)):
        return None
    if request.method == "GET" and request.accepts("text/html"):
        return HttpResponseRedirect(reverse("mfa_index"))
    raise SecondFactorError("Administrators set up a second factor first.")
