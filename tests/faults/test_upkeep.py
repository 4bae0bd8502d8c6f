"""Upkeep beside everything else: it repairs what was left behind, and undoes nobody's work."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from django.db import connection, transaction

from environments import folders, housekeeping, tools
from environments.models import Build, Environment
from tests.factories import make_build

pytestmark = pytest.mark.django_db(transaction=True)


def _ready_build(environment: Environment, *, current: bool) -> Build:
    build = make_build(environment, current=current)
    path = folders.prefix_path(build)
    assert path is not None
    path.mkdir(parents=True)
    return build


def test_upkeep_does_not_lead_a_folder_back_while_its_pointer_moves(
    environment: Environment,
) -> None:
    _ready_build(environment, current=True)
    folders.follow_environment(environment)
    newer = _ready_build(environment, current=False)
    link = folders.link_path("research", "ml")

    def tidy() -> None:
        try:
            housekeeping.follow_pointers()
        finally:
            connection.close()

    beside = threading.Thread(target=tidy)
    with transaction.atomic():
        assert environment.advance(newer)
        folders.follow_environment(environment)
        beside.start()
        beside.join(0.5)  # it looks, and must not act before this is committed
        assert link.resolve() == folders.prefix_path(newer)
    beside.join()
    assert link.resolve() == folders.prefix_path(newer)


def test_what_killed_workers_left_in_the_caches_goes_when_nobody_continues_it(
    db: None, data_folder: Path
) -> None:
    tools.use(None)
    left = [
        data_folder / "cache/packages/downloads/abc.part",
        data_folder / "cache/wheels/downloads/abc.part",
        data_folder / "cache/packages/views/1234/x",
        data_folder / "cache/packages/.extracting-1/x",
    ]
    fresh = data_folder / "cache/packages/downloads/def.part"
    for path in (*left, fresh):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    before = time.time() - 2 * 24 * 3600
    for path in left:
        os.utime(path, (before, before))
        if "downloads" not in path.parts:
            os.utime(path.parent, (before, before))
    link = data_folder / "envs" / "research" / ".ml-0123"
    link.parent.mkdir(parents=True)
    link.symlink_to("../nowhere")
    os.utime(link, (before, before), follow_symlinks=False)
    housekeeping.drop_leftovers()
    assert not any(path.exists() for path in left)
    assert fresh.exists()
    assert not link.is_symlink()
    tools.use(None)
