"""Disk space checks, sizes with shared files, and removal of trees."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from condastore.errors import DiskSpaceError, InvalidInputError
from environments.engine.system.disk import (
    remove_tree,
    require_same_file_system,
    require_space,
    tree_size,
)


def test_a_request_above_the_free_space_is_refused(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskSpaceError, match="are needed"):
        require_space(tmp_path / "not" / "there", free + 1)


def test_the_reserve_stays_free(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, 1000)
    with pytest.raises(DiskSpaceError):
        require_space(tmp_path, 1000, reserve=free)


def test_shared_files_count_in_the_apparent_size_only(tmp_path: Path) -> None:
    cache, prefix = tmp_path / "cache", tmp_path / "prefix"
    cache.mkdir()
    (prefix / "lib").mkdir(parents=True)
    (cache / "shared").write_bytes(b"x" * 1000)
    os.link(cache / "shared", prefix / "lib" / "shared")
    (prefix / "lib" / "own").write_bytes(b"x" * 10)
    (prefix / "link").symlink_to("lib/own")
    size = tree_size(prefix)
    assert size.files == 3
    assert size.unique == 10 + len("lib/own")
    assert size.apparent == 1000 + 10 + len("lib/own")


def test_a_file_linked_twice_inside_is_its_own_and_counted_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "one", tmp_path / "two")
    assert tree_size(tmp_path).unique == 1000


def test_one_file_system_is_accepted_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "prefixes").mkdir()
    require_same_file_system(tmp_path / "cache", tmp_path / "prefixes")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
    reason="there is no second file system",
)
def test_two_file_systems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be hard-linked"):
        require_same_file_system(tmp_path, Path("/dev/shm"))


def test_a_tree_is_removed_however_deep_it_is_and_whatever_its_modes() -> None:
    location = Path(tempfile.mkdtemp())  # where another user may come
    locked = location / "tree" / "locked"
    locked.mkdir(parents=True)
    for depth in range(250, 1501, 250):  # mkdir makes parents by recursion
        (location / "tree" / "/".join("a" * depth)).mkdir(parents=True)
    outside = location / "outside"
    outside.mkdir(mode=0o500)
    (locked / "link").symlink_to(outside)
    (locked / "file").touch(mode=0o400)
    locked.chmod(0o500)
    if as_root := os.geteuid() == 0:  # who may write everywhere
        subprocess.run(["chown", "-hR", "65534:65534", location], check=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            if as_root:
                os.seteuid(65534)
            remove_tree(location / "tree")
            status = int((location / "tree").exists())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert stat.S_IMODE(outside.stat().st_mode) == 0o500
    shutil.rmtree(location)
