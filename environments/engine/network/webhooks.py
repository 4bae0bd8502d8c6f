"""How does a message reach a webhook: signed, to a public address, and never by way of another?

Source: Standard Webhooks (standardwebhooks.com), version 1.0.0.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from urllib.parse import urlsplit

import httpx
from standardwebhooks.webhooks import Webhook

from condastore.errors import AddressRefusedError, InvalidInputError, RequestError, UnavailableError
from environments.engine.network import clients
from environments.engine.network.addresses import Guard


class WebhookRefusedError(RequestError):
    """The webhook leads where nothing is sent; another attempt would fail alike."""

    code = "webhook-refused"
    hint = "Give an address on the public internet, or ask an administrator to allow its network."


class WebhookGoneError(RequestError):
    """The receiver says that it wants no more of it (410)."""

    code = "webhook-gone"


class WebhookUnavailableError(UnavailableError):
    """The receiver cannot be reached, or did not take the message."""

    code = "webhook-unavailable"


def parse_url(text: str) -> str:
    """The address of a webhook, checked as far as that can be done without a look at the network.

    Raises:
        InvalidInputError: it is no http(s) address, or holds a user name or password.
    """
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(f"The address cannot be read: {error}.", where="url") from error
    printable = text.strip().isascii() and text.strip().isprintable() and " " not in text.strip()
    if parts.scheme not in ("https", "http") or not host or not printable or len(text) > 500:
        raise InvalidInputError(
            "A webhook's address starts with https:// and names a host.", where="url"
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidInputError(
            "The address holds a user name or a password.",
            where="url",
            hint="Leave them out: the receiver knows by the signature who sends.",
        )
    return parts._replace(fragment="").geturl()


def post(
    url: str,
    *,
    secret: str,
    message_id: str,
    body: str,
    now: datetime,
    timeout: timedelta,
    within: Guard,
    agent: str,
) -> None:
    """Send one message, signed. Redirects are not followed: they count as not taken.

    Args:
        secret: as it was shown: `whsec_` and base64.
        message_id: the same at each attempt, so that the receiver may know what it has.
        now: with its time zone (UTC); part of the signature, so that nothing old passes for new.
        within: what may be reached.

    Raises:
        WebhookRefusedError: the address is not public.
        WebhookGoneError: the receiver wants no more.
        WebhookUnavailableError: it did not take the message; try again later.
    """
    headers = {
        "content-type": "application/json",
        "user-agent": agent,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }
    try:
        with (
            clients.client(within=within, timeout=timeout.total_seconds()) as client,
            client.stream("POST", url, headers=headers, content=body.encode()) as response,
        ):
            status = response.status_code
    except AddressRefusedError as error:
        raise WebhookRefusedError(error.message) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise WebhookUnavailableError(
            f"The receiver cannot be reached: {type(error).__name__} {error}".strip()
        ) from error
    if status == 410:
        raise WebhookGoneError("The receiver wants no more (410).")
    if not 200 <= status < 300:
        raise WebhookUnavailableError(f"The receiver answered {status}.")
