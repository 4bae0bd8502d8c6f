"""Guard of outgoing requests: the addresses that this installation may connect to.

Every request whose URL can be influenced without an installation-wide role passes `Guard` after the
name is resolved, at every redirect, and the connection goes to the checked address, so that a
second DNS answer (DNS rebinding) has no effect. Our own HTTP clients do this in `clients`, rattler
and uv through `forward_proxy`.

This module imports only the standard library and the errors: the forward proxy starts with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from condastore.errors import AddressRefusedError, FileRefusedError, InvalidInputError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: Well-known prefix of NAT64 (RFC 6052); the last 32 bits are an IPv4 address.
_NAT64 = ip_network("64:ff9b::/96")
#: Refused in addition to what `ipaddress` knows, which differs between versions of Python.
_SPECIAL = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # metadata of Azure's machines, in an otherwise public range
        "192.0.0.0/24",  # protocol assignments; metadata of Oracle's machines
        "192.88.99.0/24",  # relays of 6to4
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
    )
)
PORTS = {"http": 80, "https": 443}
#: Connection timeout in seconds of an address if there is another one to try.
_SHORT_TIMEOUT = 3.0
#: Resolver errors which mean that the name does not exist or has no address.
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class ResolverError(OSError):
    """The resolver does not respond now."""


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse networks such as `10.1.0.0/16`.

    Raises:
        InvalidInputError: one of them is not a network.
    """
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise InvalidInputError(f"{error}.", hint="Write a network such as 10.1.0.0/16.") from error


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Return True if the address is public, or in an allowed network."""
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
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _SPECIAL)
        and not is_own(address)
    )


def is_own(address: Address) -> bool:
    """Return True if the address belongs to this machine, whatever its range.

    The kernel's routing table decides; no packet is sent.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False  # no route to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Rules of what may be reached in addition to public addresses."""

    networks: tuple[Network, ...] = ()
    #: (host in lower case, port) that an administrator configured, whatever their addresses.
    hosts: frozenset[tuple[str, int]] = field(default_factory=frozenset)
    #: Folders below which `file:` URLs may be read.
    folders: tuple[str, ...] = ()

    @classmethod
    def from_settings(
        cls,
        *,
        allowed: Iterable[str] = (),
        urls: Iterable[str] = (),
        folders: Iterable[str] = (),
    ) -> Self:
        """Build the guard from an administrator's settings.

        Args:
            allowed: networks (`10.1.0.0/16`, `10.1.2.3`) or servers (`host:port`).
            urls: URLs whose server may be reached; for `file:` URLs the folder may be read. A
                server with a wildcard in its name (`*`, `?`, `[`) is ignored.
            folders: absolute paths.
        Raises:
            InvalidInputError: an entry of `allowed` is neither a network nor a server.
        """
        networks: list[Network] = []
        hosts: set[tuple[str, int]] = set()
        below = [os.fspath(folder) for folder in folders]
        for text in allowed:
            try:
                networks.append(ip_network(text))
            except ValueError:
                hosts.add(_server(text))
        for url in urls:
            scheme, _, rest = url.partition("://")
            if scheme == "file":
                below += _literal_folder(rest)
            else:
                hosts |= _servers_of(scheme, rest)
        return cls(networks=tuple(networks), hosts=frozenset(hosts), folders=tuple(below))

    def allowing(self, networks: Iterable[Network] = (), urls: Iterable[str] = ()) -> Self:
        """Return this guard with additional networks and the servers of additional URLs."""
        more = type(self).from_settings(urls=[url for url in urls if not url.startswith("file:")])
        return replace(self, networks=(*self.networks, *networks), hosts=self.hosts | more.hosts)

    def permitted(self, host: str, port: int, addresses: Sequence[Address]) -> list[str]:
        """Return those of a host's `addresses` that may be connected to.

        Raises:
            AddressRefusedError: there are none.
            ResolverError: a host that an administrator configured has no address now.
        """
        configured = (_plain(host), port) in self.hosts
        if configured and not addresses:
            raise ResolverError(f"The name {host!r} has no address now.")
        found = [
            str(address)
            for address in addresses
            if configured or is_allowed(address, self.networks)
        ]
        if not found:
            raise self.refusal(host)
        return found

    @staticmethod
    def refusal(host: str) -> AddressRefusedError:
        """Return the error for a refused host; its text does not depend on the addresses.

        A name without an address gets the same error, so that nobody learns which internal names
        exist.
        """
        return AddressRefusedError(f"{host} has no address that this installation may connect to.")

    def resolve(self, host: str, port: int, timeout: float | None = None) -> list[str]:
        """Resolve a host and return the addresses to connect to, in order.

        Raises:
            AddressRefusedError: the host has no address, or no permitted one.
            ResolverError: the resolver does not respond.
            TimeoutError: the resolver did not respond within `timeout` seconds.
        """
        known = literal_address(host)
        addresses = [known] if known else lookup(host, port).result(timeout)
        return self.permitted(host, port, addresses)

    async def resolve_async(self, host: str, port: int, timeout: float | None = None) -> list[str]:
        """Do the same as `resolve` without blocking the event loop."""
        known = literal_address(host)
        addresses = (
            [known]
            if known
            else await asyncio.wait_for(asyncio.wrap_future(lookup(host, port)), timeout)
        )
        return self.permitted(host, port, addresses)

    def path(self, url: str) -> Path:
        """Return the real path of a `file:` URL, which must be below one of `folders`.

        Raises:
            FileRefusedError: it is not; the text does not depend on whether the file exists.
        """
        path = os.path.realpath(unquote(urlsplit(url).path))
        for folder in map(os.path.realpath, self.folders):
            if os.path.commonpath((folder, path)) == folder:
                return Path(path)
        raise FileRefusedError(f"{url} is not in a folder that this installation may read.")


