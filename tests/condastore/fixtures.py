"""A running `condastore up`, and people at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.channels.server import serving
from tests.condastore.command_line import Person
from tests.condastore.running_system import System, running_system


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Somebody who is signed in nowhere; port 9 answers nobody."""
    home = tmp_path / "home"
    home.mkdir()
    return Person(home=home, url="http://127.0.0.1:9")


@pytest.fixture(scope="session")
def running_server(small_channel: Path) -> Iterator[System]:
    """One whole system for all tests, whose default channel is the small one."""
    with (
        serving(small_channel) as channel,
        running_system({"CONDASTORE_DEFAULT_CHANNELS": channel.url}) as system,
    ):
        yield system


@pytest.fixture(scope="session")
def administrator(running_server: System, tmp_path_factory: pytest.TempPathFactory) -> Person:
    """The administrator of the running server, signed in at a terminal."""
    return running_server.administrator(tmp_path_factory.mktemp("people") / "admin")
