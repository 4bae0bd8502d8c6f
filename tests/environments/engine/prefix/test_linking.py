"""Linking: prefixes for their final path, atomic publication, and shared disk space."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import ConflictError, LeaseLostError, LinkError
from environments.domain.progress import Progress
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix import linking
from environments.engine.prefix.linking import (
    LinkReport,
    empty_trash,
    move_to_trash,
    publish_prefix,
    set_link,
)
from environments.engine.system.disk import tree_size
from tests.channels.conda_package import PackageFile, PackageSpec
from tests.environments.engine.package_fixtures import channel_of, lock_of, packages_of

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def cache(shared_cache: PackageCache) -> PackageCache:
    """One for all of these tests: extracting a Python costs more than most of them."""
    return shared_cache


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "prefixes" / ".hidden"


def link(
    packages: Sequence[CondaPackage], target: Path, cache: PackageCache, **options: Any
) -> LinkReport:
    lock = lock_of(*packages)
    chosen: dict[str, Any] = {
        "final_prefix": target.with_name("1-final"),
        "requested": [],
        "variables": {},
        "moment": NOON,
        "note": "condastore build 1",
    }
    return linking.link(
        lock, target=target, cache=cache, packages=cache.ensure(lock.conda), **(chosen | options)
    )


@pytest.fixture
def stack(small_channel: Path) -> list[CondaPackage]:
    found = packages_of(small_channel)
    return [found[name] for name in ("libalpha", "libbeta", "apptool", "python", "hello-noarch")]


def test_a_prefix_is_linked_for_its_final_place(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    report = link(stack, target, cache)
    assert (target / "bin/hello-noarch").stat().st_mode & 0o777 == 0o755
    final = target.with_name("1-final")
    publish_prefix(target, final)
    assert run(final / "bin" / "apptool") == f"{final}/share/apptool"
    assert run(final / "bin" / "hello-noarch") == f"hello 2.0 from {final}"
    assert run(final / "bin" / "hello-script") == f"hello 2.0 from {final}"
    assert report.python is not None
    assert report.python.site_packages.startswith("lib/python3.")
    assert report.paths > 100


def run(*command: Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n\0 ")


def test_nothing_in_a_prefix_names_the_place_it_was_made_in(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    link(stack, target, cache)
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert os.fsencode(target) not in content, path
            assert os.fsencode(cache.views) not in content, path
    assert not (target / "CACHEDIR.TAG").exists()


def test_files_are_hard_links_of_the_cache(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    report = link(stack, target, cache)
    size = tree_size(target)
    notes = tree_size(target / "conda-meta").apparent
    assert size.unique - notes <= report.bytes_unique * 1.2 + 10_000
    assert size.unique < size.apparent / 2
    second = target.with_name(".second")
    link(stack, second, cache)
    assert tree_size(second).unique - notes <= report.bytes_unique * 1.2 + 10_000


def test_conda_reads_the_metadata_of_the_prefix(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    link(
        stack,
        target,
        cache,
        requested=["apptool 2.*", "hello-noarch"],
        variables={"ANSWER": "42"},
    )
    meta = target / "conda-meta"
    history = (meta / "history").read_text().splitlines()
    assert history[0] == "==> 2026-05-01 12:00:00 <=="
    assert history[1] == "# cmd: condastore build 1"
    assert any(line.endswith(f"::apptool-2.0-{stack[2].build}") for line in history)
    assert history[-1] == '# update specs: ["apptool 2.*", "hello-noarch"]'
    assert json.loads((meta / "frozen").read_text())["message"]
    assert json.loads((meta / "state").read_text()) == {
        "version": 1,
        "env_vars": {"ANSWER": "42"},
    }
    record = json.loads((meta / f"apptool-2.0-{stack[2].build}.json").read_text())
    assert record["requested_specs"] == ["apptool 2.*"]
    assert record["url"] == stack[2].url
    assert record["extracted_package_dir"] == record["link"]["source"]
    assert Path(record["link"]["source"]).is_dir()
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in meta.iterdir())


def test_what_cannot_replace_a_file_is_refused_before_anything_is_linked(
    tmp_path: Path, target: Path, cache: PackageCache
) -> None:
    found = channel_of(
        tmp_path / "channel",
        PackageSpec("one", "1.0", noarch="generic", files=[PackageFile.text("share/x", "one")]),
        PackageSpec("two", "1.0", noarch="generic", files=[PackageFile.link("share/x", "y")]),
    )
    with pytest.raises(LinkError, match="share/x") as caught:
        link([found["one"], found["two"]], target, cache)
    assert "one-1.0" in str(caught.value)
    assert "two-1.0" in str(caught.value)
    assert caught.value.details["faults"][0]["path"] == "share/x"
    assert not target.exists()


def test_the_same_file_in_two_packages_is_linked_once(
    tmp_path: Path, target: Path, cache: PackageCache
) -> None:
    found = channel_of(
        tmp_path / "channel",
        *(
            PackageSpec(
                name,
                "1.0",
                noarch="generic",
                files=[
                    PackageFile.text("share/same.txt", "same\n"),
                    PackageFile.text(f"share/{name}.txt", name),
                ],
            )
            for name in ("one", "two")
        ),
    )
    link([found["one"], found["two"]], target, cache)
    assert sorted(path.name for path in target.iterdir()) == ["conda-meta", "share"]
    assert len(list((target / "share").iterdir())) == 3
    for name in ("one", "two"):
        [note] = (target / "conda-meta").glob(f"{name}-1.0-*.json")
        record = json.loads(note.read_text())
        assert sorted(record["files"]) == sorted([f"share/{name}.txt", "share/same.txt"])
        assert all("original_path" not in path for path in record["paths_data"]["paths"])


def test_odd_paths_arrive_as_they_are(
    small_channel: Path, target: Path, cache: PackageCache
) -> None:
    link([packages_of(small_channel)["odd-paths"]], target, cache)
    odd = target / "share" / "odd paths"
    assert (odd / "ünï-日本語.txt").read_text() == "unicode\n"
    assert (odd / "link.txt").read_text() == "space\n"
    assert (odd / "dangling-link").readlink() == Path("nowhere")
    assert (odd / "read-only.txt").stat().st_mode & 0o777 == 0o444
    assert (odd / "run.sh").stat().st_mode & 0o111


def test_an_empty_folder_is_made(small_channel: Path, target: Path, cache: PackageCache) -> None:
    link([packages_of(small_channel)["empty-folder"]], target, cache)
    assert (target / "share" / "empty-folder" / "empty").is_dir()


@pytest.mark.parametrize(
    "names",
    [
        ["older-format"],
        ["activating"],
        ["libalpha-1.1", "legacy-app"],
        ["libalpha", "libbeta", "apptool"],
        ["demo-stack", "apptool", "libalpha", "libbeta", "license-mit", "license-bsd"],
    ],
)
def test_the_corners_of_the_format_link(
    small_channel: Path, target: Path, cache: PackageCache, names: list[str]
) -> None:
    found = packages_of(small_channel)
    report = link([found[name] for name in names], target, cache)
    records = list((target / "conda-meta").glob("*.json"))
    assert len(records) == len(names)
    assert report.python is None


def test_link_scripts_are_reported_and_not_run(
    small_channel: Path, target: Path, cache: PackageCache
) -> None:
    package = packages_of(small_channel)["post-linked"]
    report = link([package], target, cache)
    [(name, scripts)] = report.link_scripts.items()
    assert name == f"post-linked-1.0-{package.build}"
    assert scripts == ("bin/.post-linked-post-link.sh", "bin/.post-linked-pre-unlink.sh")
    assert not (target / "post-link-ran").exists()


def test_a_python_package_without_python_says_so(
    small_channel: Path, target: Path, cache: PackageCache
) -> None:
    with pytest.raises(LinkError, match="the environment has no python"):
        link([packages_of(small_channel)["hello-noarch"]], target, cache)


def test_a_prefix_too_long_for_a_binary_is_refused(
    small_channel: Path, target: Path, cache: PackageCache
) -> None:
    final = target.with_name("x" * 255)
    with pytest.raises(LinkError, match="room for a prefix of 255 bytes"):
        link([packages_of(small_channel)["libalpha"]], target, cache, final_prefix=final)


def test_a_link_out_of_the_prefix_is_refused(
    tmp_path: Path, target: Path, cache: PackageCache
) -> None:
    found = channel_of(
        tmp_path / "channel",
        PackageSpec(
            "leaky", "1.0", noarch="generic", files=[PackageFile.link("share/x", "../../../x")]
        ),
    )
    with pytest.raises(LinkError, match="leads out of the package"):
        link([found["leaky"]], target, cache)


def test_an_existing_target_is_not_changed(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    target.mkdir(parents=True)
    with pytest.raises(FileExistsError):
        link(stack, target, cache)
    assert not list(target.iterdir())


def test_progress_counts_packages(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    seen: list[Progress] = []
    link(stack, target, cache, progress=seen.append)
    assert [each.done for each in seen] == [1, 2, 3, 4, 5]
    assert {each.current for each in seen} == {package.name for package in stack}


def test_a_cancel_stops_the_linking(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    cancel = threading.Event()
    with pytest.raises(LeaseLostError):
        link(
            stack,
            target,
            cache,
            progress=lambda progress: cancel.set(),
            cancelled=cancel.is_set,
        )
    assert not list(cache.views.iterdir())


def test_two_builds_link_at_the_same_time_from_one_cache(
    stack: list[CondaPackage], target: Path, cache: PackageCache
) -> None:
    cache.ensure(stack)
    targets = [target.with_name(f".hidden-{number}") for number in range(4)]
    threads = [threading.Thread(target=link, args=(stack, each, cache)) for each in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = {
        frozenset(os.fspath(path.relative_to(each)) for path in each.rglob("*")) for each in targets
    }
    assert len(files) == 1


def test_equal_names_of_two_channels_are_linked_each_as_its_own(
    tmp_path: Path, cache: PackageCache
) -> None:
    for content in ("one", "two"):
        spec = PackageSpec(
            "twin", "1", build="0", noarch="generic", files=[PackageFile.text("share/x", content)]
        )
        package = channel_of(tmp_path / content, spec)["twin"]
        link([package], tmp_path / f"prefix-{content}", cache)
    assert (tmp_path / "prefix-one" / "share" / "x").read_text() == "one"
    assert (tmp_path / "prefix-two" / "share" / "x").read_text() == "two"


def test_a_package_of_another_platform_can_be_linked(
    small_channel: Path, target: Path, cache: PackageCache
) -> None:
    """Images and archives for other machines are made here too."""
    repodata = json.loads((small_channel / "osx-arm64" / "repodata.json").read_text())
    file_name, record = next(
        (name, record)
        for name, record in repodata["packages.conda"].items()
        if record["name"] == "libalpha"
    )
    package = CondaPackage.from_record(
        record,
        url=f"{small_channel.as_uri()}/osx-arm64/{file_name}",
        channel=small_channel.as_uri(),
        file_name=file_name,
    )
    lock = replace(lock_of(package), platform="osx-arm64")
    linking.link(
        lock,
        target=target,
        final_prefix=Path("/opt/env"),
        cache=cache,
        packages=cache.ensure(lock.conda),
        requested=["libalpha"],
        variables={},
        moment=NOON,
        note="",
    )
    assert "prefix=/opt/env\n" in (target / "lib" / "pkgconfig" / "libalpha.pc").read_text()


class TestPublishing:
    def test_a_prefix_appears_by_a_rename_and_is_never_replaced(self, tmp_path: Path) -> None:
        hidden, final = tmp_path / ".hidden", tmp_path / "research" / "1-x"
        for content in ("first", "second"):
            hidden.mkdir()
            (hidden / "file").write_text(content)
            if content == "first":
                publish_prefix(hidden, final)
            else:
                with pytest.raises(ConflictError, match="never replaced"):
                    publish_prefix(hidden, final)
        assert (final / "file").read_text() == "first"
        assert hidden.exists()

    def test_a_reader_of_the_pointer_always_sees_an_environment(self, tmp_path: Path) -> None:
        prefixes = [tmp_path / "prefixes" / name for name in ("1", "2")]
        for prefix in prefixes:
            prefix.mkdir(parents=True)
            (prefix / "file").write_text(prefix.name)
        pointer = tmp_path / "envs" / "research" / "ml"
        set_link(pointer, prefixes[0])
        seen: set[str] = set()
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.add((pointer / "file").read_text())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for number in range(200):
                set_link(pointer, prefixes[number % 2])
        finally:
            done.set()
            reader.join()
        assert seen == {"1", "2"}
        assert [path.name for path in pointer.parent.iterdir()] == ["ml"]
        assert not pointer.readlink().is_absolute(), "the store may be moved"

    def test_removing_a_pointer_removes_its_empty_folder(self, tmp_path: Path) -> None:
        pointer = tmp_path / "envs" / "research" / "ml"
        set_link(pointer, tmp_path)
        linking.remove_link(pointer)
        linking.remove_link(pointer)
        assert not pointer.parent.exists()

    def test_the_trash_is_emptied_whatever_its_contents(
        self, stack: list[CondaPackage], target: Path, cache: PackageCache, tmp_path: Path
    ) -> None:
        trash = tmp_path / "trash"
        link(stack, target, cache)
        (target / "closed" / "inner").mkdir(parents=True)
        (target / "closed" / "inner" / "file").write_text("x")
        (target / "closed").chmod(0o500)
        (target / "door").symlink_to(tmp_path)
        shared = target / "lib" / "libalpha.bin.current"
        modes = {path: path.stat().st_mode for path in cache.folder.rglob("*") if path.is_file()}
        assert shared.exists()
        first = move_to_trash(target, trash)
        assert first is not None
        assert move_to_trash(target, trash) is None
        assert empty_trash(trash) == 1
        assert not list(trash.iterdir())
        assert tmp_path.exists()
        assert {path: path.stat().st_mode for path in modes} == modes
        assert empty_trash(tmp_path / "no-trash") == 0

    def test_emptying_the_trash_survives_files_that_appear_meanwhile(self, tmp_path: Path) -> None:
        trash = tmp_path / "trash"
        folder = trash / "prefix" / "lib"
        folder.mkdir(parents=True)
        done = threading.Event()

        def write() -> None:
            number = 0
            while not done.is_set():
                number += 1
                try:
                    (folder / str(number)).write_text("x")
                except FileNotFoundError:
                    return

        writer = threading.Thread(target=write)
        writer.start()
        try:
            empty_trash(trash)
        finally:
            done.set()
            writer.join()
        empty_trash(trash)
        assert not list(trash.iterdir())

    def test_emptying_can_be_cancelled(self, tmp_path: Path) -> None:
        trash = tmp_path / "trash"
        (trash / "a" / "b").mkdir(parents=True)
        with pytest.raises(LeaseLostError):
            empty_trash(trash, cancelled=lambda: True)
        assert (trash / "a" / "b").exists()
