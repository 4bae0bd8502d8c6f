"""Forward proxy: authentication, permitted targets, upstream proxies and refusals."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import rattler
from rattler.package_streaming import PackageArchive

from condastore.errors import AddressRefusedError
from environments.domain.names import Credential
from environments.engine.channels.repodata import Channels
from environments.engine.network import addresses, clients, forward_proxy, forward_proxy_server
from environments.engine.network.addresses import Guard
from environments.engine.network.forward_proxy import Access, ForwardProxy, refusal_in
from tests.channels.server import ChannelServer, Fault, serving
from tests.services.canary import Canary
from tests.services.canary import canary as listening
from tests.services.processes import wait_for

NOBODY = 65534


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "small").write_bytes(b"small")
    (folder / "large").write_bytes(os.urandom(5_000_000))
    return folder


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[ChannelServer]:
    with serving(files) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: ChannelServer) -> Access:
    """Leads to `server` and to nothing else of this machine."""
    return forward_proxy.access_for(Guard.from_settings(urls=[server.url]))


@pytest.fixture
def canary() -> Iterator[Canary]:
    with listening() as found:
        yield found


def test_requests_in_absolute_form_reach_what_is_permitted(
    proxy: Access, server: ChannelServer, files: Path
) -> None:
    server.requests.clear()
    with httpx.Client(proxy=proxy.url) as client:
        shown = {"Referer": "http://example.org/t/token/x"}
        for _ in range(3):  # on one connection
            assert client.get(f"{server.url}small", headers=shown).content == b"small"
        assert client.get(f"{server.url}large").content == (files / "large").read_bytes()
        assert client.head(f"{server.url}small").status_code == 200
        assert client.get(f"{server.url}missing").status_code == 404
    seen = [name for request in server.requests for name in request.headers]
    assert not {"proxy-authorization", "proxy-connection", "referer"} & set(seen)


def test_tunnels_reach_what_is_permitted(proxy: Access, server: ChannelServer) -> None:
    with _connected(proxy) as connection:
        _send(connection, f"CONNECT 127.0.0.1:{server.server_port} HTTP/1.1", _shown(proxy))
        assert _head(connection).startswith("HTTP/1.1 200 ")
        _send(connection, "GET /small HTTP/1.1", "Host: x", "Connection: close")
        assert connection.makefile("rb").read().endswith(b"small")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
def test_nothing_else_of_this_machine_is_reached(proxy: Access, canary: Canary, host: str) -> None:
    target = f"{host}:{canary.port}"
    for line, status in (
        (f"CONNECT {target} HTTP/1.1", forward_proxy.REFUSED_TUNNEL),
        (f"GET http://{target}/ HTTP/1.1", forward_proxy.REFUSED),
    ):
        with _connected(proxy) as connection:
            _send(connection, line, _shown(proxy))
            head = _head(connection)
        assert head.startswith(f"HTTP/1.1 {status} {forward_proxy.REFUSED_PHRASE}")
        assert f"Proxy-Status: {forward_proxy.REFUSED_STATUS}" in head
    assert canary.contacts == []


def test_another_server_is_not_reached_on_a_connection_to_a_permitted_one(
    proxy: Access, server: ChannelServer, canary: Canary
) -> None:
    with _connected(proxy) as connection:
        _send(connection, f"GET {server.url}small HTTP/1.1", _shown(proxy))
        assert _head(connection).startswith("HTTP/1.1 200 ")
        assert connection.recv(100) == b"small"
        # Host and target disagree, and then the target is another one.
        _send(connection, f"GET {canary.url} HTTP/1.1", _shown(proxy))
        assert connection.recv(100) == b""
    assert canary.contacts == []


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /small HTTP/1.1",
        "GET https://127.0.0.1/ HTTP/1.1",
        "GET ftp://127.0.0.1/ HTTP/1.1",
        "GET http:///small HTTP/1.1",
        "GET http://127.0.0.1:99999/ HTTP/1.1",
        "CONNECT 127.0.0.1 HTTP/1.1",
        "CONNECT http://127.0.0.1:80/ HTTP/1.1",
        "nonsense",
        "GET http://a b/ HTTP/1.1",
        # Another proxy may read another server in these.
        "GET http://127.0.0.1:6379#@example.com/ HTTP/1.1",
        "GET http://127.0.0.1\\@example.com/ HTTP/1.1",
        "GET http://user@127.0.0.1/ HTTP/1.1",
        "CONNECT 127.0.0.1:6379#@example.com:443 HTTP/1.1",
    ],
)
def test_malformed_proxy_requests_are_refused(proxy: Access, request_line: str) -> None:
    with _connected(proxy) as connection:
        _send(connection, request_line, _shown(proxy))
        assert _head(connection).startswith("HTTP/1.1 400 ")


@pytest.mark.skipif(os.getuid() != 0, reason="only root starts processes of others")
def test_other_users_of_the_machine_are_refused(proxy: Access, server: ChannelServer) -> None:
    proxy.environment()
    script = f"""
