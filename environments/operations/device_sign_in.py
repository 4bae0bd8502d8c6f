"""Device authorization (RFC 8628) of the command line, approved in the browser.

Implemented here instead of using each identity provider's flow: it works the same with passwords,
LDAP, OpenID Connect and SAML and any second factor, and the command line gets an API token that is
named, expires and can be revoked.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.access import Actor
from accounts.models import DeviceSignIn, token_digest
from condastore.errors import AccessDeniedError, NotFoundError
from environments.domain.names import parse_name
from environments.models import AuditEvent
from environments.operations import tokens
from environments.operations.tokens import NewToken

LIFE = timedelta(minutes=10)
INTERVAL = timedelta(seconds=3)  # polling interval of the command line
#: Letters that cannot be confused, without vowels so that no words appear.
ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """`device_code` is the secret of the command line; `user_code` is shown to the person."""

    device_code: str
    user_code: str


class NotYetError(Exception):
    """No token is available; `code` is the RFC 8628 error code."""

    PENDING: ClassVar[str] = "authorization_pending"
    SLOW: ClassVar[str] = "slow_down"
    DENIED: ClassVar[str] = "access_denied"
    EXPIRED: ClassVar[str] = "expired_token"

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def start(*, actor: Actor, name: str) -> Started:
    """Start a request; anybody may, and nothing happens until a signed-in person approves."""
    name = parse_name(name, what="token")
    now = timezone.now()
    DeviceSignIn.objects.filter(expires_at__lt=now - timedelta(hours=1)).delete()
    secret = secrets.token_urlsafe(32)
    while True:
        letters = "".join(secrets.choice(ALPHABET) for _ in range(8))
        try:
            with transaction.atomic():
                created = DeviceSignIn.objects.create(
                    digest=token_digest(secret),
                    user_code=f"{letters[:4]}-{letters[4:]}",
                    name=name,
                    address=actor.address,
                    expires_at=now + LIFE,
                )
        except IntegrityError:  # the same user code was drawn; there are 20^8
            continue
        return Started(device_code=secret, user_code=created.user_code)


def find(*, actor: Actor, user_code: str) -> DeviceSignIn:
    """Raises NotFoundError, also for expired or decided requests."""
    _require_person(actor)
    letters = "".join(letter for letter in user_code.upper() if letter in ALPHABET)
    code = f"{letters[:4]}-{letters[4:]}"
    found = DeviceSignIn.objects.open().filter(user_code=code).first()
    if found is None:
        raise NotFoundError(
            "No sign-in request has this code.",
            hint="Codes expire after ten minutes: run `condastore login` again.",
        )
    return found


@transaction.atomic
def decide(*, actor: Actor, request: DeviceSignIn, approve: bool) -> None:
    """Approve with a token of the actor, or deny."""
    _require_person(actor)
    change = {"approved_by": actor.account} if approve else {"denied_at": timezone.now()}
    if not DeviceSignIn.objects.open().filter(pk=request.pk).update(**change):
        raise NotFoundError("This code was already used or has expired.")
    reported = {"name": request.name, "address": request.address}
    action = "device.approve" if approve else "device.deny"
    AuditEvent.record(actor, action, actor.account.username, reported)


@transaction.atomic
def collect(*, device_code: str, address: str) -> NewToken:
    """Return the token, once.

    Raises:
        NotYetError: pending, denied, expired or already collected.
    """
    waiting = DeviceSignIn.objects.select_related("approved_by")
    found = waiting.filter(digest=token_digest(device_code), collected_at=None).first()
    now = timezone.now()
    if found is None or found.expires_at <= now:
        raise NotYetError(NotYetError.EXPIRED)
    if found.denied_at is not None:
        raise NotYetError(NotYetError.DENIED)
    if found.approved_by is None:
        soon = found.asked_at is not None and now - found.asked_at < INTERVAL / 2
        DeviceSignIn.objects.filter(pk=found.pk).update(asked_at=now)
        raise NotYetError(NotYetError.SLOW if soon else NotYetError.PENDING)
    mine = DeviceSignIn.objects.filter(pk=found.pk, collected_at=None)
    if not found.approved_by.may_act or not mine.update(collected_at=now):
        raise NotYetError(NotYetError.EXPIRED)
    return tokens.create_token(actor=Actor(found.approved_by, address=address), name=found.name)


def _require_person(actor: Actor) -> None:
    """Refuse tokens: a token must not create one with more permissions; only a session approves."""
    _ = actor.account
    if actor.token is not None:
        raise AccessDeniedError("Approve the sign-in of a command line in a browser session.")
