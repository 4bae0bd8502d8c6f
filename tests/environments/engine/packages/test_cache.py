"""Package cache: one extraction per digest, and repair of damaged entries."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from condastore.errors import DownloadError, LeaseLostError, LinkError
from environments.domain.records import CondaPackage
from environments.engine.packages import downloads
from environments.engine.packages.cache import PackageCache
from tests.channels.conda_package import PackageFile, PackageSpec, write_package
from tests.channels.server import ChannelServer, Fault
from tests.environments.engine.package_fixtures import channel_of, packages_of


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "cache" / "packages")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_package_is_extracted_and_nothing_else_stays(
    cache: PackageCache, channel_server: ChannelServer, small_channel: Path
) -> None:
    package = packages_of(small_channel, url=channel_server.url)["apptool"]
    [cached] = cache.ensure([package])
    assert (cached.folder / "bin" / "apptool").is_file()
    assert cached.contents.label == "apptool-2.0-" + package.build
    assert names_in(cache.folder) == [".extracting", package.sha256, "downloads"]
    assert names_in(cache.downloads) == names_in(cache.folder / ".extracting") == []


def test_a_package_that_is_there_is_not_fetched_again(
    cache: PackageCache, channel_server: ChannelServer, small_channel: Path
) -> None:
    package = packages_of(small_channel, url=channel_server.url)["apptool"]
    first = cache.ensure([package])
    channel_server.requests.clear()
    assert cache.ensure([package]) == first
    assert len(channel_server.requests) == 0


def test_an_archive_from_before_paths_json_is_extracted_too(
    cache: PackageCache, tmp_path: Path
) -> None:
    """It lists its files, and those with a prefix, in files of their own."""
    package = old_package(
        tmp_path,
        {
            "info/files": "bin/run\nshare/plain.txt\n",
            "info/has_prefix": "/old/prefix text bin/run\n",
            "bin/run": "#!/bin/sh\necho /old/prefix\n",
            "share/plain.txt": "plain",
        },
    )
    [cached] = cache.ensure([package])
    run, plain = sorted(cached.contents.files)
    assert (run.path, run.placeholder, run.binary) == ("bin/run", len("/old/prefix"), False)
    assert (plain.path, plain.placeholder) == ("share/plain.txt", 0)
    assert plain.sha256 == hashlib.sha256(b"plain").hexdigest()


@pytest.mark.parametrize(
    "files",
    [
        {"info/paths.json": "[]"},
        {"info/paths.json": '{"paths": [{"path_type": "hardlink"}]}'},
        {"info/paths.json": '{"paths": [{"_path": "not/there"}]}'},
        {"info/paths.json": '{"paths": [{"_path": "x", "path_type": "softlink"}]}', "x": ""},
        {"info/paths.json": "{"},
        {"info/files": "bin/run\n", "info/has_prefix": '"/old" "text" "bin/run"', "bin/run": "x"},
    ],
)
def test_an_archive_without_valid_metadata_is_refused(
    cache: PackageCache, tmp_path: Path, files: Mapping[str, str]
) -> None:
    package = old_package(tmp_path, files)
    with pytest.raises(LinkError, match=r"old-1\.0-0\.tar\.bz2"):
        cache.ensure([package])
    assert not list(cache.entries())


def old_package(folder: Path, files: Mapping[str, str]) -> CondaPackage:
    index = {"name": "old", "version": "1.0", "build": "0", "build_number": 0, "depends": []}
    archive = folder / "old-1.0-0.tar.bz2"
    with tarfile.open(archive, "w:bz2") as tar:
        for path, text in {"info/index.json": json.dumps(index), **files}.items():
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    data = archive.read_bytes()
    record = index | {
        "subdir": "noarch",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }
    return CondaPackage.from_record(
        record, url=archive.as_uri(), channel=folder.as_uri(), file_name=archive.name
    )


@pytest.mark.parametrize("damage", ["missing", "shorter", "folder", "note"])
def test_damage_is_noticed_and_repaired(
    cache: PackageCache, small_channel: Path, damage: str
) -> None:
    package = packages_of(small_channel)["libalpha"]
    [cached] = cache.ensure([package])
    victim = cached.folder / "lib" / "libalpha.bin"
    size = victim.stat().st_size
    if damage == "missing":
        victim.unlink()
    elif damage == "shorter":
        os.truncate(victim, 3)
    elif damage == "folder":
        shutil.rmtree(cached.folder)
    else:
        (cached.folder.parent / "contents.json").write_text("{")
    cache.ensure([package])
    assert victim.stat().st_size == size


def test_packages_of_equal_names_and_different_bytes_stay_separate(
    cache: PackageCache, tmp_path: Path
) -> None:
    """Two channels have the same name, version and build."""

    def spec(content: str) -> PackageSpec:
        return PackageSpec(
            "twin",
            "1.0",
            build="0",
            noarch="generic",
            files=[PackageFile.text("share/twin", content)],
        )

    one = channel_of(tmp_path / "one", spec("from one"))["twin"]
    two = channel_of(tmp_path / "two", spec("from two"))["twin"]
    assert one.file_name == two.file_name
    cached = cache.ensure([one]) + cache.ensure([two]) + cache.ensure([one])
    assert [(each.folder / "share" / "twin").read_text() for each in cached] == [
        "from one",
        "from two",
        "from one",
    ]
    with cache.view(cached[:1]) as first, cache.view(cached[1:2]) as second:
        label = cached[0].contents.label
        assert (first / label / "share" / "twin").read_text() == "from one"
        assert (second / label / "share" / "twin").read_text() == "from two"
    assert not first.exists()


def test_wrong_bytes_never_enter(
    cache: PackageCache, channel_server: ChannelServer, small_channel: Path
) -> None:
    package = packages_of(small_channel, url=channel_server.url)["large-data"]
    channel_server.faults.add(Fault("linux-64/large-data-*", wrong_bytes=True))
    with pytest.raises(DownloadError, match="differs from the lock"):
        cache.ensure([package])
    assert not (cache.folder / package.sha256).exists()
    assert names_in(cache.folder / ".extracting") == []


def test_another_archive_in_its_place_never_enters(cache: PackageCache, own_channel: Path) -> None:
    packages = packages_of(own_channel)
    package = packages["libalpha-2.0"]
    other = packages["libalpha-2.1"]
    shutil.copy(
        own_channel / "linux-64" / other.file_name, own_channel / "linux-64" / package.file_name
    )
    with pytest.raises(DownloadError, match="differs from the lock"):
        cache.ensure([replace(package, size=0)])
    assert not (cache.folder / package.sha256).exists()


def test_a_file_that_is_not_an_archive_is_a_link_error(cache: PackageCache, tmp_path: Path) -> None:
    path = tmp_path / "broken-1.0-0.conda"
    path.write_bytes(b"this is no archive")
    spec = channel_of(
        tmp_path / "channel", PackageSpec("broken", "1.0", build="0", noarch="generic")
    )
    package = replace(
        spec["broken"],
        url=path.as_uri(),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
    )
    with pytest.raises(LinkError, match="cannot be extracted"):
        cache.ensure([package])


@pytest.mark.parametrize("ending", [".conda", ".tar.bz2"])
@pytest.mark.parametrize(
    "files",
    [
        [PackageFile("../outside", b"evil")],
        [PackageFile("share/../../outside", b"evil")],
        [PackageFile.link("door", ".."), PackageFile("door/outside", b"evil")],
    ],
    ids=["up", "up and down", "through a link"],
)
def test_nothing_is_written_outside_of_the_entry(
    cache: PackageCache, tmp_path: Path, files: list[PackageFile], ending: str
) -> None:
    channel = tmp_path / "channel"
    spec = PackageSpec("evil", "1.0", noarch="generic", files=files)
    write_package(spec, channel, archive_format=ending)  # type: ignore[arg-type]
    package = channel_of(channel)["evil"]
    with pytest.raises(LinkError):
        cache.ensure([package])
    assert not list(tmp_path.rglob("outside"))
    assert not (cache.folder / package.sha256).exists()


def test_a_package_cannot_choose_its_folder(cache: PackageCache, small_channel: Path) -> None:
    package = replace(packages_of(small_channel)["libalpha"], build="../../../x")
    with pytest.raises(LinkError, match="not a valid package name"):
        cache.ensure([package])


def test_the_last_use_is_noted(cache: PackageCache, small_channel: Path) -> None:
    package = packages_of(small_channel)["libalpha"]
    cache.ensure([package])
    os.utime(cache.folder / package.sha256 / "contents.json", (1, 1))
    [(digest, used)] = cache.entries()
    assert (digest, used) == (package.sha256, datetime.fromtimestamp(1, tz=UTC))
    cache.ensure([package])
    [(_, used)] = cache.entries()
    assert used > datetime.now(tz=UTC) - timedelta(hours=1)


def test_a_removed_entry_goes_to_the_trash(
    cache: PackageCache, small_channel: Path, tmp_path: Path
) -> None:
    package = packages_of(small_channel)["libalpha"]
    cache.ensure([package])
    cache.remove(package.sha256, trash=tmp_path / "trash")
    cache.remove(package.sha256, trash=tmp_path / "trash")
    assert not list(cache.entries())
    assert len(list((tmp_path / "trash").iterdir())) == 1


def test_leftovers_of_killed_workers_are_removed(cache: PackageCache) -> None:
    for name in (".extracting/old", ".extracting-older", "views/old", "views/new"):
        (cache.folder / name).mkdir(parents=True)
    for name in (".extracting/old", ".extracting-older", "views/old"):
        os.utime(cache.folder / name, (1, 1))
    cache.remove_leftovers(older_than=timedelta(days=1))
    assert [path.name for path in cache.views.iterdir()] == ["new"]
    assert names_in(cache.folder / ".extracting") == []
    assert not (cache.folder / ".extracting-older").exists()


def test_a_cancellation_leaves_no_partial_entry(
    cache: PackageCache, channel_server: ChannelServer, small_channel: Path
) -> None:
    packages = packages_of(small_channel, url=channel_server.url)
    channel_server.faults.add(Fault("linux-64/large-data-*", hang=20, hang_after=1000))
    with pytest.raises(LeaseLostError):
        cache.ensure(
            [packages["large-data"], packages["libalpha"]],
            cancelled=lambda: len(channel_server.requests) > 1,
        )
    for entry, _ in cache.entries():
        assert entry == packages["libalpha"].sha256


def test_an_interrupted_large_package_is_resumed(
    cache: PackageCache, channel_server: ChannelServer, small_channel: Path
) -> None:
    """It is extracted while it arrives; the cut ends that, and loses no byte."""
    package = packages_of(small_channel, url=channel_server.url)["large-data"]
    assert package.size > 2 * downloads.MIN_STREAMED_BYTES
    channel_server.faults.add(Fault("*/large-data-*", cut_after=package.size // 2, times=1))
    channel_server.requests.clear()
    [cached] = cache.ensure([package])
    assert cached.contents.files
    requested = [request for request in channel_server.requests if "large-data" in request.path]
    assert len(requested) == 2
    assert names_in(cache.folder) == [".extracting", package.sha256, "downloads"]
    assert names_in(cache.downloads) == names_in(cache.folder / ".extracting") == []


def test_a_large_package_with_wrong_bytes_never_enters(
    cache: PackageCache, channel_server: ChannelServer, small_channel: Path
) -> None:
    package = packages_of(small_channel, url=channel_server.url)["large-data"]
    channel_server.faults.add(Fault("*/large-data-*", wrong_bytes=True))
    with pytest.raises(DownloadError, match="differs from the lock"):
        cache.ensure([package])
    assert not list(cache.entries())
    assert not list(cache.downloads.iterdir())
