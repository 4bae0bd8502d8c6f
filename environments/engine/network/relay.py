"""Relay of bytes between two sockets, with a minimum rate of the server."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

from environments.engine.network.forward_proxy import Pace

_CHUNK = 1 << 20  # bytes


def prepare(connection: socket.socket) -> None:
    """Remove the timeout: from now on `Watch` or the client ends the connection."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Watch:
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
def answering(upstream: socket.socket, connection: socket.socket, watch: Watch) -> Iterator[None]:
    """Relay data from the server in a thread during the block; then close the connection.

    Both sockets stay open until the thread has ended, so that their numbers cannot be reused.
    """

    def answer() -> None:
        relay(upstream, connection, wait=watch.wait, arrived=watch.arrived)
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


def relay(
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
