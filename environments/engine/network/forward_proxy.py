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

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from condastore.errors import AddressRefusedError
from environments.engine.network.addresses import (
    PORTS,
    Guard,
    ResolverError,
    guard,
    literal_address,
    lookup,
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
USER = "condastore"
#: User name of clients that have their own time limits.
PATIENT_USER = "condastore-patient"
#: Seconds for resolving a name that an upstream proxy resolves again.
LOCAL_LOOKUP_SECONDS = 5.0
MAX_CONNECTIONS = 512
#: Seconds before a crashed proxy is replaced.
_PAUSE = 0.2
#: Servers in one error text that are examined.
_SERVERS = 20


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
        self._listener = socket.create_server((_LOOPBACK, 0), backlog=MAX_CONNECTIONS)
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
        location = f"{password}@{_LOOPBACK}:{port}"
        return Access(
            url=f"http://{USER}:{location}",
            patient_url=f"http://{PATIENT_USER}:{location}",
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
        # By this module's own name: the client's wheel has a copy of it in another package.
        root = os.fspath(Path(__file__).resolve().parents[__name__.count(".")])
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


def access_for(guard: Guard) -> Access:
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
        found = [known] if known else lookup(host, port).result(LOCAL_LOOKUP_SECONDS)
        if found or not upstream_proxies():
            guard().permitted(host, port, found)
    except AddressRefusedError:
        return True
    except (ResolverError, TimeoutError):
        return False
    return False


#: Program of the proxy process.
_PROGRAM = "from environments.engine.network.forward_proxy_server import main; main()"