def patience_for(position: int, total: int, timeout: float | None) -> float | None:
    """Return the connection timeout in seconds of the `position`th of `total` addresses."""
    if position == total - 1:
        return timeout
    return _SHORT_TIMEOUT if timeout is None else min(timeout, _SHORT_TIMEOUT)


def literal_address(host: str) -> Address | None:
    """Return `host` as an address, or None if it is a name."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def lookup(host: str, port: int) -> Future[list[Address]]:
    """Resolve a name in a new thread: resolving cannot be interrupted and may take a minute."""
    future: Future[list[Address]] = Future()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
            )
            texts = [str(one[4][0]) for one in found if one[0] in (socket.AF_INET, socket.AF_INET6)]
            answer = [ip_address(text.partition("%")[0]) for text in texts]
        except (OSError, UnicodeError) as error:
            missing = isinstance(error, UnicodeError) or error.errno in _NO_SUCH_NAME
            if missing:
                _settle(future, [])
            else:
                _fail(future, ResolverError(f"The name {host!r} could not be resolved."))
        else:
            _settle(future, list(dict.fromkeys(answer)))

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return future


def _settle(future: Future[list[Address]], answer: list[Address]) -> None:
    if future.set_running_or_notify_cancel():  # False if nobody waits any more
        future.set_result(answer)


def _fail(future: Future[list[Address]], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _plain(host: str) -> str:
    known = literal_address(host)
    return str(known) if known else host.lower().rstrip(".")


def _server(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port or parts.path or parts.query or "@" in text:
        raise InvalidInputError(
            f"{text!r} is neither a network nor a server.",
            hint="Write a network such as 10.1.0.0/16, or a server such as conda.example.org:443.",
        )
    return _plain(host), port


def _servers_of(scheme: str, rest: str) -> set[tuple[str, int]]:
    authority = rest.partition("/")[0].rpartition("@")[2]
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is a wildcard
        return set()
    wild = any(sign in authority for sign in "*?") or ("[" in authority and ":" not in (host or ""))
    if not host or wild:
        return set()
    if port:
        return {(_plain(host), port)}
    return {(_plain(host), number) for name, number in PORTS.items() if scheme in (name, "*")}


def _literal_folder(rest: str) -> list[str]:
    """Return the folder of `file://` URLs that match a pattern: the part before any wildcard."""
    parts: list[str] = []
    for part in unquote("/" + rest.partition("/")[2]).split("/"):
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return ["/".join(parts) or "/"]


#: Guard of a process whose URLs all come from a trusted server.
UNRESTRICTED = Guard.from_settings(allowed=["0.0.0.0/0", "::/0"])

_current: Callable[[], Guard] = Guard


def guard() -> Guard:
    """Return the guard of this process; the default allows public addresses only."""
    return _current()


def install(find: Callable[[], Guard]) -> None:
    """Set the function that `guard` calls."""
    global _current
    _current = find
