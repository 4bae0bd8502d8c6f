"""An artifact is made once, by whichever worker lives to finish it; nothing half-made is left."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from dramatiq.middleware import Shutdown

from accounts.access import Actor
from environments import tasks
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.engine.artifacts.staging import Material
from environments.jobs import artifacts, builds, cleanup
from environments.models import Artifact, Build
from environments.operations.artifacts import create_artifact
from environments.services import blobs, engine_context
from tests.services.processes import find_program

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "dependencies: [python, hello-noarch, apptool]\nvariables: {GREETING: hello}\n"
KINDS = (ArtifactKind.TAR_GZ, ArtifactKind.TAR_ZST, ArtifactKind.SQUASHFS, ArtifactKind.SIF)

#: A worker of its own, that says when it writes and goes no further.
WORKER = """
import os, sys, time
from pathlib import Path
from django.conf import settings
import django
database, data, caches, pk = sys.argv[1:]
settings.DATABASES["default"]["NAME"] = database
settings.DATA = Path(data)
django.setup()
from environments.jobs import artifacts
from environments.services import engine_context, image_builder
from environments.engine.artifacts import parts
engine_context.set_engine(engine_context.Engine(Path(caches)))
def say_and_wait():
    os.write(1, b"writing\\n")  # whole, where two threads say it
    time.sleep(600)
def slowly(self):
    self._out.flush()
    say_and_wait()
def half(layer, to, **options):
    to.write_bytes(b"half a layer")
    say_and_wait()
parts._OrderedWriter.finish = slowly
image_builder.make_layer = half
artifacts.make(int(pk))
"""


@pytest.fixture(autouse=True)
def no_waits(settings: Any) -> None:
    settings.BUILD_ATTEMPTS, settings.BACKOFF = 9, timedelta(0)


@pytest.fixture(autouse=True)
def no_queue(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sent: list[int] = []
    monkeypatch.setattr(tasks.make_artifact, "send", sent.append)
    return sent


@pytest.fixture
def build(submit: Callable[..., Build]) -> Build:
    build = submit(TEXT)
    builds.run(build.pk)
    build.refresh_from_db()
    assert build.failure is None, build.failure
    return build


@pytest.fixture
def wanted(alice: Actor, build: Build) -> Artifact:
    return create_artifact(actor=alice, build=build, kind=ArtifactKind.TAR_ZST)


def left(data: Path) -> list[Path]:
    """What is half made."""
    caches = engine_context.get_engine().cache
    return [*blobs.blobs_folder().glob("*"), *caches.glob("parts/.*"), *data.glob("blobs/**/.*")]


def is_whole(artifact: Artifact) -> bool:
    assert artifact.blob is not None
    path = blobs.local_path(artifact.blob)
    assert path is not None
    return hashlib.sha256(path.read_bytes()).hexdigest() == artifact.blob.sha256


def test_each_kind_is_made_and_kept(alice: Actor, build: Build, data_folder: Path) -> None:
    find_program("mksquashfs", component="mksquashfs", install="apt-get install squashfs-tools")
    for kind in KINDS:
        artifact = create_artifact(actor=alice, build=build, kind=kind)
        artifacts.make(artifact.pk)
        artifact.refresh_from_db()
        assert artifact.state == ArtifactState.READY, (kind, artifact.failure)
        assert is_whole(artifact)
    assert left(data_folder) == []


def test_two_workers_make_an_artifact_once(
    wanted: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[Path] = []
    make = artifacts.MAKERS[ArtifactKind.TAR_ZST]

    def counted(material: Material) -> Path:
        created.append(material.work)
        return make(material)

    monkeypatch.setitem(artifacts.MAKERS, ArtifactKind.TAR_ZST, counted)

    def work() -> None:
        artifacts.make(wanted.pk)
        connection.close()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    wanted.refresh_from_db()
    assert (wanted.state, wanted.attempt, len(created)) == (ArtifactState.READY, 1, 1)


def test_a_worker_that_lost_its_lease_changes_nothing(
    wanted: Artifact, monkeypatch: pytest.MonkeyPatch, data_folder: Path
) -> None:
    make = artifacts.MAKERS[ArtifactKind.TAR_ZST]

    def overtaken(material: Material) -> Path:
        path = make(material)
        if len(list(blobs.blobs_folder().iterdir())) == 1:  # not again inside the other's attempt
            Artifact.objects.get(pk=wanted.pk).give_up_lost()
            artifacts.make(wanted.pk)
        return path

    monkeypatch.setitem(artifacts.MAKERS, ArtifactKind.TAR_ZST, overtaken)
    artifacts.make(wanted.pk)
    wanted.refresh_from_db()
    assert (wanted.state, wanted.attempt) == (ArtifactState.READY, 2)
    assert is_whole(wanted)
    assert left(data_folder) == []


def test_a_worker_that_is_stopped_counts_no_attempt(
    wanted: Artifact, monkeypatch: pytest.MonkeyPatch, data_folder: Path
) -> None:
    def stopped(material: Material) -> Path:
        raise Shutdown  # as Dramatiq raises it in the thread that works

    with monkeypatch.context() as patch:
        patch.setitem(artifacts.MAKERS, ArtifactKind.TAR_ZST, stopped)
        with pytest.raises(Shutdown):
            artifacts.make(wanted.pk)
    wanted.refresh_from_db()
    assert (wanted.state, wanted.attempt) == (ArtifactState.QUEUED, 0)
    assert left(data_folder) == []
    artifacts.make(wanted.pk)
    wanted.refresh_from_db()
    assert (wanted.state, wanted.attempt) == (ArtifactState.READY, 1)


@pytest.mark.parametrize("kind", [ArtifactKind.TAR_ZST, ArtifactKind.IMAGE])
def test_a_killed_worker_loses_no_artifact(
    build: Build, kind: ArtifactKind, engine: engine_context.Engine, data_folder: Path
) -> None:
    requested = Artifact.wanted(build, kind, build.platform)
    database = str(connection.settings_dict["NAME"])
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            WORKER,
            database,
            data_folder,
            engine.cache.parent,
            str(requested.pk),
        ],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert "writing\n" in iter(worker.stdout.readline, "")
        worker.send_signal(signal.SIGKILL)
    requested.refresh_from_db()
    assert requested.state == ArtifactState.MAKING
    assert left(data_folder), "it was killed while it wrote"
    assert requested.blob is None
    Artifact.objects.filter(pk=requested.pk).update(lease_expires_at=timezone.now())
    requested.refresh_from_db()
    requested.give_up_lost()
    time.sleep(0.01)
    artifacts.make(requested.pk)
    requested.refresh_from_db()
    assert (requested.state, requested.attempt) == (ArtifactState.READY, 2)
    assert is_whole(requested)
    cleanup.drop_leftovers(grace=timedelta(0))
    assert list(blobs.blobs_folder().glob("*")) == []
