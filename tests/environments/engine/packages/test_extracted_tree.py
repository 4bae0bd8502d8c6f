"""Validation of extracted trees, without following links."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from condastore.errors import LinkError
from environments.domain.unpacking import Limits, LinkEnd, link_end, path_fault
from environments.engine.packages.extracted_tree import MAX_DEPTH, folder_of_links, read_tree

LIMITS = Limits(unpacked=1000, ratio=10, entries=150, path_bytes=300)


def read(tree: Path, *, packed: int = 100, **options: bool) -> dict[str, str]:
    found = read_tree(tree, name="tool.conda", packed=packed, limits=LIMITS, **options)
    return {path: entry.kind for path, entry in found.items()}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "libtool.so.1").write_bytes(b"12345")
    (folder / "lib" / "libtool.so").symlink_to("libtool.so.1")
    (folder / "lib64").symlink_to("lib")
    (folder / "share").mkdir()
    return folder


def test_files_folders_and_links_within_the_tree_are_taken(tree: Path) -> None:
    os.link(tree / "lib/libtool.so.1", tree / "share/same")  # archives may name a file twice
    (tree / "share/else").symlink_to("../lib64/nothing")  # another package brings it
    (tree / "share").chmod(0o2755)  # inherited from the folder of the cache
    assert read(tree) == {
        "lib": "folder",
        "lib/libtool.so": "link",
        "lib/libtool.so.1": "file",
        "lib64": "link",
        "share": "folder",
        "share/else": "link",
        "share/same": "file",
    }


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))


def hard_link(path: Path) -> None:
    (path.parents[1] / "secret").write_text("secret")
    os.link(path.parents[1] / "secret", path)


def set_user_id(path: Path) -> None:
    path.touch()
    path.chmod(0o4755)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def deep(path: Path) -> None:
    (path / "/".join("a" * (MAX_DEPTH + 1))).mkdir(parents=True)


def many(path: Path) -> None:
    path.mkdir()
    for number in range(LIMITS.entries):
        (path / str(number)).touch()


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absolute link": (lambda path: path.symlink_to("/etc/passwd"), "leads out of the package"),
    "relative link": (lambda path: path.symlink_to("../../secret"), "leads out of the package"),
    "link through a link": (
        lambda path: path.symlink_to("lib64/../../secret"),
        "leads out of the package",
    ),
    "link in a circle": (lambda path: path.symlink_to("evil"), "has no target"),
    "fifo": (fifo, "not a file, a link or a folder"),
    "socket": (bound_socket, "not a file, a link or a folder"),
    "hard link": (hard_link, "hard link to a file outside"),
    "set-user-ID": (set_user_id, "would run as another user"),
    "large": (lambda path: path.write_bytes(bytes(2000)), "more than 1,000 bytes"),
    "sparse": (sparse, "more than 1,000 bytes"),
    "deep": (deep, "nests more than"),
    "many": (many, "more than 150 entries"),
    "long": (lambda path: (path / ("a" * 150) / ("b" * 150)).mkdir(parents=True), "is too long"),
    "control character": (lambda path: path.with_name("a\x1bb").touch(), "cannot be printed"),
    "not text": (lambda path: path.with_name("a\udcffb").touch(), "is not text"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_no_package_may_hold_is_refused(tree: Path, attack: str) -> None:
    make, message = ATTACKS[attack]
    make(tree / "evil")
    with pytest.raises(LinkError, match=message) as caught:
        read(tree)
    assert "tool.conda" in caught.value.message


def test_files_that_prefixes_share_are_taken_where_they_may_be(tree: Path) -> None:
    hard_link(tree / "evil")
    assert read(tree, linked_elsewhere=True)["evil"] == "file"


def test_the_ratio_counts_above_what_every_archive_may_unpack_to(tmp_path: Path) -> None:
    limits = Limits(ratio=10)
    (tmp_path / "zeros").touch()
    os.truncate(tmp_path / "zeros", 65 << 20)
    with pytest.raises(LinkError, match="more than 67,108,864 bytes, and has 807 packed"):
        read_tree(tmp_path, name="bomb", packed=807, limits=limits)
    with pytest.raises(LinkError, match="more than 10 times its size"):
        read_tree(tmp_path, name="bomb", packed=6_800_000, limits=limits)
    assert read_tree(tmp_path, name="honest", packed=7 << 20, limits=limits)
    os.truncate(tmp_path / "zeros", 60 << 20)
    assert read_tree(tmp_path, name="small", packed=807, limits=limits)


def test_paths_behind_a_link_are_not_in_the_tree(tree: Path) -> None:
    found = read_tree(tree, name="tool.conda", packed=100, limits=LIMITS)
    assert "lib64/libtool.so" not in found
    assert folder_of_links("lib64/libtool.so", found) == "lib64"
    assert folder_of_links("lib/libtool.so.1/x", found) == "lib/libtool.so.1"
    assert folder_of_links("lib/libtool.so", found) == folder_of_links("no/where", found) == ""


def test_a_walk_leaves_no_descriptor_open(tree: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    read(tree)
    (tree / "lib" / "evil").symlink_to("/etc")
    with pytest.raises(LinkError):
        read(tree)
    deep(tree / "deep")
    with pytest.raises(LinkError):
        read(tree)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


NAMES = st.sampled_from(["a", "b", "c"])
TARGETS = st.lists(st.sampled_from(["..", ".", "a", "b", "c", ""]), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    folders=st.sets(st.lists(NAMES, min_size=1, max_size=2).map("/".join), max_size=3),
    links=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=3).map("/".join), TARGETS.map("/".join), max_size=5
    ),
)
def test_a_link_that_is_found_to_end_inside_never_opens_what_is_outside(
    folders: set[str], links: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compared with the kernel: outside, whatever a link may name is there."""
    outside = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    root = outside / "a" / "b" / "c"
    root.mkdir(parents=True)
    for folder in ("a", "b", "c", "a/a", "a/c", "a/b/a", "a/b/b"):
        (outside / folder).mkdir(exist_ok=True)
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    created: dict[str, str] = {}
    for path, target in links.items():
        location = root / path
        behind_link = any(str(parent) in created for parent in Path(path).parents)
        if behind_link or os.path.lexists(location) or not target:
            continue
        location.parent.mkdir(parents=True, exist_ok=True)
        location.symlink_to(target)
        created[path] = target
    for path in created:
        try:
            reached = (root / path).resolve(strict=True)
        except (OSError, RuntimeError):
            continue  # nothing is opened
        if not reached.is_relative_to(root):
            assert link_end(path, created) is LinkEnd.OUTSIDE
    shutil.rmtree(outside)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", "empty"),
        ("/etc/passwd", "leads out"),
        ("a/../../b", "leads out"),
        ("..", "leads out"),
        ("a\\..\\b", "leads out"),
        ("C:evil", "leads out"),
        ("a\nb", "cannot be printed"),
        ("a" * 256, "too long"),
        ("a/" * 600, "too long"),
        ("a\udcff", "not text"),
        ("lib/a..b/...", ""),
        ("naïve/файл", ""),
        ("folder/", ""),
    ],
)
def test_a_path_that_no_archive_may_name_is_described(path: str, fault: str) -> None:
    assert fault in path_fault(path)
    assert bool(path_fault(path)) == bool(fault)
