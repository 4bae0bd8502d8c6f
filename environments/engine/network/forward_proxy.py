"""Forward proxy on the loopback interface that rattler and uv use for every request.

Both read HTTP_PROXY and HTTPS_PROXY when they create a client, and then send every request through
the proxy, also after a redirect: `http:` in absolute form, `https:` by CONNECT. The proxy resolves
the name, asks the guard, and connects to a checked address. If the operator's environment names a
proxy, requests are passed on to that one: it resolves the name again, so only addresses, and names
that resolve here as well, can be checked.

The proxy is a separate process (`forward_proxy_server`), so that it does not wait for the
interpreter lock of a worker that hashes or links. Its listening socket belongs to the parent: a
crashed proxy is replaced at the same address. It exits when its standard input closes, with the
parent.

Only programs of the same user may use it. They send a password, which is in the environment of the
child processes that fetch. reqwest does not send it again after a redirect from one `http:` server
to another; then the kernel's table of connections tells the user of the connection.

rattler and uv wait for a server without a limit. So the proxy closes a connection if the server
sends nothing, or less than a minimum rate, for the time that a server may be silent; idle
connections are closed as well. Clients with their own limits have a different user name.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hmac
import json
import os
import re
import secrets
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from condastore.errors import AddressRefusedError
from environments.engine.network.addresses import (
    PORTS,
    Guard,
    ResolverError,
    guard,
    literal_address,
    lookup,
    patience_for,
)
from environments.engine.system.confinement import child_environment

#: Proxy-Status value that marks a refusal by the guard (RFC 9209).
REFUSED_STATUS = "condastore; error=destination_ip_prohibited"
REFUSED_PHRASE = "Address not permitted"
#: Status of a refusal. reqwest reports the one of a tunnel (407) differently from all others.
REFUSED, REFUSED_TUNNEL = 403, 407
#: Variables that clients read; child processes get them too.
VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_OTHERS = ("all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")
_LOOPBACK = "127.0.0.1"
_USER = "condastore"
#: User name of clients that have their own time limits.
_PATIENT_USER = "condastore-patient"
_HEAD_BYTES = 64 * 1024
_CHUNK = 1 << 20  # bytes
_HEAD_TIMEOUT = 60.0  # seconds
_CONNECT_TIMEOUT = 20.0
#: Seconds for resolving a name that an upstream proxy resolves again.
_LOCAL_LOOKUP = 5.0
_CONNECTIONS = 512
#: Seconds to wait for the message that announces a client's password.
_ORDER_TIMEOUT = 1.0
#: Seconds before a crashed proxy is replaced.
_PAUSE = 0.2
#: Servers in one error text that are examined.
_SERVERS = 20
#: Request fields that are not forwarded. `Referer` may contain a token of a channel's path.
_DROPPED = frozenset({"proxy-authorization", "proxy-connection", "referer", "host"})


def upstream_proxies() -> dict[str, str]:
    """Return the proxies of the operator's environment, by scheme."""
    return {
        scheme: url
        for scheme, url in urllib.request.getproxies_environment().items()
        if scheme in ("http", "https", "all")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How clients use the proxy under one guard."""

    url: str  # with user and password; slow servers are disconnected
    patient_url: str  # for clients with their own time limits
    port: int
    proxy: ForwardProxy
    guard: Guard

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a child process that fetches."""
        self.proxy.set_default(self.guard)
        return dict.fromkeys(VARIABLES, self.url)

    def use_in_this_process(self) -> None:
        """Make rattler clients that this process creates from now on use the proxy.

        Only native code sees it: `os.environ`, from which Python clients of object stores and
        directories take the operator's proxy, does not change.
        """
        for name, value in self.environment().items():
            os.putenv(name, value)
        for name in _OTHERS:
            os.unsetenv(name)


class ForwardProxy:
    """The proxy process, with a password per guard."""

    def __init__(self) -> None:
        self._listener = socket.create_server((_LOOPBACK, 0), backlog=_CONNECTIONS)
        self._guards: dict[Guard, str] = {}
        self._default: Guard | None = None
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._closing = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(
            target=self._keep_running, name="forward-proxy", daemon=True
        )
        self._keeper.start()

    def access(self, guard: Guard) -> Access:
        """Return what a client under `guard` needs."""
        with self._lock:
            if guard not in self._guards:
                self._guards[guard] = secrets.token_urlsafe(24)
                self._order(guard)
            password = self._guards[guard]
        port: int = self._listener.getsockname()[1]
        place = f"{password}@{_LOOPBACK}:{port}"
        return Access(
            url=f"http://{_USER}:{place}",
            patient_url=f"http://{_PATIENT_USER}:{place}",
            port=port,
            proxy=self,
            guard=guard,
        )

    def set_default(self, guard: Guard) -> None:
        """Set the guard for requests of this user's processes that send no password."""
        with self._lock:
            if self._default != guard:
                self._default = guard
                self._order(guard)

    def close(self) -> None:
        """Stop the process."""
        self._closing.set()
        if os.getpid() == self._owner:
            self._process.kill()
            self._keeper.join()
        self._listener.close()

    def _start(self) -> subprocess.Popen[bytes]:
        proxies = {name: os.environ[name] for name in (*VARIABLES, *_OTHERS) if name in os.environ}
        root = os.fspath(Path(__file__).resolve().parents[3])
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(self._listener.fileno()), *_pace().arguments()],
            env=child_environment({**proxies, "PYTHONPATH": root}),
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[self._listener.fileno()],
        )

    def _order(self, guard: Guard) -> None:
        order = {
            "password": self._guards[guard],
            "networks": [str(network) for network in guard.networks],
            "hosts": sorted(guard.hosts),
            "default": guard == self._default,
        }
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it crashed; its successor gets all guards
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _keep_running(self) -> None:
        while True:
            self._process.wait()
            with self._lock, contextlib.suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            if self._closing.wait(_PAUSE):
                return
            with self._lock:
                self._process = self._start()
                for guard in self._guards:
                    self._order(guard)
            if self._closing.is_set():
                self._process.kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Minimum rate of a server: `rate` bytes per second, averaged over `silence` seconds."""

    silence: float = 30.0
    rate: int = 1024

    def arguments(self) -> list[str]:
        return [str(self.silence), str(self.rate)]


_pace: Callable[[], Pace] = Pace


def use_pace(find: Callable[[], Pace]) -> None:
    """Set the function that returns the pace of proxies that start from now on."""
    global _pace
    _pace = find


_proxies: dict[int, ForwardProxy] = {}
_lock = threading.Lock()


def of(guard: Guard) -> Access:
    """Return access to this process's proxy for `guard`; the first call starts the proxy."""
    with _lock:
        # By process: after a fork, the parent's proxy is not ours.
        if os.getpid() not in _proxies:
            _proxies[os.getpid()] = ForwardProxy()
        return _proxies[os.getpid()].access(guard)


