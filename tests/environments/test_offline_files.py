"""What a machine without a network needs is made of what is kept alone, for any platform."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from accounts.access import Actor
from environments import tasks
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.jobs import artifacts, builds
from environments.models import Artifact, Build
from environments.operations.artifacts import create_artifact, set_eager_artifacts
from environments.services import blobs, engine_context
from tests.channels.server import ChannelServer, Fault

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "dependencies: [python, hello-noarch, pip: [tinyname]]"


@pytest.fixture(autouse=True)
def _no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.make_artifact, "send", lambda key: None)


def made(actor: Actor, build: Build, kind: ArtifactKind, platform: str = "") -> bytes:
    artifact = create_artifact(actor=actor, build=build, kind=kind, platform=platform)
    artifacts.make(artifact.pk)
    artifact.refresh_from_db()
    assert artifact.state == ArtifactState.READY, artifact.failure
    path = blobs.local_path(artifact.blob)
    assert path is not None
    return path.read_bytes()


def test_bundle_and_installer_are_made_when_the_channels_are_gone_with_the_same_bytes(
    submit: Any,
    alice: Actor,
    engine: engine_context.Engine,
    channel_server: ChannelServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    build = submit(TEXT)
    builds.run(build.pk)
    build = Build.objects.get(pk=build.pk)
    assert build.state == BuildState.READY, build.failure
    first = {
        kind: made(alice, build, kind) for kind in (ArtifactKind.INSTALLER, ArtifactKind.BUNDLE)
    }
    channel_server.faults.add(Fault("*", status=410))
    shutil.rmtree(engine.cache)
    Artifact.objects.all().delete()
    other = engine_context.Engine(
        tmp_path_factory.mktemp("other")
    )  # a worker with caches of its own
    engine_context.set_engine(other)
    try:
        for kind, content in first.items():
            assert made(alice, build, kind) == content, kind
    finally:
        engine_context.set_engine(engine)
        other.close()
    with tarfile.open(fileobj=io.BytesIO(first[ArtifactKind.BUNDLE])) as archive:
        names = {Path(name).name for name in archive.getnames()}
    locked = build.lock.value().platforms[0]
    assert {one.file_name for one in locked.conda} <= names
    assert {one.file_name for one in locked.pypi} <= names


def test_a_new_build_is_made_into_what_its_namespace_says(
    submit: Any, dora: Actor, environment: Any
) -> None:
    kinds = [ArtifactKind.INSTALLER]
    set_eager_artifacts(actor=dora, namespace=environment.namespace, kinds=kinds)
    environment.namespace.refresh_from_db()
    build = submit("dependencies: [apptool]")
    builds.run(build.pk)
    artifact = Artifact.objects.get()
    assert (artifact.kind, artifact.state) == ("INSTALLER", "QUEUED")
    assert artifact in Artifact.objects.due(artifact.not_before)
    artifacts.make(artifact.pk)
    artifact.refresh_from_db()
    assert artifact.state == ArtifactState.READY, artifact.failure


@pytest.mark.parametrize("platform", ["osx-arm64", "linux-aarch64"])
def test_files_for_machines_of_another_kind_are_made_here(
    submit: Any, alice: Actor, platform: str
) -> None:
    build = submit(f"platforms: [linux-64, {platform}]\ndependencies: [python, apptool]")
    builds.run(build.pk)
    build = Build.objects.get(pk=build.pk)
    assert build.state == BuildState.READY, build.failure
    with tarfile.open(fileobj=io.BytesIO(made(alice, build, ArtifactKind.BUNDLE, platform))) as tar:
        names = tar.getnames()
    [script] = [name for name in names if name.endswith("/install.sh")]
    locked = build.lock.value().on(platform)
    assert {one.file_name for one in locked.conda} <= {Path(name).name for name in names}
    assert any(f"/channel/{platform}/python-" in name for name in names)
    assert not any("/linux-64/" in name for name in names)
    assert script.startswith("bundle-")
