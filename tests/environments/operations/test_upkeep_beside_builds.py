"""Upkeep beside everything else: it repairs what was left behind, and undoes nobody's work."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from environments.jobs import build_run, builds, cleanup
from environments.models import Build, Environment
from environments.services import engine_context, folders
from tests.environments.conftest import Submit
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
            cleanup.follow_pointers()
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


def test_upkeep_does_not_take_a_prefix_away_from_the_build_that_just_made_it(
    submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = build_run.BuildRun.update

    def slowly(run: build_run.BuildRun, **changes: Any) -> None:
        if "prefix" in changes:
            beside = threading.Thread(target=_drop_prefixes)
            beside.start()
            beside.join(0.5)
        attach(run, **changes)

    monkeypatch.setattr(build_run.BuildRun, "update", slowly)
    build = submit("dependencies: [license-mit]")
    builds.run(build.pk)
    build.refresh_from_db()
    assert (build.state, build.attempt) == ("READY", 1)
    path = folders.prefix_path(build)
    assert path is not None
    assert path.is_dir()


def _drop_prefixes() -> None:
    try:
        cleanup.drop_prefixes()
    finally:
        connection.close()


def test_what_killed_workers_left_in_the_caches_goes_when_nobody_continues_it(
    db: None, data_folder: Path
) -> None:
    engine_context.set_engine(None)
    left = [
        data_folder / "cache/packages/downloads/abc.part",
        data_folder / "cache/wheels/downloads/abc.part",
        data_folder / "cache/packages/views/1234/x",
        data_folder / "cache/packages/.extracting-1/x",
        data_folder / "cache/uv/shared/.tmpAbCdEf/x",
        data_folder / "cache/uv/shared/builds-v0/.tmpGhIjKl/x",
        data_folder / "cache/uv/condastore-uv-abc/x",
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
    cleanup.drop_leftovers()
    assert not any(path.exists() for path in left)
    assert fresh.exists()
    assert not link.is_symlink()
    engine_context.set_engine(None)
