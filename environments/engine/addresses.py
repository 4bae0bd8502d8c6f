"""May something be sent to this address? Not into the private network, unless it is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SOCK_STREAM, gaierror, getaddrinfo

import httpcore

from environments.domain.errors import InvalidInputError, RequestError, UnavailableError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Addresses in which another one, of IPv4, stands in the last 32 bits (NAT64).
_NAT64 = ip_network("64:ff9b::/96")


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """InvalidInputError for what is no network."""
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", hint="Write a network such as 10.1.0.0/16.") from error


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


class Guarded(httpcore.SyncBackend):
    """Connects to the address that it looked at, so that a name cannot change its mind."""

    def __init__(
        self,
        allowed: Sequence[Network],
        *,
        refused: type[RequestError],
        unavailable: type[UnavailableError],
    ) -> None:
        self._allowed, self._refused, self._unavailable = allowed, refused, unavailable

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
            raise self._unavailable(f"There is no host {host!r}: {error}.") from error
        texts = [str(one[4][0]) for one in found if one[0] in (AF_INET, AF_INET6)]
        addresses = [ip_address(text.partition("%")[0]) for text in texts]
        open_ = [address for address in addresses if is_allowed(address, self._allowed)]
        if not open_:
            raise self._refused(f"{host} is at an address where nothing is sent to.")
        return super().connect_tcp(str(open_[0]), port, timeout, local_address, socket_options)
