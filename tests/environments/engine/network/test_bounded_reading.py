"""Bounded reading: size, ratio, rate, deadline and cancellation end every response."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta

import httpx
import psutil
import pytest
import zstandard

from condastore.errors import LeaseLostError, TimeLimitError
from environments.engine.network.bounded_reading import (
    CHUNK,
    Meter,
    ReadLimits,
    SlowTransferError,
    TooLargeError,
    TransferError,
    Unpacker,
    read,
    run,
    stream,
)
from tests.channels.hostile_server import (
    Asked,
    Script,
    dribble,
    endless,
    gzip_spaces,
    head,
    hostile,
    whole,
)

QUICK = ReadLimits(silence=timedelta(seconds=1), rate=1000, size=8 << 20)
GENEROUS = 60  # seconds: far more than a limit, far less than the answer would take


def fetched(script: Script, limits: ReadLimits = QUICK) -> bytes:
    async def fetch(url: str) -> bytes:
        async with (
            httpx.AsyncClient(timeout=limits.timeout) as client,
            stream(client, "GET", url, headers={}, limits=limits) as answer,
        ):
            return b"".join([part async for part in read(answer, limits)])

    with hostile(script) as server:
        return run(fetch(server.url), deadline=time.monotonic() + GENEROUS)


def test_an_answer_within_the_limits_is_read() -> None:
    assert fetched(lambda asked: whole(b"hello")) == b"hello"


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(b"hello " * 1000, mtime=0)),
        ("gzip", gzip.compress(b"hello " * 400, mtime=0) + gzip.compress(b"hello " * 600, mtime=0)),
        ("deflate", zlib.compress(b"hello " * 1000)),
        ("deflate", zlib.compress(b"hello " * 1000)[2:-4]),
    ],
)
def test_an_encoded_answer_is_unpacked(encoding: str, content: bytes) -> None:
    found = fetched(lambda asked: whole(content, Content_Encoding=encoding))
    assert found == b"hello " * 1000


@pytest.mark.parametrize(
    "script",
    [
        lambda asked: dribble(b"", first=head(Content_Length=1000), pause=0.05),
        lambda asked: dribble(head(Content_Length=1000), pause=0.05),
        lambda asked: dribble(b"", first=head(Content_Length=100) + b"x", pause=600),
        lambda asked: iter([600.0]),
    ],
    ids=["body", "head", "silence", "nothing"],
)
def test_a_slow_or_silent_server_is_disconnected(script: Script) -> None:
    with pytest.raises((SlowTransferError, httpx.ReadTimeout)):
        fetched(script)


def test_an_endless_answer_is_cut_at_the_limit() -> None:
    with pytest.raises(
        TooLargeError, match=r"than 8,388,608 bytes \(CONDASTORE_MAX_REPODATA_BYTES"
    ):
        fetched(lambda asked: endless(head()))


def test_the_bodies_of_redirects_are_not_read() -> None:
    def script(asked: Asked) -> Iterator[bytes | float]:
        if asked.path == "there":
            return whole(b"hello")
        return endless(head("302 Found", Location="/there"))

    assert fetched(script) == b"hello"


def test_a_circle_of_redirects_ends() -> None:
    with pytest.raises(httpx.TooManyRedirects):
        fetched(lambda asked: iter([head("302 Found", Location="/", Content_Length=0)]))


def test_a_bomb_is_cut_before_it_fills_the_memory() -> None:
    before = psutil.Process().memory_info().rss
    limits = ReadLimits(size=1 << 40)
    packed = gzip_spaces(1 << 30)
    with pytest.raises(TooLargeError, match="100 times its size"):
        fetched(lambda asked: whole(packed, Content_Encoding="gzip"), limits)
    assert psutil.Process().memory_info().rss - before < 256 << 20


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("gzip", b"nonsense"), ("gzip", gzip.compress(b"x" * 10_000, mtime=0)[:20]), ("br", b"x")],
)
def test_malformed_data_is_an_error(encoding: str, content: bytes) -> None:
    with pytest.raises(httpx.DecodingError):
        fetched(lambda asked: whole(content, Content_Encoding=encoding))


def test_only_the_wait_for_the_server_counts_towards_its_rate() -> None:
    meter = Meter(QUICK)
    for _ in range(100):
        meter.add(1, waited=0)
    for _ in range(9):
        meter.add(10, waited=0.1)
    with pytest.raises(TransferError):
        meter.add(10, waited=0.2)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(bytes(64 << 20), mtime=0)),
        ("bz2", bz2.compress(bytes(8 << 20)) + bz2.compress(bytes(56 << 20))),
        ("zst", zstandard.compress(bytes(8 << 20)) + zstandard.compress(bytes(56 << 20))),
    ],
)
def test_a_bomb_is_unpacked_in_bounded_pieces(encoding: str, content: bytes) -> None:
    unpacker = Unpacker(encoding)
    sizes = [len(piece) for piece in unpacker.feed(content)]
    unpacker.end()
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= (CHUNK if encoding != "zst" else 32 << 20)


def test_a_truncated_file_is_an_error() -> None:
    for encoding, content in (
        ("bz2", bz2.compress(b"x" * 1000)),
        ("zst", zstandard.compress(bytes(range(256)) * 10)),
    ):
        unpacker = Unpacker(encoding)
        list(unpacker.feed(content[:-8]))
        with pytest.raises(ValueError, match="is truncated"):
            unpacker.end()


async def _forever() -> None:
    await asyncio.sleep(3600)


def test_work_of_a_thread_ends_when_it_is_cancelled() -> None:
    answers = iter([False, False, True])
    with pytest.raises(LeaseLostError):
        run(_forever(), cancelled=lambda: next(answers))


def test_work_of_a_thread_ends_at_its_deadline() -> None:
    with pytest.raises(TimeLimitError):
        run(_forever(), deadline=time.monotonic() + 0.2)


def test_what_the_work_raises_is_raised_in_the_thread_that_waits() -> None:
    async def fail() -> None:
        raise TimeoutError("of the work itself")

    with pytest.raises(TimeoutError, match="of the work itself"):
        run(fail())


def test_a_cancelled_request_leaves_no_connection_open() -> None:
    def script(asked: object) -> Iterator[bytes | float]:
        return dribble(b"", first=head(Content_Length=1000), pause=0.2)

    async def fetch(url: str) -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", url) as answer:
            async for _ in read(answer, ReadLimits()):
                pass

    with hostile(script) as server:
        with pytest.raises(LeaseLostError):
            run(fetch(server.url), cancelled=lambda: bool(server.requests))
        end = time.monotonic() + GENEROUS
        while server.open and time.monotonic() < end:
            time.sleep(0.05)
        assert not server.open
