"""uvicorn's HTTP protocol with zero-copy answers: the kernel copies files to sockets.

Offers the ASGI extension `http.response.zerocopysend`, which unlike `http.response.pathsend` sends
ranges, too. `condastore up` serves with it; elsewhere give uvicorn
`--http condastore.http.protocol:HttpProtocol`. Without it, files are read and written in parts.

A download costs two descriptors and no memory. It is cut off where the client takes no byte for a
minute, as every other answer is.
"""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import termios
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from condastore.http.file_responses import PART, ZERO_COPY, Message, Receive, Send, is_in_memory

logger = structlog.get_logger(__name__)
#: Bytes that the kernel is asked to copy at once, in about a millisecond of the event loop; nginx
#: has the same (`sendfile_max_chunk`). With a quarter of it, a download takes a third more time.
WINDOW = 1 << 21
#: Seconds between two looks at a client that takes nothing: by the second one it has taken some, or
#: is given up, as nginx does after a minute (`send_timeout`).
STALLED = 30.0
#: Seconds that a new connection has for its first request while the server stops.
FIRST_REQUEST = 1.0
#: What `sendfile` says of file systems that have none.
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inner: Any = self.app
        self.app = self._serve
        self._copying = False
        self._writable: asyncio.Future[None] | None = None
        self._stopping = False

    def shutdown(self) -> None:
        """Close when the request that runs is answered; a new connection may have its first one.

        That one may be on its way: it would be reset, and no client tries a POST again.
        """
        if self.cycle is not None or self._stopping:
            super().shutdown()
            return
        self._stopping = True
        self.loop.call_later(FIRST_REQUEST, self._shut_down)

    def _shut_down(self) -> None:
        if not self.transport.is_closing():
            self.shutdown()

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        """Run the application with the zero-copy extension, except on encrypted connections."""
        if self._stopping:
            send.__self__.keep_alive = False  # type: ignore[attr-defined]
        if self.scheme != "http" or not hasattr(os, "sendfile"):
            await self._inner(scope, receive, send)
            return
        scope.setdefault("extensions", {})[ZERO_COPY] = {}
        cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]

        async def send_or_copy(message: Message) -> None:
            if message["type"] == ZERO_COPY:
                await self._send_file(cycle, message)
            else:
                await self._wait_for_room()
                await send(message)

        await self._inner(scope, receive, send_or_copy)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wake()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be read, but not in the middle of a file."""
        if self._copying:
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def handle_websocket_upgrade(self) -> None:
        """Change the protocol, but not while an answer is being sent: it would lose its end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
        else:
            super().handle_websocket_upgrade()

    async def _send_file(self, cycle: RequestResponseCycle, message: Message) -> None:
        """Answer `http.response.zerocopysend`; `offset` and `count` are in bytes.

        Raises:
            RuntimeError: the answer has no Content-Length, or `count` is more than that.
            OSError: the file cannot be read.
        """
        if not cycle.response_started or cycle.response_complete or cycle.chunked_encoding:
            raise RuntimeError("A file is sent after the start of an answer with Content-Length.")
        if cycle.scope["method"] != "HEAD":
            file = message["file"].fileno()
            offset = message.get("offset")
            offset = os.lseek(file, 0, os.SEEK_CUR) if offset is None else offset
            count = message.get("count")
            count = os.fstat(file).st_size - offset if count is None else count
            if count > cycle.expected_content_length:
                raise RuntimeError("Response content longer than Content-Length")
            self._copying = True
            try:
                await self._copy(cycle, file, offset, count)
            finally:
                self._copying = False
        more = message.get("more_body", False)
        await cycle.send({"type": "http.response.body", "body": b"", "more_body": more})

    async def _copy(self, cycle: RequestResponseCycle, file: int, offset: int, count: int) -> None:
        """Let the kernel copy; of a file that is shorter than `count`, what there is.

        The socket's descriptor is the transport's, which the event loop watches itself: it is
        written and watched here by another one, which also stays this connection's until the end.
        """
        await self._flush()
        if self.transport.is_closing():
            cycle.disconnected = True
            return
        out = os.dup(self.transport.get_extra_info("socket").fileno())
        try:
            while count:
                size = min(count, WINDOW)
                if not is_in_memory(file, offset + size - 1):
                    size = min(count, PART)
                    await asyncio.to_thread(os.pread, file, size, offset)
                if self.transport.is_closing():
                    cycle.disconnected = True
                    return
                try:
                    sent = os.sendfile(out, file, offset, size)
                except BlockingIOError:
                    await self._wait_until_writable(out)
                    continue
                except (ConnectionError, TimeoutError):
                    cycle.disconnected = True
                    self.transport.abort()
                    return
                except OSError as error:
                    if error.errno not in _NO_SENDFILE:
                        raise
                    sent = await self._write(cycle, file, offset, min(count, PART))
                    cycle.expected_content_length += sent  # counted there, and below
                if not sent:
                    return
                offset, count = offset + sent, count - sent
                cycle.expected_content_length -= sent
                await asyncio.sleep(0)  # other connections have their turn
        finally:
            os.close(out)

    async def _write(self, cycle: RequestResponseCycle, file: int, offset: int, size: int) -> int:
        """Read and write a part where the file system lets the kernel copy nothing."""
        part = await asyncio.to_thread(os.pread, file, size, offset)
        if part:
            await cycle.send({"type": "http.response.body", "body": part, "more_body": True})
            await self._flush()
        return len(part)

    async def _flush(self) -> None:
        """Wait until the transport has written all that it was given."""
        if not self.transport.get_write_buffer_size() or self.transport.is_closing():
            return
        self.transport.set_write_buffer_limits(high=0)
        await self._wait_for_room()
        if not self.transport.is_closing():
            self.transport.set_write_buffer_limits()

    async def _wait_for_room(self) -> None:
        """Wait until the transport takes more; cut off a client that reads nothing."""
        unread: int | None = None
        while self.flow.write_paused and not self.transport.is_closing():
            try:
                async with asyncio.timeout(STALLED):
                    await self.flow.drain()
            except TimeoutError:
                before, unread = unread, self.transport.get_write_buffer_size()
                if before is not None and unread >= before:
                    self._cut_off()
                    return

    async def _wait_until_writable(self, out: int) -> None:
        """Wait until the client has read something, or is gone; cut off one that reads nothing."""
        self.loop.add_writer(out, self._wake)
        unread: int | None = None
        try:
            while True:
                self._writable = self.loop.create_future()
                try:
                    async with asyncio.timeout(STALLED):
                        await self._writable
                    return
                except TimeoutError:
                    # There may be room only after a third of a large buffer was read.
                    before, unread = unread, _unread(out)
                    if before is not None and unread >= before:
                        self._cut_off()
                        return
        finally:
            self.loop.remove_writer(out)
            self._writable = None

    def _cut_off(self) -> None:
        logger.info("download stalled", client=self.client)
        self.transport.abort()

    def _wake(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)


def _unread(descriptor: int) -> int:
    """Bytes that the kernel holds for the client, who has not acknowledged them."""
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.TIOCOUTQ, size)
    return size[0]
