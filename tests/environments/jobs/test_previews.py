"""Previews whose programs are killed are solved again; other faults end them at once."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import timedelta
from typing import Any

import psutil
import pytest

from accounts.access import Actor
from environments import tasks
from environments.jobs import previews
from environments.models import Environment, Preview
from environments.models.previews import PreviewState
from environments.operations.previews import preview_solve
from environments.services.engine_context import Engine
from tests.channels.server import ChannelServer, Fault

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "dependencies: [python, {pip: [tinyname]}]\n"


@pytest.fixture
def preview(
    alice: Actor,
    environment: Environment,
    engine: Engine,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Preview:
    settings.BACKOFF = timedelta(0)
    monkeypatch.setattr(tasks.run_next_preview, "send", lambda preview_id: None)
    return preview_solve(
        actor=alice,
        namespace=environment.namespace,
        environment=environment,
        specification=TEXT,
    ).preview


def kill_next_uv(ended: threading.Event) -> None:
    """Kill the first uv that this process starts, as the kernel does when memory runs out."""
    while not ended.is_set():
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "uv":
                    child.kill()
                    return
        time.sleep(0.01)


def test_a_preview_whose_program_was_killed_is_solved_again(
    preview: Preview, channel_server: ChannelServer
) -> None:
    channel_server.faults.add(Fault("pypi/*", hang=60))
    ended = threading.Event()
    killer = threading.Thread(target=kill_next_uv, args=(ended,))
    killer.start()
    try:
        assert previews.run(str(preview.pk))
    finally:
        ended.set()
        killer.join()
    preview.refresh_from_db()
    assert (preview.state, preview.attempt) == (PreviewState.QUEUED, 1)
    channel_server.faults.clear()
    assert previews.run(str(preview.pk))
    preview.refresh_from_db()
    assert preview.state == PreviewState.READY, preview.failure
    assert preview.failure is None


def test_a_preview_whose_channel_is_away_fails_at_once(
    preview: Preview, channel_server: ChannelServer
) -> None:
    channel_server.faults.add(Fault("*", status=503))
    assert previews.run(str(preview.pk))
    preview.refresh_from_db()
    assert (preview.state, preview.attempt) == (PreviewState.FAILED, 1)
    assert preview.finished_at - preview.started_at < timedelta(minutes=1)
