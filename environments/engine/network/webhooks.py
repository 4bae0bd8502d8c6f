"""Delivery of signed webhook messages, to permitted addresses only and without redirects.

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
    """The webhook's address is not permitted; another attempt would fail as well."""

    code = "webhook-refused"
    hint = "Use an address on the public internet, or ask an administrator to allow its network."


class WebhookGoneError(RequestError):
    """The receiver no longer accepts messages (410)."""

    code = "webhook-gone"


class WebhookUnavailableError(UnavailableError):
    """The receiver cannot be reached, or did not accept the message."""

    code = "webhook-unavailable"


def parse_url(text: str) -> str:
    """Validate a webhook's URL, as far as possible without network access.

    Raises:
        InvalidInputError: it is not an http(s) URL, or contains a user name or password.
    """
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(
            f"The URL is malformed: {error}.",
            where="url",
            hint="Write a URL such as https://hooks.example.org/path.",
        ) from error
    printable = text.strip().isascii() and text.strip().isprintable() and " " not in text.strip()
    if parts.scheme not in ("https", "http") or not host or not printable or len(text) > 500:
        raise InvalidInputError(
            "A webhook's URL must start with https:// or http:// and name a host.",
            where="url",
            hint="Write a URL such as https://hooks.example.org/path.",
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidInputError(
            "The URL contains a user name or a password.",
            where="url",
            hint="Remove them: the receiver verifies the sender by the signature.",
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
    """Send one signed message. A redirect is not followed and counts as a failure.

    Args:
        secret: in the form in which it was shown: `whsec_` and base64.
        message_id: the same at each attempt, so that the receiver can detect duplicates.
        now: with time zone (UTC); part of the signature, to prevent replays.
        within: guard of permitted addresses.

    Raises:
        WebhookRefusedError: the address is not permitted.
        WebhookGoneError: the receiver no longer accepts messages.
        WebhookUnavailableError: the receiver did not accept the message; retry later.
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
        raise WebhookGoneError("The receiver no longer accepts messages (status 410).")
    if not 200 <= status < 300:
        raise WebhookUnavailableError(f"The receiver responded with status {status}.")
