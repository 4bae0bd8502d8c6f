"""Server of the forward proxy: the process that `forward_proxy` starts.

Each request is checked by the guard of the client that sent it; see `forward_proxy` for the design.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import re
import socket
import ssl
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from condastore.errors import AddressRefusedError
from environments.engine.network.addresses import (
    Guard,
    ResolverError,
    lookup,
    patience_for,
)
from environments.engine.network.forward_proxy import (
    LOCAL_LOOKUP_SECONDS,
    MAX_CONNECTIONS,
    PATIENT_USER,
    REFUSED,
    REFUSED_PHRASE,
    REFUSED_STATUS,
    REFUSED_TUNNEL,
    USER,
    Pace,
)
from environments.engine.network.relay import Watch, answering, prepare, relay

_HEAD_BYTES = 64 * 1024
_HEAD_TIMEOUT = 60.0  # seconds
_CONNECT_TIMEOUT = 20.0
#: Seconds to wait for the message that announces a client's password.
_ORDER_TIMEOUT = 1.0
#: Request fields that are not forwarded. `Referer` may contain a token of a channel's path.
_DROPPED = frozenset({"proxy-authorization", "proxy-connection", "referer", "host"})


def main() -> None:
    """Serve until standard input closes; each of its lines adds a guard."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    known = _Guards()
    pace = Pace(silence=float(sys.argv[2]), rate=int(sys.argv[3]))
    server = _Server(guards=known, upstream=Upstream.of_environment(), pace=pace)
    threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
    for line in sys.stdin.buffer:
        known.add(json.loads(line))
    os._exit(0)


class _Guards:
    """The guards, by the credentials that clients send."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._known: dict[str, Guard] = {}
        self._default: Guard | None = None

    def add(self, order: Mapping[str, Any]) -> None:
        guard = Guard(
            networks=tuple(ip_network(text) for text in order["networks"]),
            hosts=frozenset((host, port) for host, port in order["hosts"]),
        )
        with self._changed:
            for user in (USER, PATIENT_USER):
                self._known[_basic(f"{user}:{order['password']}")] = guard
            if order["default"]:
                self._default = guard
            self._changed.notify_all()

    def find(self, shown: str) -> Guard | None:
        """Return the guard of a client; "" stands for a client identified by its user."""
        with self._changed:
            # The message that announces the guard may arrive after the client.
            self._changed.wait_for(lambda: self._find(shown) is not None, timeout=_ORDER_TIMEOUT)
            return self._find(shown)

    def _find(self, shown: str) -> Guard | None:
        if not shown:
            return self._default
        given = shown.encode()
        for known, found in self._known.items():
            if hmac.compare_digest(given, known.encode()):
                return found
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proxy:
    """A proxy of the operator."""

    host: str
    port: int
    secure: bool
    authorization: str  # value of Proxy-Authorization; "" for none

    @classmethod
    def parse(cls, url: str) -> _Proxy | None:
        """Parse a proxy URL; return None if it is not an HTTP proxy."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if parts.scheme == "https" else 80),
            secure=parts.scheme == "https",
            authorization=_basic(user) if parts.username else "",
        )

    def connect(self) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=_CONNECT_TIMEOUT)
        if self.secure:
            context = ssl.create_default_context()
            connection = context.wrap_socket(connection, server_hostname=self.host)
        return connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The operator's proxies, and the hosts that are reached without a proxy."""

    proxies: Mapping[str, str]

    @classmethod
    def of_environment(cls) -> Upstream:
        return cls(proxies=urllib.request.getproxies_environment())

    def proxy_for(self, scheme: str, host: str, port: int) -> _Proxy | None:
        url = self.proxies.get(scheme) or self.proxies.get("all")
        if not url:
            return None
        for text in (host, f"{host}:{port}"):
            if urllib.request.proxy_bypass_environment(text, dict(self.proxies)):  # type: ignore[attr-defined]
                return None
        found = _Proxy.parse(url)
        if found is None:
            raise _Failure(502, "The configured proxy is not an HTTP proxy")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """A connection to a server, or to the operator's proxy."""

    upstream: socket.socket
    proxy: _Proxy | None


