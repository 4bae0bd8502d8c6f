"""Bounded reading of untrusted servers' responses: deadline, minimum rate, size, ratio, cancel.

For code that fetches with `httpx`:

- `ReadLimits`: how long a server may be silent, how fast it must send, and how much;
- `read(answer, limits)` yields the body of a streamed response, decompressed, in small pieces;
- `read_raw(answer, limits)` yields it as sent: for digests, and for files that a confined process
  decompresses with `Unpacker`;
- `stream(client, method, url, headers=..., limits=...)` opens a response, also behind redirects,
  and limits the wait for its headers, however slowly they arrive. Use it instead of
  `client.stream`: httpx reads the whole body of each redirect into memory before it follows;
- `headers_within(limits)` is that limit alone;
- `run(work, cancelled=..., deadline=...)` runs a coroutine for a thread, and ends it within `POLL`
  seconds of a cancellation or of the deadline;
- `Meter` counts one transfer for other readers: `meter.add(size, waited=seconds)`.

Only the time spent waiting for the server counts towards the rate: a slow disk or pipe on our side
does not count. Send `ACCEPT_ENCODING` with requests whose response `read` reads.

All raise `SlowTransferError` or `TooLargeError` (`TransferError`), whose text is a predicate about
the response that names the setting; callers put it into their own error.
"""

from __future__ import annotations

import asyncio
import bz2
import threading
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import httpx

from condastore.errors import TimeLimitError
from environments.domain.progress import Cancelled, never, obey
from environments.domain.unpacking import FREE_BYTES

Answer = TypeVar("Answer")

POLL = 0.1  # seconds between two checks of cancellation
CHUNK = 256 << 10  # bytes; the largest piece that is decompressed at once, except for zstd
ACCEPT_ENCODING = "gzip, deflate"
#: Bytes of zstd input per step: 1 KiB of blocks of one repeated byte decompresses to 32 MiB.
_ZSTD_SLICE = 1 << 10
_MAX_REDIRECTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """Limits on one transfer.

    Attributes:
        silence: longest wait for a connection, for the headers of a response, and between two
            pieces; also the time over which the rate is measured.
        rate: minimum bytes per second, averaged over `silence`; 0 for no minimum.
        size: maximum bytes of the body, both as sent and decompressed.
        ratio: maximum decompressed bytes per byte sent, above `FREE_BYTES`.
        size_setting: name of the setting that `size` comes from, for messages.
    """

    silence: timedelta = timedelta(seconds=30)
    rate: int = 1024
    size: int = 4 << 30
    ratio: int = 100
    size_setting: str = "CONDASTORE_MAX_REPODATA_BYTES"

    @property
    def timeout(self) -> httpx.Timeout:
        """The timeout of an httpx client, for each connection, read and write."""
        return httpx.Timeout(self.silence.total_seconds())


class TransferError(Exception):
    """A response exceeds a limit; the text is a predicate about it."""


class SlowTransferError(TransferError):
    """The server sends less than the minimum rate, or its response does not begin."""


class TooLargeError(TransferError):
    """The response has, or decompresses to, too many bytes."""


