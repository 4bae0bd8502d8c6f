"""Answers that are a range of a file: copied by the kernel where the server offers it.

The server's offer is the ASGI extension `http.response.zerocopysend` (condastore.http.protocol).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse

from condastore.http.handler import Handler
from condastore.http.request_threads import release

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ZERO_COPY = "http.response.zerocopysend"
#: Bytes of one part where the kernel does not copy.
PART = 1 << 18


class FileRange(StreamingHttpResponse):
    """Bytes `first` to `last`, both included, of the file at `path`.

    Iterating reads it in parts; a server that can copy files does not iterate.
    """

    def __init__(
        self, request: HttpRequest, path: Path, first: int, last: int, **options: Any
    ) -> None:
        super().__init__(_file_parts(path, first, last), **options)
        self.path, self.first, self.count = path, first, last - first + 1
        scope = getattr(request, "scope", {})
        self.zero_copy = ZERO_COPY in (scope.get("extensions") or {})
        self["Content-Length"] = str(self.count)


class FileHandler(Handler):
    """The handler of requests, which has the server copy files."""

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        if not isinstance(response, FileRange) or not response.zero_copy:
            await super().send_response(response, send)
            return
        # However short it is: the client may not have read the answers before it.
        await release()
        file = await asyncio.to_thread(open, response.path, "rb", 0)
        with file:

            async def send_file(message: Message) -> None:
                """Send the start as it is; in place of the body, the file."""
                if message["type"] == "http.response.start":
                    await send(message)
                    return
                await send(
                    {
                        "type": ZERO_COPY,
                        "file": file,
                        "offset": response.first,
                        "count": response.count,
                    }
                )

            response.streaming_content = _nothing()
            await super().send_response(response, send_file)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _file_parts(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    try:
        while first <= last:
            size = min(PART, last + 1 - first)
            if is_in_memory(descriptor, first + size - 1):
                part = os.pread(descriptor, size, first)
            else:
                part = await asyncio.to_thread(os.pread, descriptor, size, first)
            if not part:
                break  # cut short: the client sees that bytes are missing
            first += len(part)
            yield part
    finally:
        os.close(descriptor)


def is_in_memory(descriptor: int, offset: int) -> bool:
    """Whether the disk need not be waited for: asking a thread takes longer than such a read.

    Files are read ahead in order, so it is the last byte that is asked for.
    """
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # not there yet, or a system that cannot tell
        return False
