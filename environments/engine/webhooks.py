"""How does a message reach a webhook: signed, to a public address, and never by way of another?

Source: Standard Webhooks (standardwebhooks.com), version 1.0.0.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SOCK_STREAM, gaierror, getaddrinfo
from urllib.parse import urlsplit

import httpcore
from standardwebhooks.webhooks import Webhook

from environments.domain.errors import InvalidInputError, RequestError, UnavailableError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Addresses in which another one, of IPv4, stands in the last 32 bits (NAT64).
_NAT64 = ip_network("64:ff9b::/96")


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


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """InvalidInputError for what is no network."""
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", hint="Write a network such as 10.1.0.0/16.") from error


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


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Is the address public, or in a network that is allowed all the same?"""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_allowed(inner, allowed)
        if address.teredo is not None:
            return False
    if any(address in network for network in allowed if network.version == address.version):
        return True
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Guarded(httpcore.SyncBackend):
    """Connects to the address that it looked at, so that a name cannot change its mind."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = allowed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = getaddrinfo(host, port, type=SOCK_STREAM, proto=IPPROTO_TCP)
        except (gaierror, UnicodeError) as error:
            raise WebhookUnavailableError(f"There is no host {host!r}: {error}.") from error
        texts = [str(one[4][0]) for one in found if one[0] in (AF_INET, AF_INET6)]
        addresses = [ip_address(text.partition("%")[0]) for text in texts]
        open_ = [address for address in addresses if is_allowed(address, self._allowed)]
        if not open_:
            raise WebhookRefusedError(f"{host} is at an address where nothing is sent to.")
        return super().connect_tcp(str(open_[0]), port, timeout, local_address, socket_options)


def post(
    url: str,
    *,
    secret: str,
    message_id: str,
    body: str,
    now: datetime,
    timeout: timedelta,
    allowed: Sequence[Network],
    agent: str,
) -> None:
    """Send one message, signed. Redirects are not followed: they count as not taken.

    Args:
        secret: as it was shown: `whsec_` and base64.
        message_id: the same at each attempt, so that the receiver may know what it has.
        now: with its time zone (UTC); part of the signature, so that nothing old passes for new.

    Raises:
        WebhookRefusedError: the address is not public.
        WebhookGoneError: the receiver wants no more.
        WebhookUnavailableError: it did not take the message; try again later.
    """
    headers: dict[bytes | str, bytes | str] = {
        "content-type": "application/json",
        "user-agent": agent,
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, now, body),
    }
    seconds = timeout.total_seconds()
    limits = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
    try:
        with (
            httpcore.ConnectionPool(
                ssl_context=ssl.create_default_context(),
                network_backend=_Guarded(allowed),
                http2=False,
            ) as pool,
            pool.stream(
                "POST",
                url,
                headers=headers,
                content=body.encode(),
                extensions={"timeout": limits},
            ) as response,
        ):
            status = response.status
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise WebhookUnavailableError(
            f"The receiver cannot be reached: {type(error).__name__} {error}".strip()
        ) from error
    if status == 410:
        raise WebhookGoneError("The receiver wants no more (410).")
    if not 200 <= status < 300:
        raise WebhookUnavailableError(f"The receiver answered {status}.")