class Meter:
    """Counter of the bytes of one transfer, with its limits."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._waited = 0.0  # seconds of the current window
        self._arrived = 0  # bytes of the current window
        self.received = 0
        self.unpacked = 0

    def add(self, size: int, *, waited: float) -> None:
        """Count bytes that arrived after waiting `waited` seconds for them.

        Raises:
            SlowTransferError: the rate over a whole window is below the minimum.
            TooLargeError: the total size exceeds the limit.
        """
        self.received += size
        if self.received > self._limits.size:
            raise TooLargeError(_too_large(self._limits))
        self._arrived += size
        self._waited += waited
        if self._waited >= self._limits.silence.total_seconds():
            if self._arrived < self._limits.rate * self._waited:
                raise SlowTransferError(
                    f"sends less than {self._limits.rate:,} bytes per second "
                    "(CONDASTORE_DOWNLOAD_MIN_RATE)"
                )
            self._waited, self._arrived = 0.0, 0

    def add_unpacked(self, size: int) -> None:
        """Count decompressed bytes.

        Raises:
            TooLargeError: the size or the ratio exceeds its limit.
        """
        self.unpacked += size
        if self.unpacked > self._limits.size:
            raise TooLargeError(_too_large(self._limits))
        if self.unpacked > max(FREE_BYTES, self.received * self._limits.ratio):
            raise TooLargeError(
                f"unpacks to more than {self._limits.ratio} times its size "
                "(CONDASTORE_MAX_UNPACKED_RATIO)"
            )


def _too_large(limits: ReadLimits) -> str:
    return f"is larger than {limits.size:,} bytes ({limits.size_setting})"


class Unpacker:
    """Decompressor of data that arrives in pieces; bounded output per step, whatever the ratio.

    gzip and bz2 data may have several members, zstd data several frames.
    """

    def __init__(self, encoding: str) -> None:
        """
        Args:
            encoding: "", "identity", "gzip", "deflate", "bz2" or "zst".
        Raises:
            ValueError: the encoding is not supported.
        """
        self._encoding = encoding.strip().lower().removeprefix("x-") or "identity"
        self._begun = False
        self._packer: Any = self._new()

    def _new(self, *, raw: bool = False) -> Any:
        match self._encoding:
            case "identity":
                return None
            case "gzip":
                return zlib.decompressobj(31)
            case "deflate":
                return zlib.decompressobj(-15 if raw else 15)
            case "bz2":
                return bz2.BZ2Decompressor()
            case "zst":
                import zstandard  # not installed in node agents, which never need it

                return zstandard.ZstdDecompressor().decompressobj()
        raise ValueError(f"has an unsupported encoding: {self._encoding[:40]!r}")

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed data.

        Raises:
            ValueError: the data is malformed.
        """
        try:
            yield from self._feed(data)
        except (zlib.error, OSError, EOFError) as error:
            raise ValueError(f"cannot be decompressed: {error}") from error

    def end(self) -> None:
        """Raise ValueError if the data is incomplete."""
        if self._packer is not None and not self._packer.eof and self._begun:
            raise ValueError("is truncated")

    def _feed(self, data: bytes) -> Iterator[bytes]:
        if self._packer is None:
            yield data
        elif self._encoding == "zst":
            for start in range(0, len(data), _ZSTD_SLICE):
                yield from self._frames(data[start : start + _ZSTD_SLICE])
        elif self._encoding == "bz2":
            yield from self._bz2(data)
        else:
            yield from self._zlib(data)

    def _frames(self, rest: bytes) -> Iterator[bytes]:
        from zstandard import ZstdError

        while rest:
            if self._packer.eof:
                self._packer = self._new()
            self._begun = True
            try:
                piece = self._packer.decompress(rest)
            except ZstdError as error:
                raise ValueError(f"cannot be decompressed: {error}") from error
            yield piece
            rest = self._packer.unused_data if self._packer.eof else b""

    def _zlib(self, rest: bytes) -> Iterator[bytes]:
        while rest:
            if self._packer.eof:
                self._packer = self._new()
            try:
                piece = self._packer.decompress(rest, CHUNK)
            except zlib.error:
                if self._encoding != "deflate" or self._begun:
                    raise
                self._packer = self._new(raw=True)  # some servers omit the zlib header
                piece = self._packer.decompress(rest, CHUNK)
            self._begun = True
            yield piece
            rest = self._packer.unused_data if self._packer.eof else self._packer.unconsumed_tail

    def _bz2(self, rest: bytes) -> Iterator[bytes]:
        while True:
            if self._packer.eof:
                if not rest:
                    return
                self._packer = self._new()
            self._begun = True
            yield self._packer.decompress(rest, CHUNK)
            rest = self._packer.unused_data if self._packer.eof else b""
            if not self._packer.eof and self._packer.needs_input:
                return


