"""Links that set the password of a local account, sent by mail or handed over by an administrator.

A link contains a token that Django derives from the account's password and last sign-in. It becomes
invalid when it is used, when another password is set, at the next sign-in, and after
PASSWORD_RESET_AGE.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from allauth.account.utils import user_pk_to_url_str
from django.conf import settings
from django.contrib.auth.tokens import default_token_generator
from django.urls import reverse

from accounts.models import DeviceSignIn, User


def by_mail() -> bool:
    """Return True if the server can send links by mail."""
    return bool(settings.LOCAL_ACCOUNTS and settings.EMAIL_URL and settings.PUBLIC_URL)


def may_reset(user: User) -> bool:
    """Return True for an open local account, with or without a password.

    For accounts of a directory a local password would stay valid after the directory ends them.
    """
    if not settings.LOCAL_ACCOUNTS or not user.is_active or user.is_service:
        return False
    if user.identities.present().exists():
        return False
    return user.has_usable_password() or not user.identities.exists()


def accounts_of(email: str) -> Sequence[User]:
    """Return the accounts with this address that may get a link, compared without letter case."""
    if not email:
        return []
    found = User.objects.filter(email__iexact=email, is_active=True).order_by("pk")
    return [user for user in found if _same(user.email, email) and may_reset(user)]


def _same(one: str, other: str) -> bool:
    """Compare by Unicode case folding: databases treat more letters as equal."""
    first, second = (unicodedata.normalize("NFKC", text).casefold() for text in (one, other))
    return first == second


def link_for(user: User, *, site: str = "") -> str:
    """Return a new link; it starts with `site` if no public URL is configured."""
    path = reverse(
        "account_reset_password_from_key",
        kwargs={
            "uidb36": user_pk_to_url_str(user),
            "key": default_token_generator.make_token(user),
        },
    )
    return (settings.PUBLIC_URL or site).rstrip("/") + path


def end_device_sign_ins(sender: Any, user: User, **kwargs: Any) -> None:
    """Delete device sign-ins that were approved under the former password."""
    DeviceSignIn.objects.filter(approved_by=user, collected_at=None).delete()