import socket
connection = socket.create_connection(("127.0.0.1", {proxy.port}))
connection.sendall(b"GET {server.url}small HTTP/1.1\\r\\n\\r\\n")
print(connection.recv(12).decode())
"""
    said = [
        subprocess.run(
            [sys.executable if user == 0 else "/usr/bin/env", *rest, "-c", script],
            user=user,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        for user, rest in ((0, []), (NOBODY, ["python3"]))
    ]
    assert said == ["HTTP/1.1 200", "HTTP/1.1 407"]
    with _connected(proxy) as connection:  # a wrong password is not made good by the user
        _send(connection, f"GET {server.url}small HTTP/1.1", "Proxy-Authorization: Basic eA==")
        assert _head(connection).startswith("HTTP/1.1 407 ")


def test_a_proxy_that_was_killed_is_replaced_at_its_address(server: ChannelServer) -> None:
    proxy = ForwardProxy()
    try:
        access = proxy.access(Guard.from_settings(urls=[server.url]))
        with httpx.Client(proxy=access.url, timeout=20) as client:
            assert client.get(f"{server.url}small").content == b"small"
        before = _process_of(proxy)
        before.kill()
        with httpx.Client(proxy=access.url, timeout=20) as client:
            assert client.get(f"{server.url}small").content == b"small"
        assert _process_of(proxy).pid != before.pid
    finally:
        proxy.close()


def test_each_password_stands_for_its_guard(server: ChannelServer) -> None:
    own = ForwardProxy()  # no thread of another test gives its guard to children meanwhile
    try:
        opened, closed = own.access(Guard.from_settings(urls=[server.url])), own.access(Guard())
        assert closed.port == opened.port
        for access, status in ((opened, 200), (closed, forward_proxy.REFUSED), (opened, 200)):
            assert httpx.get(f"{server.url}small", proxy=access.url).status_code == status
            access.environment()
            with _connected(access) as connection:  # no password: the guard given to children
                _send(connection, f"GET {server.url}small HTTP/1.1")
                assert _head(connection).startswith(f"HTTP/1.1 {status} ")
    finally:
        own.close()


def test_a_proxy_ends_with_the_process_that_started_it() -> None:
    script = """
import os, sys
from environments.engine.network.forward_proxy import ForwardProxy
print(ForwardProxy()._process.pid, flush=True)
os._exit(1)
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    wait_for(lambda: not psutil.pid_exists(int(answer.stdout)), what="the end of the proxy")


# --- the operator's own proxy -------------------------------------------------------------------


@pytest.fixture
def corporate(
    server: ChannelServer, proxy: Access, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Access]:
    """Our proxy where the environment names another one: the `proxy` of this module."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    for name in ("http_proxy", "https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = ForwardProxy()
    monkeypatch.setitem(forward_proxy._proxies, os.getpid(), found)
    yield found.access(Guard.from_settings(urls=[server.url]))
    found.close()


def test_requests_are_forwarded_to_the_operators_proxy(
    corporate: Access, server: ChannelServer
) -> None:
    with httpx.Client(proxy=corporate.url) as client:
        assert client.get(f"{server.url}small").content == b"small"
    with _connected(corporate) as connection:
        _send(connection, f"CONNECT 127.0.0.1:{server.server_port} HTTP/1.1", _shown(corporate))
        assert _head(connection).startswith("HTTP/1.1 200 ")
        _send(connection, "GET /small HTTP/1.1", "Host: x", "Connection: close")
        assert connection.makefile("rb").read().endswith(b"small")


def test_the_operators_proxy_is_not_asked_for_addresses_that_are_refused(
    corporate: Access, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clients.client(within=Guard()) as client:
        for url in (canary.url, canary.url.replace("http:", "https:")):
            with pytest.raises(AddressRefusedError):
                client.get(url)
    assert canary.contacts == []


def test_our_own_clients_use_the_operators_proxy(corporate: Access, server: ChannelServer) -> None:
    within = Guard.from_settings(urls=[server.url])

    async def ask() -> bytes:
        async with clients.async_client(within=within) as client:
            return (await client.get(f"{server.url}small")).content

    with clients.client(within=within) as client:
        assert client.get(f"{server.url}small").content == b"small"
    assert asyncio.run(ask()) == b"small"


# --- rattler ------------------------------------------------------------------------------------


@pytest.fixture
def only(server: ChannelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's guard permits `server` alone."""
    guard = Guard.from_settings(urls=[server.url])
    monkeypatch.setattr(addresses, "_current", lambda: guard)


