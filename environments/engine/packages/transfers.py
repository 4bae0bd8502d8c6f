"""Parts of one transfer: checks of responses, reading of `file:` URLs, and named pipes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO

import httpx

from condastore.errors import DownloadError
from environments.engine.network.addresses import Guard
from environments.engine.packages.download_types import (
    Download,
    WrongBytes,
)

CHUNK = 256 * 1024  # bytes
PIPE_SIZE = 1 << 20  # bytes; a large pipe buffer, so that reader and writer rarely wait


class TransferInterrupted(Exception):  # noqa: N818  # control flow, not an error of the program
    """A transient failure of the server or the network; retried after at least `pause` seconds."""

    def __init__(self, reason: str, *, pause: float = 0) -> None:
        super().__init__(reason)
        self.pause = pause


class PipeWriter:
    """Writing end of a named pipe, with back pressure from its reader."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    async def open(self, reader: asyncio.Future[bool]) -> None:
        """Wait for a reader; bytes written before it opens the pipe would be lost."""
        while self._descriptor is None and not reader.done():
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                with contextlib.suppress(OSError):  # the user's limit of pipe buffers is reached
                    fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no reader yet
                    raise
                await asyncio.sleep(0.001)

    async def write(self, chunk: bytes) -> None:
        """Write all of `chunk`, as long as there is a reader."""
        rest = memoryview(chunk)
        while rest and self._descriptor is not None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                await self._writable(self._descriptor)
            except BrokenPipeError:
                await self.aclose()

    async def _writable(self, descriptor: int) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(descriptor)

    async def aclose(self) -> None:
        """Close the pipe; a reader that was about to open it does not wait forever."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        os.close(self._descriptor)
        self._descriptor = None


def check_status(answer: httpx.Response, download: Download) -> None:
    status = answer.status_code
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        return
    if status in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise DownloadError(
            f"{download.name} no longer exists in its channel.",
            where=download.url,
            hint="Solve again, or ask the channel's owner for the package.",
            details={"gone": True},
        )
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise DownloadError(
            f"The server denies access to {download.name} (status {status}).",
            where=download.url,
            hint="Ask an administrator to store or renew the credentials of the channel.",
        )
    if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise WrongBytes("the partial file is longer than the channel's file")
    if status >= 500 or status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
        after = answer.headers.get("retry-after", "")
        raise TransferInterrupted(
            f"the server responded with status {status}",
            pause=float(after) if after.isdigit() else 0,
        )
    raise DownloadError(
        f"{download.name} could not be fetched: the server responded with status {status}.",
        where=download.url,
    )


def check_length(answer: httpx.Response, download: Download, *, held: int) -> None:
    """Refuse a body that is announced with a wrong size before reading it."""
    announced = answer.headers.get("content-length", "")
    if not announced.isdigit() or answer.headers.get("content-encoding", "identity") != "identity":
        return
    total = held + int(announced)
    if download.size and total != download.size:
        raise WrongBytes(f"{total} bytes instead of {download.size}")


def continues_at(answer: httpx.Response, start: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    return found is not None and int(found[1]) == start


async def read_file(
    download: Download, within: Guard, start: int
) -> AsyncGenerator[bytes | None, None]:
    """Read a `file:` URL in pieces. It is copied, so that it cannot change after the check.

    Raises:
        FileRefusedError: it is not in a folder that may be read.
        DownloadError: it does not exist, or is not a file.
    """
    path = within.path(download.url)
    try:
        with path.open("rb") as file:
            file.seek(start)
            while chunk := await asyncio.to_thread(file.read, CHUNK * 4):
                yield chunk
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DownloadError(
            f"{download.name} no longer exists in its channel.",
            where=download.url,
            details={"gone": True},
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise DownloadError(
            f"{download.name} cannot be read.",
            where=download.url,
            hint="Check that it is a file that the user of condastore may read.",
        ) from error


def hash_file(file: IO[bytes], hasher: hashlib._Hash | None) -> int:
    """Feed the contents of `file` to `hasher`; return the number of bytes."""
    if hasher is None:
        return file.seek(0, os.SEEK_END)
    file.seek(0)
    while chunk := file.read(CHUNK * 4):
        hasher.update(chunk)
    return file.tell()
