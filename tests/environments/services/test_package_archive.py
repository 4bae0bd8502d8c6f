"""Packages that builds use are kept once, come from there when their channel is gone, and heal."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from condastore.errors import DownloadError
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import PackageCache
from environments.engine.packages.download_types import Patience
from environments.engine.pypi.install import WheelCache
from environments.jobs import builds, package_backfill
from environments.models import Blob, Build
from environments.services import blobs, engine_context
from environments.services.package_archive import PackageArchive, package_archive
from tests import factories
from tests.channels.server import ChannelServer, Fault
from tests.channels.simple_index import make_wheel
from tests.environments.engine.package_fixtures import packages_of
from tests.environments.engine.pypi.test_install import stored

pytestmark = pytest.mark.django_db(transaction=True)
HASTY = Patience(attempts=1)


def cache_in(folder: Path) -> PackageCache:
    return PackageCache(folder, archive=PackageArchive())


@pytest.fixture
def package(channel_server: ChannelServer, small_channel: Path) -> CondaPackage:
    """Large enough that it is extracted while it arrives."""
    return packages_of(small_channel, url=channel_server.url)["large-data"]


def gone(package: CondaPackage) -> CondaPackage:
    """As if nobody served it any more."""
    return replace(package, url="http://127.0.0.1:9/" + package.file_name)


def used(*packages: CondaPackage) -> None:
    """A build came to its end with these packages, from their URLs."""
    environment = factories.make_environment(factories.make_namespace())
    factories.make_build(environment, lock=factories.make_lock(*packages))


def damage(blob: Blob) -> None:
    path = blobs.local_path(blob)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_package_is_kept_once_and_serves_a_worker_whose_channel_is_gone(
    package: CondaPackage, small_channel: Path, tmp_path: Path, channel_server: ChannelServer
) -> None:
    small = packages_of(small_channel, url=channel_server.url)["apptool"]
    cache_in(tmp_path / "one").ensure([package, small])
    assert {blob.sha256 for blob in Blob.objects.all()} == {package.sha256, small.sha256}
    blob = Blob.objects.get(sha256=package.sha256)
    original = small_channel / package.subdir / package.file_name
    assert blobs.local_path(blob).read_bytes() == original.read_bytes()
    channel_server.requests.clear()
    used(gone(package), gone(small))
    [large, _] = cache_in(tmp_path / "two").ensure([gone(package), gone(small)], patience=HASTY)
    assert (large.folder / "info" / "index.json").is_file()
    assert len(channel_server.requests) == 0
    assert not list((tmp_path / "two" / "downloads").iterdir())
    assert Blob.objects.count() == 2
    assert Blob.objects.get(sha256=package.sha256).checked_at is not None


def test_kept_bytes_are_not_used_for_a_url_that_never_gave_them(
    package: CondaPackage, tmp_path: Path
) -> None:
    cache = cache_in(tmp_path / "one")
    cache.ensure([package])
    for location in (cache, cache_in(tmp_path / "two")):
        with pytest.raises(DownloadError):
            location.ensure([gone(package)], patience=HASTY)
        assert location.extracted(gone(package)) is None
    assert cache.extracted(package) is not None


def test_a_damaged_one_is_fetched_again_and_is_whole_from_then_on(
    package: CondaPackage, tmp_path: Path, channel_server: ChannelServer
) -> None:
    cache_in(tmp_path / "one").ensure([package])
    damage(Blob.objects.get())
    channel_server.requests.clear()
    cache_in(tmp_path / "two").ensure([package])
    assert channel_server.requests.count("*large-data-*") == 1
    assert Blob.objects.get().damaged_at is None
    used(gone(package))
    cache_in(tmp_path / "three").ensure([gone(package)], patience=HASTY)


def test_a_damaged_one_whose_channel_is_gone_is_told_of_and_never_used(
    package: CondaPackage, tmp_path: Path
) -> None:
    cache_in(tmp_path / "one").ensure([package])
    damage(Blob.objects.get())
    used(gone(package))
    with pytest.raises(DownloadError):
        cache_in(tmp_path / "two").ensure([gone(package)], patience=HASTY)
    assert Blob.objects.get().damaged_at is not None
    assert PackageArchive().missing([package]) == [package]
    assert not (tmp_path / "two" / package.sha256).exists()


def test_wrong_bytes_are_not_kept(
    package: CondaPackage, tmp_path: Path, channel_server: ChannelServer
) -> None:
    channel_server.faults.add(Fault("*large-data-*", wrong_bytes=True))
    with pytest.raises(DownloadError):
        cache_in(tmp_path / "one").ensure([package])
    assert not Blob.objects.exists()


def test_what_is_extracted_already_asks_nobody(package: CondaPackage, tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "one")
    cache.ensure([package])
    with CaptureQueriesContext(connection) as queries:
        cache.ensure([package])
    assert len(queries) == 0


def test_wheels_are_kept_too(tmp_path: Path) -> None:
    wheel = stored(make_wheel("kept", "1.0", files={"kept.py": "x = 1\n"}), tmp_path / "index")
    WheelCache(tmp_path / "one", archive=PackageArchive()).ensure([wheel])
    (tmp_path / "index" / wheel.file_name).unlink()
    [cached] = WheelCache(tmp_path / "two", archive=PackageArchive()).ensure([wheel])
    assert (cached.folder / "kept.py").read_text() == "x = 1\n"


def test_a_full_blob_store_does_not_fail_a_build(
    package: CondaPackage, tmp_path: Path, data_folder: Path
) -> None:
    (data_folder / "blobs").write_text("a file, where a folder is to be")
    [cached] = cache_in(tmp_path / "one").ensure([package])
    assert cached.folder.is_dir()
    assert not Blob.objects.exists()


def test_an_installation_may_keep_none(
    package: CondaPackage, tmp_path: Path, settings: Any
) -> None:
    settings.KEEP_PACKAGES = False
    PackageCache(tmp_path / "one", archive=package_archive()).ensure([package])
    assert not Blob.objects.exists()


def test_what_a_cache_had_before_is_kept_later_while_its_channel_has_it(
    submit: Any, settings: Any, engine: engine_context.Engine, channel_server: ChannelServer
) -> None:
    settings.KEEP_PACKAGES = False
    build = submit("dependencies: [apptool]")
    builds.run(build.pk)
    part = Build.objects.get(pk=build.pk).lock.value().platforms[0]
    assert len(PackageArchive().missing(part.conda)) == len(part.conda) > 1
    assert package_backfill.complete() == 0
    settings.KEEP_PACKAGES = True
    channel_server.faults.add(Fault("*/apptool-*", status=410))
    assert package_backfill.complete() == len(part.conda) - 1
    assert [one.name for one in PackageArchive().missing(part.conda)] == ["apptool"]
    channel_server.faults.clear()
    assert package_backfill.complete() == 1
    assert package_backfill.complete() == 0
    assert not list(blobs.blobs_folder().iterdir())


def test_a_build_keeps_all_of_its_packages_and_can_be_made_of_them(
    submit: Any, engine: Any, channel_server: ChannelServer
) -> None:
    build = submit("dependencies: [python, hello-noarch]")
    builds.run(build.pk)
    first = Build.objects.get(pk=build.pk)
    assert first.state == "READY", first.failure
    part = first.lock.value().platforms[0]
    assert PackageArchive().missing(part.conda) == []
    shutil.rmtree(engine.packages.folder)
    channel_server.faults.add(Fault("*.conda", status=410))
    channel_server.faults.add(Fault("*.tar.bz2", status=410))
    again = submit("dependencies: [python, hello-noarch]")
    builds.run(again.pk)
    assert Build.objects.get(pk=again.pk).state == "READY"