class _Failure(Exception):  # noqa: N818  # converted to a response
    def __init__(self, status: int, phrase: str, proxy_status: str = "") -> None:
        super().__init__(phrase)
        self.status, self.phrase, self.proxy_status = status, phrase, proxy_status

    def answer(self) -> bytes:
        fields = ["Content-Length: 0", "Connection: close"]
        if self.proxy_status:
            fields.append(f"Proxy-Status: {self.proxy_status}")
        if self.status == 407:
            fields.append('Proxy-Authenticate: Basic realm="condastore"')
        return "\r\n".join([f"HTTP/1.1 {self.status} {self.phrase}", *fields, "", ""]).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """Start line and fields of a request."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, content: bytes) -> _Head:
        lines = content.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Failure(400, "Bad Request")
        fields = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip() or "\n" in line or "\0" in line:
                raise _Failure(400, "Bad Request")
            fields.append((name, value.strip()))
        return cls(method=words[0], target=words[1], fields=tuple(fields))

    def get(self, name: str) -> str:
        return next((value for key, value in self.fields if key.lower() == name), "")

    @property
    def length(self) -> int:
        """Size of the body in bytes."""
        if self.get("transfer-encoding"):
            raise _Failure(501, "Not Implemented")
        text = self.get("content-length") or "0"
        if not text.isdecimal() or not text.isascii():
            raise _Failure(400, "Bad Request")
        return int(text)

    def rewritten(self, target: str, host: str, more: Mapping[str, str]) -> bytes:
        retained = [(name, value) for name, value in self.fields if name.lower() not in _DROPPED]
        lines = [
            f"{self.method} {target} HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {value}" for name, value in (*retained, *more.items())),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Incoming:
    """Received data of one client: heads, and the bytes after them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = b""

    def head(self) -> bytes | None:
        """Return the next head without its empty line; None if the client closed."""
        while b"\r\n\r\n" not in self._pending:
            if len(self._pending) > _HEAD_BYTES:
                raise _Failure(431, "Request Header Fields Too Large")
            received = self._connection.recv(_HEAD_BYTES)
            if not received:
                return None
            self._pending += received
        head, _, self._pending = self._pending.partition(b"\r\n\r\n")
        return head

    def rest(self) -> bytes:
        """Return the bytes that were received after the head."""
        found, self._pending = self._pending, b""
        return found

    def body(self, length: int) -> Iterator[bytes]:
        while length > 0:
            part = self._pending[:length] or self._connection.recv(min(length, _HEAD_BYTES))
            if not part:
                raise OSError("The client closed the connection.")
            self._pending = self._pending[len(part) :] if self._pending else b""
            length -= len(part)
            yield part


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    guards: _Guards
    upstream: Upstream
    pace: Pace

    def serve(self, listener: socket.socket) -> None:
        free = threading.BoundedSemaphore(MAX_CONNECTIONS)

        def one(connection: socket.socket) -> None:
            try:
                with contextlib.suppress(OSError), connection:
                    self._handle(connection)
            finally:
                free.release()

        while True:
            free.acquire()
            connection, _ = listener.accept()
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_HEAD_TIMEOUT)
        incoming = _Incoming(connection)
        try:
            content = incoming.head()
            if content is None:
                return
            head = _Head.parse(content)
            exchange = _Exchange(
                guard=self._guard_of(head, connection),
                upstream=self.upstream,
                connection=connection,
                incoming=incoming,
                pace=None if _is_patient(head) else self.pace,
            )
            if head.method == "CONNECT":
                exchange.tunnel(head)
            else:
                exchange.forward(head)
        except _Failure as failure:
            connection.sendall(failure.answer())

    def _guard_of(self, head: _Head, connection: socket.socket) -> Guard:
        shown = head.get("proxy-authorization")
        if shown or _owner_of(connection) == os.geteuid():
            guard = self.guards.find(shown)
            if guard is not None:
                return guard
        raise _Failure(407, "Proxy Authentication Required")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """Handling of one client connection."""

    guard: Guard
    upstream: Upstream
    connection: socket.socket
    incoming: _Incoming
    pace: Pace | None  # None: the client has its own time limits

    # CONNECT

    def tunnel(self, head: _Head) -> None:
        host, port = _authority(head.target, default=0)
        with self._connected("https", host, port) as route:
            upstream = route.upstream
            if route.proxy is not None:
                _ask_for_tunnel(upstream, route.proxy, head.target)
            self.connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            prepare(self.connection)
            prepare(upstream)
            if rest := self.incoming.rest():
                upstream.sendall(rest)
            watch = Watch(self.pace)
            with answering(upstream, self.connection, watch):
                relay(self.connection, upstream, sent=watch.restart)

    # Requests in absolute form

    def forward(self, head: _Head) -> None:
        """Forward all requests of this connection to one server.

        Responses are passed on unparsed: their framing concerns only this client and server.
        """
        host, port = _absolute(head)
        with self._connected("http", host, port) as route:
            upstream = route.upstream
            prepare(self.connection)
            prepare(upstream)
            watch = Watch(self.pace)
            with answering(upstream, self.connection, watch):
                next_head: _Head | None = head
                while next_head is not None and _absolute(next_head) == (host, port):
                    watch.restart()
                    upstream.sendall(_outgoing(next_head, route.proxy))
                    for part in self.incoming.body(next_head.length):
                        upstream.sendall(part)
                        watch.restart()
                    content = self.incoming.head()
                    next_head = _Head.parse(content) if content is not None else None

    # Connections to servers

    def _route(self, scheme: str, host: str, port: int) -> _Proxy | None:
        """Return the operator's proxy for a server, after checking the server if possible."""
        proxy = self.upstream.proxy_for(scheme, host, port)
        if proxy is not None:
            with contextlib.suppress(ResolverError, TimeoutError):
                found = lookup(host, port).result(LOCAL_LOOKUP_SECONDS)
                if found:
                    self.guard.permitted(host, port, found)
        return proxy

    @contextlib.contextmanager
    def _connected(self, scheme: str, host: str, port: int) -> Iterator[_Route]:
        """Connect to a server, or to the operator's proxy for it."""
        try:
            proxy = self._route(scheme, host, port)
            upstream = proxy.connect() if proxy is not None else self._connect(host, port)
        except AddressRefusedError as error:
            status = REFUSED_TUNNEL if scheme == "https" else REFUSED
            raise _Failure(status, REFUSED_PHRASE, REFUSED_STATUS) from error
        except ResolverError as error:
            raise _Failure(502, "Bad Gateway", "condastore; error=dns_error") from error
        except TimeoutError as error:
            status_text = "condastore; error=connection_timeout"
            raise _Failure(504, "Gateway Timeout", status_text) from error
        except OSError as error:
            status_text = "condastore; error=destination_unavailable"
            raise _Failure(502, "Bad Gateway", status_text) from error
        with upstream:
            yield _Route(upstream=upstream, proxy=proxy)

    def _connect(self, host: str, port: int) -> socket.socket:
        found = self.guard.resolve(host, port, _CONNECT_TIMEOUT)
        for position, address in enumerate(found):
            patience = patience_for(position, len(found), _CONNECT_TIMEOUT)
            try:
                return socket.create_connection((address, port), timeout=patience)
            except OSError:
                if position == len(found) - 1:
                    raise
        raise AssertionError("resolve returns at least one address")


