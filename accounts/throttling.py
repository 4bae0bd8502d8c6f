"""Rate limits of failed passwords that do not lock out the owner of an account.

Attempts are counted by address, by account and address, and by account from all unknown
addresses. A browser (device cookie, as described by OWASP) or an address from which the account
signed in before is known; known devices have a limit of their own, so that guesses of others do not
affect them.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core import signing
from django.core.cache import cache
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from accounts._private import ratelimit
from accounts.authentication import client_address

APP = "condastore.sign-in"
#: Maximum accounts by which a browser is known; the oldest is dropped.
_MOST_NAMES = 5
#: Seconds for which a browser or an address stays known after a sign-in.
_DEVICE_LIFE = 31_536_000
_ADDRESS_LIFE = 2_592_000
_SALT = "condastore.device"


class Attempt:
    """A counted attempt; `undo` it if the password was right."""

    def __init__(self) -> None:
        self._usages: list[ratelimit.RateLimitUsage] = []

    def count(self, request: HttpRequest, what: str, rate: str, key: str = "") -> bool:
        """Count one attempt; return False, and count nothing, if `rate` is exceeded."""
        usage = ratelimit.consume(
            request, app=APP, action=what, config={what: rate}, key=key, limit_get=True
        )
        if usage is None:
            self.undo()
            return False
        self._usages.append(usage)
        return True

    def undo(self) -> None:
        for usage in self._usages:
            usage.rollback()
        self._usages.clear()


def begin(request: HttpRequest, login: str) -> Attempt | None:
    """Count an attempt to sign in as `login`; None if there were too many."""
    name, known, address = canonical(login), _known_name(login), client_address(request.META)
    limits: Mapping[str, str] = settings.SIGN_IN_LIMITS
    attempt = Attempt()
    if device := _devices(request).get(known):
        return attempt if attempt.count(request, "device", limits["device"], device) else None
    if not attempt.count(request, "address", limits["address"]):
        return None
    if not attempt.count(request, "pair", limits["pair"], f"{name}\n{ratelimit.get_ip(request)}"):
        return None
    if not _knows_address(known, address):
        return attempt if attempt.count(request, "account", limits["account"], name) else None
    return attempt


def begin_bind(request: HttpRequest | None, login: str) -> Attempt | None:
    """Count a password that is checked by the directory, whose own limit would lock the account.

    Attempts from known devices and addresses are not counted.
    """
    name, attempt = canonical(login), Attempt()
    rate = settings.SIGN_IN_LIMITS["directory"]
    if request is None or not rate:
        return attempt
    known = _known_name(login)
    if _devices(request).get(known) or _knows_address(known, client_address(request.META)):
        return attempt
    return attempt if attempt.count(request, "directory", rate, name) else None


def canonical(login: str) -> str:
    """Return a canonical form of names that a directory may treat as equal."""
    return unicodedata.normalize("NFKC", login[:1000]).strip().casefold()


def exceeded(request: HttpRequest, *, action: str, rate: str) -> bool:
    """Count one request of a kind other than sign-in; return True if `rate` is exceeded.

    Args:
        rate: as in allauth's settings, such as `30/m/ip` or `20/m/user`.
    """
    usage = ratelimit.consume(
        request,
        app="condastore",
        action=action,
        config={action: rate},
        user=request.user,
        limit_get=True,
    )
    return usage is None


# --- known devices --------------------------------------------------------------------------------


def succeeded(request: HttpRequest, login: str) -> None:
    """Mark the address as known after a successful sign-in."""
    cache.set(_address_key(_known_name(login), client_address(request.META)), True, _ADDRESS_LIFE)


def remember_device(request: HttpRequest, response: HttpResponseBase, username: str) -> None:
    """Set the device cookie for `username`."""
    name = _known_name(username)
    devices = {name: secrets.token_urlsafe(16)} | _devices(request)
    retained = [name, *(other for other in devices if other != name)][:_MOST_NAMES]
    response.set_cookie(
        settings.DEVICE_COOKIE_NAME,
        signing.dumps({one: devices[one] for one in retained}, salt=_SALT),
        max_age=_DEVICE_LIFE,
        secure=settings.SECURE_COOKIES,
        httponly=True,
        samesite="Lax",
    )


def _known_name(login: str) -> str:
    """Return the account name for known devices.

    `canonical` would fold `straße` and `strasse` into one name.
    """
    return login[:1000].strip().lower()


def _devices(request: HttpRequest) -> dict[str, str]:
    """Return the keys in the device cookie by account name."""
    try:
        found: Any = signing.loads(
            request.COOKIES.get(settings.DEVICE_COOKIE_NAME, ""), salt=_SALT, max_age=_DEVICE_LIFE
        )
    except signing.BadSignature:
        return {}
    return found if isinstance(found, dict) else {}


def _knows_address(name: str, address: str) -> bool:
    return bool(address) and cache.get(_address_key(name, address)) is not None


def _address_key(name: str, address: str) -> str:
    digest = hashlib.sha256(f"{name}\n{address}".encode()).hexdigest()
    return f"{APP}:known:{digest}"
