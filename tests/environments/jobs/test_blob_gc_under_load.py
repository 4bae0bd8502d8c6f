"""Collection in a loop beside builds, makings, pulls and downloads: nothing served is missing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import AsyncClient

from accounts.access import Actor
from accounts.models import User
from environments import tasks
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.jobs import artifacts, blob_gc, builds, package_backfill
from environments.models import Artifact, Blob, Build, Environment
from environments.operations.artifacts import create_artifact
from environments.operations.builds import delete_build
from environments.services import blobs
from tests import factories
from tests.environments.conftest import Submit

pytestmark = pytest.mark.django_db(transaction=True)
#: Long against what lies between keeping a file and the row that needs it.
GRACE = timedelta(seconds=5)
TEXTS = [f"dependencies: [{name}]" for name in ("apptool", "license-mit", "libbeta", "libalpha")]
#: Blobs that are to be collected meanwhile, and builds that are to be made.
COLLECTED, BUILDS, PATIENCE = 3, 8, 300


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Do `work` again and again in a thread; what it raised ends it, and is raised here."""
    end, raised = threading.Event(), list[BaseException]()

    def loop() -> None:
        try:
            while not end.wait(0.05):
                work()
        except BaseException as error:
            raised.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield raised
    finally:
        end.set()
        thread.join()
    if raised:
        raise raised[0]


def get(path: str, token: str) -> tuple[int, bytes]:
    async def ask() -> tuple[int, bytes]:
        answer: Any = await AsyncClient().get(
            path, headers={"Authorization": f"Bearer {token}", "Prefer": "respond-async"}
        )
        if answer.streaming:
            return answer.status_code, b"".join([part async for part in answer.streaming_content])
        return answer.status_code, answer.content

    return asyncio.run(ask())


def _download(build: Build, token: str) -> None:
    """Its archive, and a package of it, as configured."""
    assert build.lock is not None
    artifact = Artifact.objects.select_related("blob").get(
        lock=build.lock, kind=ArtifactKind.TAR_ZST
    )
    assert artifact.blob is not None
    location = f"{build.environment.namespace.name}/{build.environment.name}/{build.number}"
    status, content = get(f"/api/envs/{location}/env.tar.zst", token)
    assert (status, hashlib.sha256(content).hexdigest()) == (200, artifact.blob.sha256)
    package = build.lock.conda.select_related("package").all()[0].package
    status, content = get(f"/channel/{location}/{package.subdir}/{package.file_name}", token)
    assert (status, hashlib.sha256(content).hexdigest()) == (200, package.sha256)


def test_nothing_that_is_served_is_ever_missing(
    submit: Submit,
    dora: Actor,
    environment: Environment,
    channel_server: Any,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks.make_artifact, "send", lambda key: None)
    settings.COLLECTION_GRACE, settings.UNDO_WINDOW = GRACE, timedelta(0)
    token = factories.make_token(User.objects.get(username="bob"))
    removed, served = [0], [0]
    downloaded = threading.Lock()  # what is downloaded now is not deleted meanwhile
    newest: list[Build] = []

    def collect() -> None:
        report = blob_gc.collect(notice=timedelta(0), orphans=False)
        assert report.without_bytes.number == 0
        removed[0] += report.removed.number

    def download() -> None:
        with downloaded:
            if newest:
                served[0] += 1
                _download(newest[-1], token)

    deadline = time.monotonic() + PATIENCE
    with beside(collect) as collecting, beside(download) as downloading:
        while removed[0] < COLLECTED or len(newest) < BUILDS or not served[0]:
            assert not collecting
            assert not downloading
            assert time.monotonic() < deadline, (removed, served, len(newest))
            build = submit(TEXTS[len(newest) % len(TEXTS)])
            builds.run(build.pk)
            build = Build.objects.select_related("lock", "environment__namespace").get(pk=build.pk)
            assert build.state == "READY", build.failure
            retained = create_artifact(actor=dora, build=build, kind=ArtifactKind.TAR_ZST)
            artifacts.make(retained.pk)
            retained.refresh_from_db()
            assert retained.state == ArtifactState.READY, retained.failure
            package_backfill.complete()  # from the cache of a worker: collected with other builds
            newest.append(build)
            if len(newest) > 2:
                with downloaded:
                    delete_build(actor=dora, build=newest[-3])
    # Each row that is left has its bytes; each build that is left, all of its packages.
    for blob in Blob.objects.all():
        assert blobs.is_intact(blob), blob
        assert blobs.has_intact(blob.sha256), blob
    for build in newest[-2:]:
        digests = set(build.lock.conda.values_list("package__sha256", flat=True))
        assert Blob.objects.filter(sha256__in=digests, removing_at=None).count() == len(digests)
    folder = Path(settings.DATA) / "blobs"
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert left == set(Blob.objects.values_list("sha256", flat=True))
