"""Links by which a local account gets a new password: by mail, or handed over by an administrator.

A link holds a token that Django derives from the account's password and last sign-in: it ends when
it is used, when another password is set, at the next sign-in, and after PASSWORD_RESET_AGE.
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
    """Return True where people can have a link sent to them."""
    return bool(settings.LOCAL_ACCOUNTS and settings.EMAIL_URL and settings.PUBLIC_URL)


def may_reset(user: User) -> bool:
    """Return True for an open account whose password is of our own, or is to be the first one.

    A password here would outlive a directory's word for everybody else.
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
    """Compare as Unicode does: databases take more letters for the same."""
    first, second = (unicodedata.normalize("NFKC", text).casefold() for text in (one, other))
    return first == second


def link_for(user: User, *, site: str = "") -> str:
    """Return a new link; `site` is what it begins with where no public URL is set."""
    path = reverse(
        "account_reset_password_from_key",
        kwargs={
            "uidb36": user_pk_to_url_str(user),
            "key": default_token_generator.make_token(user),
        },
    )
    return (settings.PUBLIC_URL or site).rstrip("/") + path


def end_device_sign_ins(sender: Any, user: User, **kwargs: Any) -> None:
    """Let no command line collect a token that was approved under the former password."""
    DeviceSignIn.objects.filter(approved_by=user, collected_at=None).delete()
