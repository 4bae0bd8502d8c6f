"""The kit for pytest: the small channel and an index, made once, kept between runs, and served.

A channel is kept in the folder that CONDASTORE_TEST_CACHE names, or in ``.cache/channels`` of the
checkout, until the kit, the Python or the day is another. A test that changes one copies it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from . import building
from .server import ChannelServer, serving
from .simple_index import sample_distributions, write_simple_index
from .stamp import ensure_channel, kit_version

#: The day of the small channel: `fresh-release 1.2` is six hours older than its beginning.
TODAY = datetime.now(tz=UTC).replace(hour=0, minute=0, second=0, microsecond=0)

_KEPT = timedelta(days=2)


def cache_folder() -> Path:
    """Where channels are kept between runs."""
    chosen = os.environ.get("CONDASTORE_TEST_CACHE")
    return Path(chosen) if chosen else Path(__file__).parents[2] / ".cache" / "channels"


def cached_channel(kind: str, build: Callable[[Path], None], *, day: str = "") -> Path:
    """A channel of the cache, made with `build` where it is missing; others of its kind age."""
    cache = cache_folder()
    parts = {
        "kind": kind,
        "kit": kit_version(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "day": day,
    }
    channel = cache / "-".join(part for part in parts.values() if part)
    ensure_channel(channel, parts, build)
    os.utime(channel)
    limit = time.time() - _KEPT.total_seconds()
    for other in (*cache.glob(f"{kind}-*"), *cache.glob(f".{kind}-*")):
        if other.stat().st_mtime > limit:
            continue
        if other.is_dir():
            shutil.rmtree(other, ignore_errors=True)
        else:
            other.unlink(missing_ok=True)
    return channel


@pytest.fixture(scope="session")
def small_channel() -> Path:
    """The folder of the small channel; a test must not change it."""
    return cached_channel(
        "small",
        lambda channel: building.build_small(channel, now=TODAY),
        day=f"{TODAY:%Y%m%d}",
    )


@pytest.fixture
def own_channel(small_channel: Path, tmp_path: Path) -> Path:
    """A copy of the small channel, for a test that changes it."""
    return Path(shutil.copytree(small_channel, tmp_path / "channel", symlinks=True))


@pytest.fixture(scope="session")
def numpy_channel() -> Path:
    """The folder of a channel with Python and numpy; seconds and the network the first time."""
    work = cache_folder() / "downloads"
    return cached_channel("numpy", lambda channel: building.build_numpy(channel, work=work))


@pytest.fixture(scope="session")
def simple_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a Python package index of generated files; a test must not change it."""
    return write_simple_index(tmp_path_factory.mktemp("index"), sample_distributions())


@pytest.fixture
def channel_server(small_channel: Path, simple_index: Path) -> Iterator[ChannelServer]:
    """A server of the small channel at its root, and of the index at ``pypi/simple/``."""
    with serving({"": small_channel, building.INDEX_FOLDER: simple_index.parent}) as server:
        yield server