@asynccontextmanager
async def headers_within(limits: ReadLimits) -> AsyncIterator[None]:
    """Limit the wait for the headers of a response, which may arrive one byte at a time.

    Raises:
        SlowTransferError: they did not arrive in time.
    """
    seconds = limits.silence.total_seconds()
    clock = asyncio.timeout(seconds)
    try:
        async with clock:
            yield
    except TimeoutError as error:
        if not clock.expired():
            raise
        raise SlowTransferError(
            f"did not begin within {seconds:g} s (CONDASTORE_DOWNLOAD_TIMEOUT)"
        ) from error


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    limits: ReadLimits,
) -> AsyncIterator[httpx.Response]:
    """Open a response and follow redirects, of which only the headers are read.

    Raises:
        SlowTransferError: the headers did not arrive in time.
        httpx.HTTPError, httpx.InvalidURL: the request failed.
    """
    async with headers_within(limits):
        request = client.build_request(method, url, headers=dict(headers))
        for _ in range(_MAX_REDIRECTS):
            answer = await client.send(request, stream=True, follow_redirects=False)
            if answer.next_request is None:
                break
            request = answer.next_request
            await answer.aclose()
        else:
            raise httpx.TooManyRedirects("Too many redirects", request=request)
    try:
        yield answer
    finally:
        await answer.aclose()


async def read_raw(
    answer: httpx.Response, limits: ReadLimits, *, meter: Meter | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the body of a streamed `answer` as it was sent.

    Raises:
        SlowTransferError, TooLargeError: it exceeds `limits`.
        httpx.TransportError: the connection failed.
    """
    meter = meter or Meter(limits)
    pieces = answer.aiter_raw()
    while True:
        started = time.monotonic()
        try:
            piece = await anext(pieces)
        except StopAsyncIteration:
            return
        meter.add(len(piece), waited=time.monotonic() - started)
        yield piece


async def read(answer: httpx.Response, limits: ReadLimits) -> AsyncGenerator[bytes, None]:
    """Yield the body of a streamed `answer`, decompressed according to its Content-Encoding.

    Raises:
        SlowTransferError, TooLargeError: it exceeds `limits`.
        httpx.TransportError: the connection failed.
        httpx.DecodingError: it is malformed or truncated.
    """
    meter = Meter(limits)
    try:
        unpacker = Unpacker(answer.headers.get("content-encoding", ""))
        async for piece in read_raw(answer, limits, meter=meter):
            for part in unpacker.feed(piece):
                meter.add_unpacked(len(part))
                if part:
                    yield part
        unpacker.end()
    except ValueError as error:
        raise httpx.DecodingError(str(error), request=answer.request) from error


def run(
    work: Coroutine[Any, Any, Answer],
    *,
    cancelled: Cancelled = never,
    deadline: float | None = None,
) -> Answer:
    """Run `work` in an event loop in a new thread; `cancelled` is called in the current thread.

    Args:
        deadline: a value of `time.monotonic()`.
    Raises:
        LeaseLostError: `cancelled` returned True.
        TimeLimitError: `deadline` passed.
    """
    outcome: Future[Answer] = Future()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Answer]]] = Future()

    async def main() -> Answer:
        task = asyncio.ensure_future(work)
        started.set_result((asyncio.get_running_loop(), task))
        return await task

    def serve() -> None:
        try:
            outcome.set_result(asyncio.run(main()))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=serve, name="bounded-reading", daemon=True).start()
    loop, task = started.result()
    try:
        while not _ended_within(outcome, POLL):
            obey(cancelled)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeLimitError("The server did not respond within the time limit.")
    except BaseException:
        if not outcome.done():
            loop.call_soon_threadsafe(task.cancel)
        raise
    return outcome.result()


def _ended_within(outcome: Future[Any], seconds: float) -> bool:
    try:
        outcome.exception(timeout=seconds)
    except TimeoutError:
        return outcome.done()
    return True
