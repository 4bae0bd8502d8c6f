"""A server on raw sockets, for answers that no HTTP library would send.

::

    with hostile(lambda request: dribble(head())) as server:
        ...  # server.url

A script is given each request and yields what is sent: bytes, and pauses in seconds. When it ends,
the connection is closed.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    method: str
    path: str  # without the leading slash
    at: float = field(default_factory=time.monotonic)


Script = Callable[[Asked], Iterator[bytes | float]]


class HostileServer:
    """Runs a script for each connection, in a thread of its own."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self._stopping = threading.Event()
        self.requests: list[Asked] = []
        self.open = 0  # connections that have not ended
        self._guard = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The root, without a slash at its end."""
        return f"http://{LOOPBACK}:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with self._guard:
            self.open += 1
            self._connections.add(connection)
        try:
            with contextlib.suppress(OSError), connection:
                received = b""
                while b"\r\n\r\n" not in received:
                    part = connection.recv(65536)
                    if not part:
                        return
                    received += part
                method, target = received.split(b"\r\n", 1)[0].decode().split(" ")[:2]
                requested = Asked(method, target.partition("?")[0].lstrip("/"))
                self.requests.append(requested)
                for step in self._script(requested):
                    if isinstance(step, bytes):
                        connection.sendall(step)
                    elif self._stopping.wait(step):
                        return
        finally:
            with self._guard:
                self.open -= 1
                self._connections.discard(connection)


@contextlib.contextmanager
def hostile(script: Script) -> Iterator[HostileServer]:
    server = HostileServer(script)
    try:
        yield server
    finally:
        server.close()


def head(status: str = "200 OK", **fields: str | int) -> bytes:
    """The head of an answer; `Content_Length=5` becomes `Content-Length: 5`."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode()


def missing() -> Iterator[bytes | float]:
    yield head("404 Not Found", Content_Length=0)


def whole(content: bytes, **fields: str | int) -> Iterator[bytes | float]:
    yield head("200 OK", Content_Length=len(content), **fields) + content


def dribble(content: bytes, *, pause: float = 1.0, first: bytes = b"") -> Iterator[bytes | float]:
    """`first` at once, then `content` byte by byte, and spaces when that is over."""
    yield first
    for byte in content:
        yield bytes([byte])
        yield pause
    while True:
        yield b" "
        yield pause


def endless(first: bytes, part: bytes = b" " * 65536) -> Iterator[bytes | float]:
    yield first
    while True:
        yield part


@functools.cache
def gzip_spaces(size: int) -> bytes:
    """`size` spaces in one member of gzip, some 200 times smaller."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    piece = b" " * (1 << 20)
    parts = [packer.compress(piece) for _ in range(size >> 20)]
    return b"".join([*parts, packer.flush()])
