"""Channels are read for search: in a process of the solver, with whatever they send."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from environments.engine.channels.first_seen import database_path
from environments.jobs import cleanup
from environments.models import Channel, IndexedPackage
from environments.services import engine_context, folders
from tests.channels.hostile_server import hostile, missing
from tests.channels.server import serving


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[None]:
    created = engine_context.Engine(tmp_path)
    engine_context.set_engine(created)
    yield
    engine_context.set_engine(None)
    created.close()


@pytest.mark.django_db
@pytest.mark.usefixtures("engine")
def test_a_channel_becomes_rows_and_first_sightings(small_channel: Path) -> None:
    with serving(small_channel) as server:
        channel = Channel.objects.create(url=server.url.rstrip("/"))
        assert cleanup.index_channel(channel.pk)
    channel.refresh_from_db()
    assert channel.indexed_state
    assert channel.indexed_at
    alpha = IndexedPackage.objects.get(channel=channel, name="libalpha")
    assert (alpha.latest_version, alpha.versions, alpha.subdirs) == ("2.1", 4, ["linux-64"])
    assert database_path(folders.data() / folders.SEEN, channel.url, "linux-64").exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("engine")
def test_a_channel_that_cannot_be_read_is_no_fault_of_the_worker() -> None:
    with hostile(lambda asked: missing()) as server:
        channel = Channel.objects.create(url=f"{server.url}/c")
        assert cleanup.index_channel(channel.pk)
    channel.refresh_from_db()
    assert channel.indexed_at is None