def test_rattler_follows_no_redirect_to_a_refused_address(
    only: None, server: ChannelServer, canary: Canary, tmp_path: Path
) -> None:
    channels = Channels(cache=tmp_path)
    said = set()
    try:
        for number, scheme in enumerate(("http", "https")):
            name = f"redirected-{number}"
            location = f"{scheme}://127.0.0.1:{canary.port}/"
            server.faults.add(Fault(f"{name}/*", status=302, location=location))
            channel = f"{server.url}{name}"
            query = channels.gateway.names([rattler.Channel(channel)], ["noarch"])
            with pytest.raises(AddressRefusedError) as refused:
                channels.run(channels.guarded(query))
            said.add(refused.value.message)
        package = PackageArchive.from_url(channels.client, f"{server.url}redirected-0/x-1-0.conda")
        with pytest.raises(Exception, match=r"(?i)address not permitted"):
            channels.run(package)
    finally:
        channels.close()
        server.faults.clear()
    assert canary.contacts == []
    assert not any("403" in text or "302" in text for text in said)


def test_rattler_follows_a_redirect_to_another_permitted_server_without_credentials(
    server: ChannelServer, small_channel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """reqwest leaves the password of the proxy out as well when it follows one."""
    channel = f"{server.url}moved"
    secret = Credential(url_prefix=channel, kind="basic", secret="user:password")
    with serving(small_channel) as other:
        theirs = other.url.replace("127.0.0.1", "localhost")
        guard = Guard.from_settings(urls=[server.url, theirs])
        monkeypatch.setattr(addresses, "_current", lambda: guard)
        for name in ("repodata_shards.msgpack.zst", "repodata.json.zst", "repodata.json"):
            location = f"{theirs}noarch/{name}"
            server.faults.add(Fault(f"moved/noarch/{name}", status=302, location=location))
        server.requests.clear()
        channels = Channels(cache=tmp_path, credentials=lambda url: secret)
        try:
            channels.learn_credentials([channel])
            query = channels.gateway.names([rattler.Channel(channel)], ["noarch"])
            found = channels.run(channels.guarded(query))
        finally:
            channels.close()
            server.faults.clear()
        shown = [set(request.headers) for request in other.requests]
    assert found
    assert all("authorization" in request.headers for request in server.requests)
    assert shown
    assert not any(names & {"authorization", "proxy-authorization", "referer"} for names in shown)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("HTTP status client error (403) for url (http://127.0.0.1:9/x)", True),
        ("error sending request for url (https://[::1]/x): tunnel error", True),
        ("error for url (http://93.184.216.34/x): tunnel error: proxy authorization required",
         True),
        ("error for url (http://93.184.216.34/x): tunnel error: unsuccessful", False),
        ("Failed to fetch: `http://127.0.0.1:9/simple/x/`", True),
        ("no solution; see http://127.0.0.1:9/advice", False),
        ("no url at all", False),
        ("for url (http://[broken)", False),
        ("for url (http://127.0.0.1:0/) for url (http://x:99999/)", False),
    ],
)  # fmt: skip
def test_a_refusal_is_recognized_in_the_output(
    monkeypatch: pytest.MonkeyPatch, text: str, refused: bool
) -> None:
    monkeypatch.setattr(addresses, "_current", Guard)
    assert (refusal_in(text) is not None) == refused


# --- help ---------------------------------------------------------------------------------------


def _process_of(proxy: ForwardProxy) -> psutil.Process:
    return psutil.Process(proxy._process.pid)


def _connected(proxy: Access) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=20)


def _shown(proxy: Access) -> str:
    user = httpx.URL(proxy.url).userinfo.decode()
    return f"Proxy-Authorization: {forward_proxy_server._basic(user)}"


def _send(connection: socket.socket, *lines: str) -> None:
    connection.sendall("\r\n".join([*lines, "", ""]).encode())


def _head(connection: socket.socket) -> str:
    found = b""
    while b"\r\n\r\n" not in found:
        part = connection.recv(1)
        if not part:
            break
        found += part
    return found.decode()