#: URL that reqwest or uv could not fetch; does not match URLs in their advice.
_URL = re.compile(r"(?:\burl \(|[Ff]ailed to fetch: `)(https?://[^\s()\"'<>,`]+)")
#: Text of rattler and uv when a tunnel was refused (REFUSED_TUNNEL).
_TUNNEL_REFUSED = "proxy authorization required"


def refusal_in(text: str) -> AddressRefusedError | None:
    """Return the guard's refusal that made rattler or uv fail, found in their output, or None."""
    servers = sorted(set(_servers_in(text)))
    for host, port in servers[:_SERVERS]:
        if _is_refused(host, port):
            return Guard.refusal(host)
    if _TUNNEL_REFUSED not in text.lower():
        return None
    host = servers[0][0] if servers else "A channel or an index"
    return AddressRefusedError(
        f"{host} redirects to a server without an address that this installation may connect to."
    )


def _servers_in(text: str) -> Iterator[tuple[str, int]]:
    for url in _URL.findall(text):
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            if parts.hostname and parts.port != 0:
                yield parts.hostname, parts.port or PORTS[parts.scheme]


def _is_refused(host: str, port: int) -> bool:
    try:
        known = literal_address(host)
        found = [known] if known else lookup(host, port).result(_LOCAL_LOOKUP)
        if found or not upstream_proxies():
            guard().permitted(host, port, found)
    except AddressRefusedError:
        return True
    except (ResolverError, TimeoutError):
        return False
    return False


# --- the process itself ---------------------------------------------------------------------------

