"""What the tests of builds share: a channel that is served, and the engine of a data folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from environments import tools
from environments.models import Build, Environment
from environments.operations.builds import submit_build
from tests.channels.server import ChannelServer

Submit = Callable[..., Build]


@pytest.fixture
def engine(data_folder: Path, channel_server: ChannelServer, settings: Any) -> Iterator[tools.Tools]:
    """This test's own caches and solvers, with the small channel as `conda-forge` would be."""
    url = channel_server.url.rstrip("/")
    settings.CHANNEL_ALIAS = url.rpartition("/")[0] if url.count("/") > 2 else url
    settings.DEFAULT_CHANNELS = [url]
    settings.PYPI_INDEX_URLS = [f"{url}/pypi/simple/"]
    settings.DEFAULT_PLATFORMS = ["linux-64"]
    settings.DISK_RESERVE = 0
    settings.CHANNEL_STATE_TTL = settings.BACKOFF * 0
    tools.reset()
    yield tools.tools()
    tools.reset()


@pytest.fixture
def submit(
    alice: Actor, environment: Environment, engine: tools.Tools, unsent: list[int]
) -> Submit:
    """Submit a specification as Alice; nobody runs it until the test does."""

    def do(text: str, **options: Any) -> Build:
        into = options.pop("environment", environment)
        return submit_build(actor=alice, environment=into, specification=text, **options).build

    return do


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """There is no queue here: the ids of the builds that would have been sent."""
    from environments import tasks

    sent: list[int] = []
    monkeypatch.setattr(tasks.build_environment, "send", sent.append)
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    return sent
