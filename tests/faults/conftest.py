"""Fixtures of fault tests: whole systems on the small channel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.channels.building import INDEX_FOLDER
from tests.channels.server import ChannelServer, serving
from tests.faults.watching import end_all
from tests.system import System

#: A system that notices and tries again within moments.
QUICK = {
    "CONDASTORE_LEASE": "3",
    "CONDASTORE_SWEEP_INTERVAL": "1",
    "CONDASTORE_BACKOFF": "0.1",
    "CONDASTORE_TRASH_INTERVAL": "1",
}
Start = Callable[..., AbstractContextManager[System]]


@pytest.fixture(scope="session")
def channel(small_channel: Path, simple_index: Path) -> Iterator[ChannelServer]:
    """The small channel; a test that adds faults clears them."""
    with serving({"": small_channel, INDEX_FOLDER: simple_index.parent}) as server:
        yield server


@pytest.fixture(scope="session")
def start(channel: ChannelServer, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Start a system; at the end nothing of it may be left running."""

    @contextlib.contextmanager
    def do(
        *, workers: int = 1, preload: Mapping[str, str] = MappingProxyType({}), **environ: str
    ) -> Iterator[System]:
        folder = tmp_path_factory.mktemp("s")
        system = System(
            folder / "data",
            channel=channel.url,
            workers=workers,
            environ={
                **QUICK,
                **{f"CONDASTORE_{name}": value for name, value in environ.items()},
                **preload,
            },
        )
        try:
            yield system.start()
        finally:
            left = end_all(system)
        assert not left, left

    return do
