"""Files that the kernel copies to a connection: every byte, and nothing left of those that end."""

from __future__ import annotations

import errno
import http.client
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn

from condastore.http import protocol
from condastore.http.protocol import HttpProtocol
from tests.services.processes import free_ports, wait_for

#: More than the kernel keeps for a client that does not read.
SIZE = 24_000_000
SMALL = 1000


@dataclass
class Web:
    """A server of one file, `/FIRST-LAST` of it, and how many requests it still answers."""

    path: Path
    content: bytes
    port: int = 0
    answering: int = 0
    failed: list[BaseException] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        assert "http.response.zerocopysend" in scope["extensions"]
        kind, _, location = scope["path"].strip("/").partition("/")
        first, last = (int(one) for one in location.split("-"))
        size = last - first + 1
        reported = size + 10 if kind == "longer" else size
        headers = [(b"content-length", str(reported).encode())]
        self.answering += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            with self.path.open("rb", buffering=0) as file:
                message = {"type": "http.response.zerocopysend", "file": file}
                if kind == "mixed":
                    head, tail = self.content[first : first + 5], self.content[last : last + 1]
                    body: dict[str, Any] = {"type": "http.response.body", "more_body": True}
                    await send(body | {"body": head})
                    await send(message | {"offset": first + 5, "count": size - 6} | _MORE)
                    await send(body | {"body": tail, "more_body": False})
                elif kind == "rest":  # from where the file stands, to its end
                    file.seek(first)
                    await send(message)
                else:
                    await send(message | {"offset": first, "count": size})
        except BaseException as error:
            self.failed.append(error)
            raise
        finally:
            self.answering -= 1

    def get(self, place: str, *, connection: http.client.HTTPConnection | None = None) -> bytes:
        if connection is not None:
            connection.request("GET", place)
            return connection.getresponse().read()
        with closing(self.connect()) as connection:
            return self.get(place, connection=connection)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, text: str) -> socket.socket:
        """Send a request, and read nothing yet."""
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        opened.sendall(text.encode())
        return opened


_MORE = {"more_body": True}


