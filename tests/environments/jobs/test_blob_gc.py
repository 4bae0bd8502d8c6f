"""What nothing needs goes, with what was made of it; what somebody needs, or wants, stays."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.lifecycle import BuildState
from environments.jobs import blob_gc
from environments.models import (
    Artifact,
    BaseImage,
    BaseLayer,
    Blob,
    Build,
    Environment,
    ImageBlob,
    ImageIndex,
    Layer,
    LockRow,
)
from environments.services import blobs
from tests import factories
from tests.environments.services.test_blobs import bucket, misbehaving, options_of, store, use  # noqa: F401 - fixtures

pytestmark = pytest.mark.django_db
NOW = timedelta(0)
OLD = timedelta(days=30)


def kept(folder: Path, content: str, *, unused: timedelta = OLD) -> Blob:
    path = folder / "made"
    path.write_text(content)
    blob = blobs.add(path)
    moment = timezone.now() - unused
    Blob.objects.filter(pk=blob.pk).update(used_at=moment, stored_at=moment)
    blob.refresh_from_db()
    return blob


def made_of(
    lock: LockRow, blob: Blob | None, kind: ArtifactKind = ArtifactKind.TAR_ZST
) -> Artifact:
    return Artifact.objects.create(
        lock=lock,
        kind=kind,
        platform="linux-64",
        recipe=1,
        state=ArtifactState.READY if blob else ArtifactState.QUEUED,
        blob=blob,
    )


def collect_twice() -> blob_gc.Report:
    """The first round marks, the second removes."""
    blob_gc.collect(notice=NOW)
    return blob_gc.collect(notice=NOW)


def exists(blob: Blob) -> bool:
    there = Blob.objects.filter(pk=blob.pk).exists()
    assert blobs.storage().exists(blobs.name_of(blob.sha256)) == there
    return there


def delete(build: Build, *, ago: timedelta = OLD) -> None:
    Build.objects.filter(pk=build.pk).update(deleted_at=timezone.now() - ago)


def lock_of(build: Build) -> LockRow:
    assert build.lock is not None
    return build.lock


def test_bytes_that_nothing_needs_are_marked_and_go_a_round_later(
    store: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    blob = kept(tmp_path, f"nobody needs this in {store}")
    first = blob_gc.collect()
    assert (first.marked.number, first.marked.size) == (1, blob.size)
    assert exists(blob)
    assert blob_gc.collect().removed.number == 0  # marked a moment ago only
    second = blob_gc.collect(notice=NOW)
    assert (second.removed.number, second.removed.size) == (1, blob.size)
    assert not exists(blob)


def test_what_was_used_within_the_grace_stays(tmp_path: Path, settings: Any) -> None:
    blob = kept(tmp_path, "used yesterday", unused=settings.COLLECTION_GRACE / 2)
    collect_twice()
    assert exists(blob)


@pytest.mark.parametrize("state", [BuildState.READY, BuildState.ARCHIVED, BuildState.LINKING])
def test_what_a_kept_build_needs_stays_until_the_build_is_gone(
    environment: Environment, tmp_path: Path, state: BuildState
) -> None:
    text = "the package itself"
    package = factories.make_package("python", sha256=hashlib.sha256(text.encode()).hexdigest())
    build = factories.make_build(environment, state, lock=factories.make_lock(package))
    archive, original = kept(tmp_path, "an archive"), kept(tmp_path, text)
    artifact = made_of(lock_of(build), archive)
    collect_twice()
    assert exists(archive)
    assert exists(original)
    delete(build, ago=timedelta(hours=1))  # it may still be brought back
    collect_twice()
    assert exists(archive)
    assert exists(original)
    delete(build)
    assert collect_twice().removed.number == 2
    assert not exists(archive)
    assert not exists(original)
    assert not Artifact.objects.filter(pk=artifact.pk).exists()


def test_a_deleted_environment_keeps_nothing_after_the_window(
    environment: Environment, tmp_path: Path
) -> None:
    build = factories.make_build(environment)
    archive = kept(tmp_path, "an archive")
    made_of(lock_of(build), archive)
    Environment.objects.filter(pk=environment.pk).update(deleted_at=timezone.now() - OLD)
    collect_twice()
    assert not exists(archive)


def test_a_lock_that_another_build_has_keeps_its_files(
    environment: Environment, tmp_path: Path
) -> None:
    one, two = factories.make_build(environment), factories.make_build(environment)
    archive = kept(tmp_path, "an archive")
    made_of(lock_of(one), archive)
    delete(one)
    collect_twice()
    assert exists(archive)
    delete(two)
    collect_twice()
    assert not exists(archive)


def test_layers_stay_with_the_images_that_are_kept_and_go_with_the_last(
    environment: Environment, tmp_path: Path
) -> None:
    build = factories.make_build(environment)
    other = factories.make_build(
        environment, lock=factories.make_lock(factories.make_package("other"))
    )
    shared, own, unused = (kept(tmp_path, name) for name in ("shared", "own", "zstd form"))
    manifest, index, base = (kept(tmp_path, name) for name in ("manifest", "index", "base"))
    layer = Layer.objects.create(
        key="1" * 64, label="python", diff_id="2" * 64, size=1, gzip=shared, zstd=unused
    )
    first = made_of(lock_of(build), manifest, ArtifactKind.IMAGE)
    second = made_of(lock_of(other), None, ArtifactKind.IMAGE)
    for artifact, blob in ((first, shared), (first, own), (first, manifest), (second, shared)):
        ImageBlob.objects.create(artifact=artifact, blob=blob, media_type="x")
    ImageIndex.objects.create(lock=lock_of(build), blob=index)
    image = BaseImage.objects.create(name="machine", platform="linux-64", digest="3" * 64)
    BaseLayer.objects.create(base=image, position=0, diff_id="4" * 64, media_type="x", blob=base)
    collect_twice()
    assert not exists(unused)
    assert all(exists(blob) for blob in (shared, own, manifest, index, base))
    layer.refresh_from_db()
    assert (layer.gzip, layer.zstd) == (shared, None)
    delete(build)
    collect_twice()
    assert exists(shared)
    assert exists(base)
    assert not any(exists(blob) for blob in (own, manifest, index))
    delete(other)
    collect_twice()
    assert not exists(shared)
    assert exists(base)
    assert not Layer.objects.exists()
    assert not Artifact.objects.filter(blob=None, state=ArtifactState.READY).exists()


def test_one_who_keeps_the_same_bytes_again_takes_the_mark_away(tmp_path: Path) -> None:
    blob = kept(tmp_path, "wanted again")
    blob_gc.collect()
    assert Blob.objects.exclude(removing_at=None).get() == blob
    (tmp_path / "made").write_text("wanted again")
    assert blobs.add(tmp_path / "made") == blob
    assert blob_gc.collect(notice=NOW).removed.number == 0
    assert exists(blob)
    assert Blob.objects.get().removing_at is None


def test_a_mark_whose_bytes_are_gone_already_is_no_reason_to_keep_none(tmp_path: Path) -> None:
    blob = kept(tmp_path, "half removed")
    blob_gc.collect()
    blobs.remove(blob)  # and there its worker was killed
    (tmp_path / "made").write_text("half removed")
    blobs.add(tmp_path / "made")
    assert exists(blob)


def test_what_is_needed_again_is_not_removed(environment: Environment, tmp_path: Path) -> None:
    build = factories.make_build(environment)
    archive = kept(tmp_path, "an archive")
    made_of(lock_of(build), archive)
    delete(build)
    assert blob_gc.collect().marked.number == 1
    Build.objects.filter(pk=build.pk).update(deleted_at=None)
    report = blob_gc.collect(notice=NOW)
    assert (report.removed.number, report.needed_again.number) == (0, 1)
    assert exists(archive)
    assert Blob.objects.get(pk=archive.pk).removing_at is None


def test_a_dry_run_counts_and_changes_nothing(tmp_path: Path) -> None:
    blob = kept(tmp_path, "nobody needs this")
    for _ in range(2):
        report = blob_gc.collect(dry_run=True, notice=NOW)
        assert report.marked.size == blob.size
    assert Blob.objects.get().removing_at is None


def test_rows_without_bytes_are_found_once_they_are_a_day_old(
    store: str,  # noqa: F811
    environment: Environment,
    tmp_path: Path,
) -> None:
    build = factories.make_build(environment)
    old, new = kept(tmp_path, f"old {store}"), kept(tmp_path, f"new {store}", unused=NOW)
    made_of(lock_of(build), old)
    for blob in (old, new):
        blobs.storage().delete(blobs.name_of(blob.sha256))
    assert blob_gc.collect(dry_run=True).without_bytes.number == 1
    assert not Blob.objects.exclude(damaged_at=None).exists()
    assert blob_gc.collect().without_bytes.number == 1
    assert Blob.objects.exclude(damaged_at=None).get() == old
    assert blob_gc.collect().without_bytes.number == 0  # told once


def test_bytes_without_a_row_are_found_once_they_are_a_day_old_and_then_go(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashlib.sha256(b"whole").hexdigest()
    other = "ab" + "0" * 62
    for digest, content in ((whole, b"whole"), (other, b"something")):
        path = data_folder / "blobs" / blobs.name_of(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    left = path.with_name(f".{other}-half")
    left.write_bytes(b"half")
    report = blob_gc.collect(notice=NOW)
    assert report.without_row.number == 0
    monkeypatch.setattr(blob_gc, "ORPHAN", NOW)
    assert blob_gc.collect(dry_run=True).without_row.number == 3
    assert left.exists()
    report = blob_gc.collect()
    assert (report.without_row.number, report.without_row.size) == (3, 18)
    assert not left.exists()
    assert Blob.objects.get(sha256=whole).damaged_at is None
    assert Blob.objects.get(sha256=other).damaged_at is not None
    Blob.objects.update(used_at=timezone.now() - OLD)
    assert blob_gc.collect(notice=NOW).removed.number == 2
    assert not Blob.objects.exists()
    assert not path.exists()


def test_a_package_without_a_row_that_a_build_needs_stays(
    environment: Environment, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(b"whole").hexdigest()
    package = factories.make_package("python", sha256=digest)
    factories.make_build(environment, lock=factories.make_lock(package))
    path = data_folder / "blobs" / blobs.name_of(digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"whole")
    monkeypatch.setattr(blob_gc, "ORPHAN", NOW)
    collect_twice()
    blob = Blob.objects.get()
    assert (blob.removing_at, blob.damaged_at, path.read_bytes()) == (None, None, b"whole")


def test_a_store_that_fails_keeps_the_row(tmp_path: Path, settings: Any) -> None:
    blob = kept(tmp_path, "nobody needs this")
    blob_gc.collect()
    files = settings.STORAGES["default"]
    with misbehaving("500") as url:
        use(settings, options_of(url, "any"))
        with pytest.raises(Exception, match="500"):
            blob_gc.collect(notice=NOW)
    use(settings, files)
    assert exists(blob)
    assert blob_gc.collect(notice=NOW).removed.number == 1
