"""What mails about accounts say: links to new passwords are made when they are delivered."""

from __future__ import annotations

from django.conf import settings

from accounts.password_reset import accounts_of, link_for
from environments.models import Notification

#: Marks a message that becomes links when it is delivered: no link is ever stored.
RESET = "password_reset"
_LINKS = """Somebody at {asked_by} asked for a new password of your account.
If it was not you, do nothing: your password stays as it is.

{links}

A link works once, for {minutes} minutes. It ends all sign-ins of browsers. API tokens stay valid:
look through them (`condastore token list`) if somebody else may have known your password.
"""


def texts_of(message: Notification) -> dict[str, str]:
    """Return what is to be mailed, by address; nothing where no account has the one that was typed.

    Links go to the addresses that the accounts have, and not to what was typed.
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
