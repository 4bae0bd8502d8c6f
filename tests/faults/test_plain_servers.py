"""Channels on a plain web server, which has no ETags and answers 304 without a date."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from environments.domain.progress import never
from environments.engine.channels.jobs import Described
from environments.engine.channels.repodata import Channels
from environments.engine.solve.client import RattlerSolver
from tests.channels.hostile_server import Asked, head, hostile, missing, whole
from tests.environments.engine.solver_fixtures import NO_MEMO, solve, versions


@contextlib.contextmanager
def plain_server(folder: Path) -> Iterator[str]:
    """`python -m http.server` over a folder; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=5).close()
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def url(own_channel: Path) -> Iterator[str]:
    # Without a max-age, what was cached counts as fresh for a tenth of its age: these are new.
    indexes = list(own_channel.glob("*/repodata_shards.msgpack.zst"))
    assert indexes
    for path in indexes:
        path.touch()
    with plain_server(own_channel) as found:
        yield found


@contextlib.contextmanager
def opened(cache: Path) -> Iterator[RattlerSolver]:
    """A solver whose process has nothing in memory, as after a restart."""
    solver = RattlerSolver(cache=cache, channels=Channels(cache=cache, memo=NO_MEMO))
    try:
        yield solver
    finally:
        solver.close()


def test_a_channel_with_shards_stays_readable_for_the_next_process(
    url: str, tmp_path: Path
) -> None:
    cache = tmp_path / "repodata"
    for _ in range(3):
        with opened(cache) as solver:
            assert versions(solve(solver, "libalpha", channels=[url])) == {"libalpha": "2.1"}


def test_a_channel_whose_shards_are_never_sent_is_read_without_them(
    own_channel: Path, tmp_path: Path
) -> None:
    requested: list[str] = []

    def script(request: Asked) -> Iterator[bytes | float]:
        requested.append(f"{request.method} {request.path.rpartition('/')[2]}")
        path = own_channel / request.path
        if request.path.endswith("/repodata_shards.msgpack.zst"):
            if request.method == "HEAD":
                return iter([head("200 OK", Content_Length=9, ETag='"1"')])
            return iter([head("304 Not Modified")])  # whatever was asked
        if request.method != "GET" or not path.is_file():
            return missing()
        return whole(path.read_bytes(), ETag='"1"')

    with hostile(script) as server, opened(tmp_path / "repodata") as solver:
        for _ in range(2):
            found = solve(solver, "libalpha", channels=[server.url])
            assert versions(found) == {"libalpha": "2.1"}
    assert "GET repodata_shards.msgpack.zst" in requested
    assert any(line.startswith("GET repodata.json") for line in requested)


def test_reading_for_search_recovers_too(url: str, tmp_path: Path) -> None:
    cache = tmp_path / "repodata"
    for _ in range(2):
        found: list[Described] = []
        with opened(cache) as solver:
            solver.describe(
                url,
                ["linux-64"],
                each=found.append,
                cancelled=never,
                time_limit=timedelta(minutes=2),
            )
        assert "libalpha" in {described.entry.name for described in found}
