"""Repodata bombs in solves: bounded memory."""

from __future__ import annotations

import bz2
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zstandard

from condastore.errors import ChannelUnavailableError, MemoryLimitError
from environments.engine.channels.repodata import Channels
from environments.engine.network.bounded_reading import ReadLimits
from environments.engine.solve.client import RattlerSolver
from tests.channels.hostile_server import Asked, Script, hostile, missing, whole
from tests.environments.engine.solver_fixtures import NO_MEMO, solve

SIZE = 2 << 30
LIMITS = ReadLimits(size=64 << 20)
MEMORY = 400 << 20
#: Bytes that a process of the solver may hold beyond what ends it: it is looked at now and then.
SLACK = 1 << 30
EMPTY = json.dumps({"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": {}}).encode()


@functools.cache
def zst_spaces() -> bytes:
    packer = zstandard.ZstdCompressor().compressobj()
    piece = b" " * (1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(SIZE >> 20)), packer.flush()])


@functools.cache
def bz2_spaces() -> bytes:
    return bz2.compress(b" " * (192 << 20))  # packing takes long


def files(content: Mapping[str, bytes]) -> Script:
    """Serve these by the end of their path; all else is missing."""

    def script(asked: Asked) -> Iterator[bytes | float]:
        for name, body in content.items():
            if asked.path.endswith(name):
                if asked.method == "HEAD":
                    return iter([_head(body)])
                return whole(body, ETag='"1"')
        return missing()

    return script


def _head(body: bytes) -> bytes:
    return next(part for part in whole(b"", ETag='"1"') if isinstance(part, bytes)).replace(
        b"Content-Length: 0", b"Content-Length: %d" % len(body)
    )


def shards(**content: bytes) -> dict[str, bytes]:
    """An index of shards, and the shards, by name of the package."""
    index: dict[str, Any] = {
        "info": {"subdir": "noarch", "base_url": "./", "shards_base_url": "./"},
        "shards": {name: hashlib.sha256(shard).digest() for name, shard in content.items()},
    }
    return {
        "repodata_shards.msgpack.zst": zstandard.compress(msgpack.packb(index)),
        **{f"{hashlib.sha256(shard).hexdigest()}.msgpack.zst": shard for shard in content.values()},
    }


def shard_of(name: str, *depends: str) -> bytes:
    """A shard with one release."""
    record = {
        "name": name,
        "version": "1",
        "build": "0",
        "build_number": 0,
        "depends": depends,
        "subdir": "noarch",
        "sha256": bytes(32),
    }
    sections = {"packages": {}, "packages.conda": {f"{name}-1-0.conda": record}, "removed": []}
    return zstandard.compress(msgpack.packb(sections))


BOMBS: dict[str, Callable[[], Mapping[str, bytes]]] = {
    "zst": lambda: {"repodata.json.zst": zst_spaces(), "repodata.json": EMPTY},
    "bz2": lambda: {"repodata.json.bz2": bz2_spaces(), "repodata.json": EMPTY},
    "an index of shards": lambda: {
        "repodata_shards.msgpack.zst": zst_spaces(),
        "repodata.json": EMPTY,
    },
    "a shard": lambda: shards(anything=zst_spaces()) | {"repodata.json": EMPTY},
}


class Peak:
    """Peak memory of one child of this process, without mapped files."""

    def __init__(self) -> None:
        self.most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._end.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.most = max(self.most, memory.rss - memory.shared)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def solver(tmp_path: Path) -> Iterator[RattlerSolver]:
    cache = tmp_path / "repodata"
    solver = RattlerSolver(
        cache=cache,
        channels=Channels(cache=cache, memo=NO_MEMO, limits=LIMITS),
        memory_limit=MEMORY,
    )
    yield solver
    solver.close()


FILE, HELD = "CONDASTORE_MAX_REPODATA_BYTES", "400 MiB of memory"


@pytest.mark.parametrize(
    ("bomb", "limit"),
    list(zip(BOMBS.values(), (FILE, FILE, HELD, HELD), strict=True)),
    ids=BOMBS.keys(),
)
def test_a_bomb_takes_no_memory_and_the_limit_is_named(
    solver: RattlerSolver, tmp_path: Path, bomb: Callable[[], Mapping[str, bytes]], limit: str
) -> None:
    content = bomb()
    with hostile(files(content)) as server, Peak() as peak:
        url = f"{server.url}/c"
        with pytest.raises(ChannelUnavailableError) as caught:
            solve(solver, "anything", channels=[url])
    assert url in caught.value.message
    assert limit in caught.value.message
    assert peak.most < MEMORY + SLACK
    retained = sum(
        path.stat().st_size for path in (tmp_path / "repodata").rglob("*") if path.is_file()
    )
    assert retained <= LIMITS.size


def test_a_bomb_in_a_dependency_ends_the_solve_by_its_memory(
    solver: RattlerSolver,
) -> None:
    content = shards(anything=shard_of("anything", "other"), other=zst_spaces())
    with hostile(files(content | {"repodata.json": EMPTY})) as server, Peak() as peak:
        url = f"{server.url}/c"
        with pytest.raises(MemoryLimitError) as caught:
            solve(solver, "anything", channels=[url])
    assert url in caught.value.message
    assert HELD in caught.value.message
    assert peak.most < MEMORY + SLACK