@contextmanager
def serving(web: Web, loop: Any) -> Iterator[uvicorn.Server]:
    (web.port,) = free_ports()
    config = uvicorn.Config(
        web,
        port=web.port,
        log_level="critical",
        lifespan="off",
        http=HttpProtocol,
        loop=loop,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "file"
    path.write_bytes(secrets.token_bytes(SIZE))
    return path


@pytest.fixture(params=["uvloop", "asyncio"])
def web(request: pytest.FixtureRequest, file: Path) -> Iterator[Web]:
    web = Web(file, file.read_bytes())
    with serving(web, request.param):
        yield web


def whole(size: int = SIZE) -> str:
    return f"0-{size - 1}"


def get_of(place: str) -> str:
    return f"GET {place} HTTP/1.1\r\nHost: here\r\n\r\n"


def test_each_range_is_exact_on_one_connection(web: Web) -> None:
    with closing(web.connect()) as connection:
        for first, last in ((0, 0), (0, SIZE - 1), (7, 70_000), (SIZE - 1, SIZE - 1), (5, 4)):
            got = web.get(f"/file/{first}-{last}", connection=connection)
            assert got == web.content[first : last + 1]
            socket_of_first = connection.sock
        assert connection.sock is socket_of_first


def test_bodies_and_files_may_follow_each_other(web: Web) -> None:
    assert web.get(f"/mixed/3-{SIZE - 4}") == web.content[3 : SIZE - 3]
    assert web.get(f"/rest/9-{SIZE - 1}") == web.content[9:]


def test_a_head_has_no_body(web: Web) -> None:
    with closing(web.connect()) as connection:
        connection.request("HEAD", f"/file/{whole()}")
        answer = connection.getresponse()
        assert (answer.getheader("Content-Length"), answer.read()) == (str(SIZE), b"")
        assert web.get(f"/file/{whole()}", connection=connection) == web.content


def test_pipelined_requests_are_answered_in_order(web: Web) -> None:
    with web.ask(get_of(f"/file/{whole()}") * 2 + get_of("/file/0-3")) as opened:
        reader = opened.makefile("rb")
        for size in (SIZE, SIZE, 4):
            length = 0
            while (line := reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length"):
                    length = int(line.partition(b":")[2])
            assert length == size
            assert reader.read(size) == web.content[:size]


def test_many_at_once_get_their_own_bytes(web: Web) -> None:
    locations = [(number * 1000, SIZE - number) for number in range(24)]
    with ThreadPoolExecutor(len(locations)) as threads:
        got = threads.map(lambda place: web.get(f"/file/{place[0]}-{place[1] - 1}"), locations)
        for (first, end), content in zip(locations, got, strict=True):
            assert content == web.content[first:end]


def test_a_client_that_goes_away_leaves_nothing(web: Web) -> None:
    web.get("/file/0-1")
    before = psutil.Process().num_fds()
    opened = [web.ask(get_of(f"/file/{whole()}")) for _ in range(8)]
    wait_for(lambda: web.answering == len(opened))
    assert all(len(one.recv(1000)) for one in opened)
    for one in opened:
        one.close()
    wait_for(lambda: web.answering == 0)
    wait_for(lambda: psutil.Process().num_fds() <= before)
    assert web.failed == []
    assert web.get(f"/file/{whole()}") == web.content


def test_a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALLED", 0.3)
    with web.ask(get_of(f"/file/{whole()}")) as idle, web.ask(get_of(f"/file/{whole()}")) as slow:
        wait_for(lambda: web.answering == 2)
        until, got = time.monotonic() + 2.5, bytearray()
        while time.monotonic() < until:  # 60 KB in each tenth of a second: seldom room for more
            got += slow.recv(60_000)
            time.sleep(0.1)
        wait_for(lambda: web.answering == 1)
        with suppress(ConnectionResetError):
            while idle.recv(1 << 20):
                pass
        while part := slow.recv(1 << 20):
            got += part
            if got.endswith(web.content[-100:]):
                break
    assert bytes(got).partition(b"\r\n\r\n")[2] == web.content


def test_an_upgrade_asked_for_while_a_file_is_sent_ends_the_connection(web: Web) -> None:
    upgrade = (
        "GET /file/0-9 HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    got = bytearray()
    with web.ask(get_of(f"/file/{whole()}") + upgrade) as connection, suppress(ConnectionError):
        while part := connection.recv(1 << 20):
            got += part
    assert b"HTTP/1.1 101" not in got
    wait_for(lambda: not web.answering)


@pytest.mark.parametrize("place", ["/longer/0-99", f"/file/100-{SIZE + 100}"])
def test_what_is_shorter_than_was_said_ends_the_connection(web: Web, place: str) -> None:
    with pytest.raises(http.client.IncompleteRead):
        web.get(place)


def test_a_file_system_without_sendfile_is_read_in_parts(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refused)
    with closing(web.connect()) as connection:
        for _ in range(2):
            assert web.get(f"/file/5-{SIZE - 1}", connection=connection) == web.content[5:]


def test_a_disk_that_fails_ends_that_download_only(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "sendfile", failing)
        with pytest.raises(http.client.IncompleteRead):
            web.get(f"/file/{whole()}")
    assert web.get(f"/file/{whole()}") == web.content


def test_what_cannot_be_read_is_not_answered_inside_a_file(web: Web) -> None:
    with web.ask(get_of(f"/file/{whole()}")) as opened:
        wait_for(lambda: web.answering == 1)
        got = bytearray(opened.recv(1000))
        opened.sendall(b"no HTTP at all\r\n\r\n")
        wait_for(lambda: web.answering == 0)
        with suppress(ConnectionResetError):
            while part := opened.recv(1 << 20):
                got += part
    body = bytes(got).partition(b"\r\n\r\n")[2]
    assert len(body) < SIZE
    assert body == web.content[: len(body)]


def test_a_stop_waits_for_downloads_no_longer_than_its_grace(file: Path) -> None:
    web = Web(file, file.read_bytes())
    with serving(web, "uvloop") as server, web.ask(get_of(f"/file/{whole()}")):
        wait_for(lambda: web.answering == 1)
        server.should_exit = True
        wait_for(lambda: web.answering == 0)


def test_memory_stays_the_same_whatever_is_sent(web: Web) -> None:
    web.get(f"/file/{whole()}")
    opened = [web.ask(get_of(f"/file/{whole()}")) for _ in range(2)]
    wait_for(lambda: web.answering == 2)
    before = psutil.Process().memory_info().rss
    opened += [web.ask(get_of(f"/file/{whole()}")) for _ in range(30)]
    wait_for(lambda: web.answering == 32)
    assert psutil.Process().memory_info().rss - before < SIZE / 4
    for one in opened:
        one.close()
    wait_for(lambda: web.answering == 0)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_first_request_of_a_new_connection_is_answered_while_the_server_stops(
    file: Path, loop: str
) -> None:
    web = Web(file, file.read_bytes())
    with serving(web, loop) as server, closing(web.connect()) as connection:
        connection.connect()
        wait_for(lambda: server.server_state.connections)
        server.should_exit = True
        time.sleep(0.3)  # it looks ten times a second whether to stop
        connection.request("GET", "/file/0-9")
        answer = connection.getresponse()
        assert answer.read() == web.content[:10]
        assert answer.getheader("Connection") == "close"


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_connection_without_a_request_holds_up_no_stop(file: Path, loop: str) -> None:
    web = Web(file, b"")
    with serving(web, loop) as server, closing(web.connect()) as connection:
        connection.connect()
        wait_for(lambda: server.server_state.connections)
        server.should_exit = True
        wait_for(lambda: not server.server_state.connections)
