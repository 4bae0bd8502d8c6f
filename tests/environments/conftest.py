"""What the tests of builds share: a channel that is served, and the engine of a data folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from accounts.access import Actor
from environments import tasks
from environments.models import Build, Environment
from environments.operations.builds import submit_build
from environments.services import engine_context
from environments.services.engine_context import Engine
from tests.channels.server import ChannelServer, serving

Submit = Callable[..., Build]


@pytest.fixture(scope="module")
def world_of_module(django_db_setup: None, django_db_blocker: Any) -> Iterator[Any]:
    """The world of the permission matrix, in a transaction around all tests of a module."""
    from tests.environments.graphql.test_permission_matrix import make_world

    with django_db_blocker.unblock(), transaction.atomic():
        yield make_world()
        transaction.set_rollback(True)


@pytest.fixture
def world(world_of_module: Any, db: None) -> Any:
    """The world of the permission matrix; what the test changes is undone after it."""
    return copy.deepcopy(world_of_module)


@pytest.fixture(scope="session")
def shared_server(small_channel: Path, simple_index: Path) -> Iterator[ChannelServer]:
    """The small channel at `/` and its Python index, without faults, for all tests."""
    with serving({"": small_channel, "pypi": simple_index.parent}) as server:
        yield server


@pytest.fixture(scope="session")
def shared_engine(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[Engine]]:
    """The caches and solvers that tests share; made at the first need."""
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.close()


@pytest.fixture
def engine(
    request: pytest.FixtureRequest,
    shared_server: ChannelServer,
    shared_engine: list[Engine],
    tmp_path_factory: pytest.TempPathFactory,
    settings: Any,
) -> Iterator[Engine]:
    """The engine of this process; with empty caches of its own where `channel_server` is used."""
    own = "channel_server" in request.fixturenames
    server = request.getfixturevalue("channel_server") if own else shared_server
    url = server.url.rstrip("/")
    settings.DEFAULT_CHANNELS = [url]
    settings.PYPI_INDEX_URLS = [f"{url}/pypi/simple/"]
    settings.DEFAULT_PLATFORMS = ["linux-64"]
    settings.DISK_RESERVE = 0
    settings.CHANNEL_STATE_TTL = settings.BACKOFF * 0
    if own:
        made = Engine(tmp_path_factory.mktemp("cold"))
    else:
        if not shared_engine:
            shared_engine.append(Engine(tmp_path_factory.mktemp("shared")))
        [made] = shared_engine
    engine_context.set_engine(made)
    yield made
    engine_context.set_engine(None)
    if own:
        made.close()


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """There is no queue here: the ids of the builds that would have been sent."""
    sent: list[int] = []
    monkeypatch.setattr(tasks.run_next_build, "send", sent.append)
    monkeypatch.setattr(tasks.tidy, "send", lambda: None)
    return sent


@pytest.fixture
def submit(alice: Actor, environment: Environment, engine: Engine, unsent: list[int]) -> Submit:
    """Submit a specification as Alice; nobody runs it until the test does."""

    def do(text: str, **options: Any) -> Build:
        into = options.pop("environment", environment)
        return submit_build(actor=alice, environment=into, specification=text, **options).build

    return do
