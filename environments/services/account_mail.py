"""Texts of mails about accounts. Links are created on delivery, so that no link is stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from accounts.models import User
from accounts.password_reset import accounts_of, link_for, may_reset
from condastore.mail_texts import text_of
from environments.models import Notification

#: Keys of a message's data. RESET: a person asked for a link; the others hold a user's key.
RESET = "password_reset"
INVITATION = "invitation"
#: Links are created on delivery, so that one that is delivered later than this is not sent.
LONGEST_DELAY = timedelta(days=1)
PASSWORD_LINK = "password_link"  # noqa: S105 - a key


def texts_of(message: Notification) -> dict[str, str]:
    """Return the text for each address; empty if no account may get a link.

    Links are sent to the addresses of accounts, not to what somebody typed.
    """
    data = message.content["data"]
    if data.get(RESET):
        return _reset(message.email, data.get("address") or "an unknown address")
    if key := data.get(INVITATION) or data.get(PASSWORD_LINK):
        user = User.objects.filter(pk=key).first()
        if user is None or not user.email or not may_reset(user):
            return {}
        if data.get(INVITATION) and user.last_login is not None:
            return {}  # the mail was delayed, and the account is in use by now
        if timezone.now() - message.created_at > LONGEST_DELAY:
            return {}
        name = "invitation" if data.get(INVITATION) else "password_link"
        context = {"user": user, "link": link_for(user), "inviter": data.get("inviter", "")}
        return {user.email: _text(name, context)}
    return {message.email: message.content["text"] or message.subject}


def _reset(email: str, address: str) -> dict[str, str]:
    """Return one mail for each address, with the links of all accounts that have it."""
    accounts: dict[str, list[tuple[str, str]]] = {}
    for user in accounts_of(email):
        accounts.setdefault(user.email, []).append((user.username, link_for(user)))
    return {
        own: _text("password_reset", {"address": address, "accounts": found})
        for own, found in accounts.items()
    }


def _text(name: str, context: dict[str, Any]) -> str:
    return text_of(name, **context, minutes=settings.PASSWORD_RESET_TIMEOUT // 60)