#: Allowed form of a server in a target; refuses what another proxy could parse differently.
_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TARGET = re.compile(r"[!-~]+")


def _authority(text: str, *, default: int) -> tuple[str, int]:
    if _AUTHORITY.fullmatch(text) is None:
        raise _Failure(400, "Bad Request")
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or default
    except ValueError as error:
        raise _Failure(400, "Bad Request") from error
    if not host or not port or parts.path:
        raise _Failure(400, "Bad Request")
    return host, port


def _absolute(head: _Head) -> tuple[str, int]:
    scheme, _, rest = head.target.partition("://")
    plain = _TARGET.fullmatch(head.target) is not None and not set("#\\") & set(head.target)
    if scheme.lower() != "http" or not plain:
        raise _Failure(400, "Bad Request")
    return _authority(rest.partition("/")[0].partition("?")[0], default=80)


def _outgoing(head: _Head, proxy: _Proxy | None) -> bytes:
    """Return the request in the form for the server or for the operator's proxy."""
    rest = head.target.partition("://")[2]
    host = rest.partition("/")[0].partition("?")[0]
    if proxy is not None:
        shown = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
        return head.rewritten(head.target, host, shown)
    path = rest[len(host) :]
    return head.rewritten(path if path.startswith("/") else f"/{path}", host, {})


def _ask_for_tunnel(upstream: socket.socket, proxy: _Proxy, target: str) -> None:
    shown = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    upstream.sendall(
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{shown}\r\n".encode("latin-1")
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        # Read single bytes: what follows the head belongs to the client.
        received = upstream.recv(1)
        if not received or len(answer) > _HEAD_BYTES:
            raise _Failure(502, "Bad Gateway", "condastore; error=proxy_internal_response")
        answer += received
    words = answer.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or not words[1].startswith(b"2"):
        raise _Failure(502, "The configured proxy refused the tunnel")


def _is_patient(head: _Head) -> bool:
    kind, _, shown = head.get("proxy-authorization").partition(" ")
    with contextlib.suppress(ValueError):
        user = base64.b64decode(shown).decode(errors="replace").partition(":")[0]
        return kind == "Basic" and user == PATIENT_USER
    return False


def _basic(user: str) -> str:
    return f"Basic {base64.b64encode(user.encode()).decode()}"


def _owner_of(connection: socket.socket) -> int | None:
    """Return the user id of the peer process from the kernel's table of connections."""
    theirs, ours = (_entry(*end) for end in (connection.getpeername(), connection.getsockname()))
    with contextlib.suppress(OSError), Path("/proc/net/tcp").open() as table:
        for line in table:
            fields = line.split()
            if fields[1:3] == [theirs, ours]:
                return int(fields[7])
    return None


def _entry(host: str, port: int) -> str:
    number = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{number:08X}:{port:04X}"
