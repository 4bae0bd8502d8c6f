"""Texts of account mails; password reset links are generated at delivery and never stored."""

from __future__ import annotations

from django.conf import settings

from accounts.password_reset import accounts_of, link_for
from environments.models import Notification

#: Key of `Notification.data` for a message whose links are generated when it is delivered.
RESET = "password_reset"
_LINKS = """Somebody at {asked_by} requested a new password for your account.
If it was not you, do nothing: your password stays as it is.

{links}

Each link works once, for {minutes} minutes. Setting a password ends all browser sessions. API
tokens stay valid: review them (`condastore token list`) if somebody else may have known your
password.
"""


def texts_of(message: Notification) -> dict[str, str]:
    """Return the texts to mail, by address; empty if no account has the address that was entered.

    Links go to the addresses stored for the accounts, never to the entered text.
    """
    data = message.content["data"]
    if not data.get(RESET):
        return {message.email: message.content["text"] or message.subject}
    links: dict[str, list[str]] = {}
    for user in accounts_of(message.email):
        links.setdefault(user.email, []).append(f"{user.username}: {link_for(user)}")
    asked_by = data.get("address") or "an unknown address"
    minutes = settings.PASSWORD_RESET_TIMEOUT // 60
    return {
        address: _LINKS.format(asked_by=asked_by, links="\n\n".join(lines), minutes=minutes)
        for address, lines in links.items()
    }