_PROGRAM = "from environments.engine.network.forward_proxy import main; main()"


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
            for user in (_USER, _PATIENT_USER):
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
        kept = [(name, value) for name, value in self.fields if name.lower() not in _DROPPED]
        lines = [
            f"{self.method} {target} HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {value}" for name, value in (*kept, *more.items())),
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
        free = threading.BoundedSemaphore(_CONNECTIONS)

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
            _prepare(self.connection)
            _prepare(upstream)
            if rest := self.incoming.rest():
                upstream.sendall(rest)
            watch = _Watch(self.pace)
            with _answering(upstream, self.connection, watch):
                _relay(self.connection, upstream, sent=watch.restart)

    # Requests in absolute form

    def forward(self, head: _Head) -> None:
        """Forward all requests of this connection to one server.

        Responses are passed on unparsed: their framing concerns only this client and server.
        """
        host, port = _absolute(head)
        with self._connected("http", host, port) as route:
            upstream = route.upstream
            _prepare(self.connection)
            _prepare(upstream)
            watch = _Watch(self.pace)
            with _answering(upstream, self.connection, watch):
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
                found = lookup(host, port).result(_LOCAL_LOOKUP)
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


def _prepare(connection: socket.socket) -> None:
    """Remove the timeout: from now on `_Watch` or the client ends the connection."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Watch:
    """Measures how fast a server sends, without the time in which the client does not read."""

    def __init__(self, pace: Pace | None) -> None:
        self._pace = pace
        self._waited = 0.0
        self._arrived = 0
        self._sent = False
        self.gave_up = False

    def restart(self) -> None:
        """Restart the measurement after the client sent something. Called from another thread."""
        self._sent = True

    def wait(self, source: socket.socket) -> bool:
        """Wait until `source` is readable; return False if its server is too slow."""
        if self._pace is None or _pending(source):
            return True
        poll = select.poll()
        poll.register(source, select.POLLIN)
        while True:
            if self._sent:
                self._sent, self._waited, self._arrived = False, 0.0, 0
            started = time.monotonic()
            left = self._pace.silence - self._waited
            ready = poll.poll(max(0.0, left) * 1000)
            self._waited += time.monotonic() - started
            if ready and self._waited < self._pace.silence:
                return True
            if self._sent or self._waited < self._pace.silence:
                continue
            if not self._arrived or self._arrived < self._pace.rate * self._waited:
                self.gave_up = True
                return False
            self._waited, self._arrived = 0.0, 0

    def arrived(self, count: int) -> None:
        self._arrived += count


def _pending(connection: socket.socket) -> bool:
    """Return True if the TLS layer holds bytes that were received already."""
    return isinstance(connection, ssl.SSLSocket) and connection.pending() > 0


@contextlib.contextmanager
def _answering(upstream: socket.socket, connection: socket.socket, watch: _Watch) -> Iterator[None]:
    """Relay data from the server in a thread during the block; then close the connection.

    Both sockets stay open until the thread has ended, so that their numbers cannot be reused.
    """

    def answer() -> None:
        _relay(upstream, connection, wait=watch.wait, arrived=watch.arrived)
        if watch.gave_up:  # do not wait for further requests of the client
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            upstream.shutdown(socket.SHUT_RDWR)
        thread.join()


def _relay(
    source: socket.socket,
    sink: socket.socket,
    *,
    wait: Callable[[socket.socket], bool] = lambda source: True,
    arrived: Callable[[int], None] = lambda count: None,
    sent: Callable[[], None] = lambda: None,
) -> None:
    """Relay bytes until `source` ends or `wait` returns False, then shut down `sink`."""
    with contextlib.suppress(OSError):
        if isinstance(source, ssl.SSLSocket) or isinstance(sink, ssl.SSLSocket):
            while wait(source) and (part := source.recv(_CHUNK)):
                arrived(len(part))
                sink.sendall(part)
                sent()
        else:
            _splice(source, sink, wait=wait, arrived=arrived, sent=sent)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _splice(
    source: socket.socket,
    sink: socket.socket,
    *,
    wait: Callable[[socket.socket], bool],
    arrived: Callable[[int], None],
    sent: Callable[[], None],
) -> None:
    """Relay within the kernel, through a pipe."""
    out, into = os.pipe()
    try:
        with contextlib.suppress(OSError):  # the user's limit of pipe buffers is reached
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _CHUNK)
        while wait(source) and (count := os.splice(source.fileno(), into, _CHUNK)):
            arrived(count)
            while count:
                count -= os.splice(out, sink.fileno(), count)
            sent()
    finally:
        os.close(out)
        os.close(into)


def _is_patient(head: _Head) -> bool:
    kind, _, shown = head.get("proxy-authorization").partition(" ")
    with contextlib.suppress(ValueError):
        user = base64.b64decode(shown).decode(errors="replace").partition(":")[0]
        return kind == "Basic" and user == _PATIENT_USER
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
