"""A lock as a container image: its layers, its documents, and what it shares with others."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments import artifacts, blobs, building
from environments.domain.artifacts import STANDARD_PREFIX, ArtifactKind, ArtifactState
from environments.engine.artifacts.staging import Material
from environments.engine.images.archives import unpacked
from environments.models import Artifact, Blob, Build
from environments.tools import Tools

pytestmark = pytest.mark.django_db(transaction=True)
HELLO = "dependencies: [python, hello-noarch, activating, libbeta]"


def built(build: Build) -> Build:
    building.run(build.pk)
    build.refresh_from_db()
    assert build.failure is None, build.failure
    return build


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


def test_the_layers_hold_what_linking_all_packages_together_gives(
    submit: Callable[..., Build], engine: Tools, tmp_path: Path
) -> None:
    build = built(submit("dependencies: [python, hello-noarch, activating, {pip: [tinyname]}]"))
    root = unpack(made(build), tmp_path / "root")
    lock = build.lock.value()
    [part] = lock.platforms
    material = Material(
        lock=lock,
        platform="linux-64",
        packages=engine.packages.ensure(part.conda),
        wheels=engine.wheels.ensure(part.pypi),
        variables={},
        cache=engine.packages,
        work=engine.cache / "staged",
    )
    engine.cache.joinpath("staged").mkdir(exist_ok=True)
    try:
        staged = tree(material.stage(STANDARD_PREFIX))
    finally:
        material.clear()
    image = tree(root / STANDARD_PREFIX.lstrip("/"))
    # conda's notes are laid out in another way, and name no requirements.
    notes = {name for name in staged if name.startswith("conda-meta/") and name.endswith(".json")}
    assert notes <= set(image)
    for name in set(staged) - notes - {"conda-meta/history"}:
        assert image[name] == staged[name], name
    for name in notes:
        one, other = json.loads(staged[name][0]), json.loads(image[name][0])
        assert sorted(one["files"]) == sorted(other["files"]), name
        assert one["url"] == other["url"]
    added = {name for name in image if name not in staged}
    assert added == {"etc/condastore/activate.sh", "etc/condastore/entrypoint"}
