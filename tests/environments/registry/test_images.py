"""A lock as a container image: its layers, its documents, and what it shares with others."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from environments.domain.artifacts import STANDARD_PREFIX, ArtifactKind, ArtifactState
from environments.domain.lock import Lock, PlatformLock
from environments.engine.images.archives import unpacked
from environments.engine.images.loading import LoadedImage, LoadedLayer
from environments.engine.prefix import linking
from environments.engine.pypi.install import install_wheels
from environments.jobs import artifacts
from environments.models import Artifact, BaseImage, Blob, Build, Environment, Layer
from environments.services import blobs, engine_context, image_builder
from environments.services.engine_context import Engine
from tests import factories
from tests.environments.engine.package_fixtures import packages_of
from tests.environments.registry.conftest import build_it, small_base

pytestmark = pytest.mark.django_db(transaction=True)


def made(build: Build, **options: Any) -> Artifact:
    row = Artifact.wanted(build, ArtifactKind.IMAGE, build.platform, more=options)
    artifacts.make(row.pk)
    row.refresh_from_db()
    assert row.state == ArtifactState.READY, row.failure
    return row


def content(blob: Blob) -> bytes:
    path = blobs.local_path(blob)
    assert path is not None
    return path.read_bytes()


def document(digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        content(Blob.objects.get(sha256=digest.removeprefix("sha256:")))
    )
    return found


def manifest(artifact: Artifact) -> dict[str, Any]:
    return document(artifact.blob.sha256)


def unpack(artifact: Artifact, to: Path) -> Path:
    for layer in manifest(artifact)["layers"]:
        blob = Blob.objects.get(sha256=layer["digest"].removeprefix("sha256:"))
        assert blob.size == layer["size"]
        kind = layer["mediaType"].rpartition("+")[2]
        plain = to.with_suffix(".tar")
        plain.write_bytes(b"".join(unpacked(blobs.local_path(blob), kind)))
        with tarfile.open(plain) as archive:
            archive.extractall(to, filter="tar")
    return to


def tree(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o111)
    return found


def linked(part: PlatformLock, engine: Engine, place: Path) -> Path:
    """All packages, linked together as a build does it, for the prefix of images."""
    final = Path(STANDARD_PREFIX)
    linking.link(
        part,
        target=place,
        final_prefix=final,
        cache=engine.packages,
        packages=engine.packages.ensure(part.conda),
        requested=(),
        variables={},
        moment=datetime(2000, 1, 1, tzinfo=UTC),
        note="",
    )
    python = linking.python_of(part.conda, part.platform)
    assert python is not None
    wheels = engine.wheels.ensure(part.pypi)
    install_wheels(wheels, target=place, final_prefix=final, python=python)
    return place


def test_the_layers_hold_what_linking_all_packages_together_gives(
    submit: Callable[..., Build], engine: Engine, tmp_path: Path
) -> None:
    build = build_it(submit("dependencies: [python, hello-noarch, activating, {pip: [tinyname]}]"))
    root = unpack(made(build), tmp_path / "root")
    lock = build.lock.value()
    [part] = lock.platforms
    location = engine.cache / "staged"  # beside the cache: files are linked
    try:
        staged = tree(linked(part, engine, location))
    finally:
        shutil.rmtree(location)
    image = tree(root / STANDARD_PREFIX.lstrip("/"))
    # conda's notes are laid out in another way, and name no requirements.
    notes = {name for name in staged if name.startswith("conda-meta/") and name.endswith(".json")}
    assert notes <= set(image)
    for name in set(staged) - notes - {"conda-meta/history", "conda-meta/frozen"}:
        assert image[name] == staged[name], name
    for name in notes:
        one, other = json.loads(staged[name][0]), json.loads(image[name][0])
        assert sorted(one["files"]) == sorted(other["files"]), name
        assert one["url"] == other["url"]
    added = {name for name in image if name not in staged}
    assert added == {"etc/condastore/activate.sh", "etc/condastore/entrypoint"}


def test_an_image_is_the_same_wherever_it_is_made(
    small: Build, submit: Callable[..., Build], settings: Any, tmp_path: Path
) -> None:
    first = made(small)
    before = [(row.key, row.gzip.sha256) for row in Layer.objects.order_by("key")]
    digest, base = first.blob.sha256, BaseImage.objects.get()
    image = LoadedImage(
        platform=base.platform,
        digest=base.digest,
        config=base.config,
        layers=tuple(
            LoadedLayer(
                path=Path(shutil.copy(blobs.local_path(row.blob), tmp_path / "base")),
                diff_id=row.diff_id,
                media_type=row.media_type,
            )
            for row in base.layers.all()
        ),
    )
    for rows in (Artifact, Layer, BaseImage, Blob):  # another installation knows of none
        rows.objects.all().delete()
    settings.DATA = tmp_path / "elsewhere"
    engine_context.set_engine(other := engine_context.Engine(settings.DATA))
    image_builder.store_base("machine", image)
    try:
        assert made(small).blob.sha256 == digest
    finally:
        other.close()
    assert [(row.key, row.gzip.sha256) for row in Layer.objects.order_by("key")] == before


def test_one_new_package_is_one_new_layer_beside_what_is_the_locks_own(
    small: Build, submit: Callable[..., Build]
) -> None:
    before = {layer["digest"] for layer in manifest(made(small))["layers"]}
    larger = build_it(submit("dependencies: [activating, libbeta ==1.2, license-mit]"))
    after = [layer["digest"] for layer in manifest(made(larger))["layers"]]
    new = [digest for digest in after if digest not in before]
    assert len(new) == 2
    assert new[-1] == after[-1]


def test_an_image_of_layers_that_are_there_needs_no_worker_and_no_package(
    small: Build, submit: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(small)
    less = build_it(submit("dependencies: [libbeta ==1.2]"))
    row = Artifact.wanted(less, ArtifactKind.IMAGE, "linux-64")
    image_builder.assemble_if_complete(row)
    assert row.state == ArtifactState.READY


def test_no_image_is_made_where_there_is_nothing_beneath_it(
    submit: Callable[..., Build], at_once: None, settings: Any
) -> None:
    settings.BASE_IMAGE = "unknown"
    build = build_it(submit("dependencies: [libalpha ==2.0]"))
    row = Artifact.wanted(build, ArtifactKind.IMAGE, "linux-64")
    artifacts.make(row.pk)
    row.refresh_from_db()
    assert row.state == ArtifactState.FAILED
    assert "base image 'unknown'" in row.failure["message"]
    assert "base_image load" in row.failure["hint"]


def test_conflicting_files_of_a_platform_that_nobody_linked_share_the_last_layer(
    environment: Environment, small_channel: Path, engine: Engine, unsent: list[int], tmp_path: Path
) -> None:
    image_builder.store_base(BaseImage.OWN, small_base(tmp_path, platform="linux-aarch64"))
    known = packages_of(small_channel)
    clobbering = (known["clobber-one"], known["clobber-two"], known["license-bsd"])
    parts = [
        PlatformLock(platform="linux-64", conda=(known["license-mit"],)),
        PlatformLock(platform="linux-aarch64", conda=clobbering),
    ]
    lock = Lock(channels=(small_channel.as_uri(),), platforms=tuple(parts))
    build = factories.make_build(environment, lock=lock)
    row = Artifact.wanted(build, ArtifactKind.IMAGE, "linux-aarch64")
    artifacts.make(row.pk)
    row.refresh_from_db()
    assert row.state == ArtifactState.READY, row.failure
    [*_, last] = image_builder.ImagePlan.of(row).layers
    assert [package.name for package in last.conda] == ["clobber-one", "clobber-two"]
    layer = Layer.objects.get(key=last.key)
    blobs.fetch(layer.gzip, tmp_path / "layer.tar.gz")
    with tarfile.open(tmp_path / "layer.tar.gz") as archive:
        path = "opt/env/share/clobber/shared.txt"
        assert archive.getnames().count(path) == 1
        file = archive.extractfile(path)
        assert file is not None
        assert file.read() == b"from clobber-two\n"


def test_a_layer_that_is_compressed_anew_has_the_bytes_that_it_would_have_had_at_once(
    small: Build,
) -> None:
    made(small)
    before = {row.key: row.gzip.sha256 for row in Layer.objects.all()}
    made(small, compression="zstd")
    Layer.objects.update(gzip=None)
    Artifact.objects.exclude(options__compression="zstd").delete()
    made(small)
    assert {row.key: row.gzip.sha256 for row in Layer.objects.all()} == before
