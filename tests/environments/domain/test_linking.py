"""Packages that cannot stand in one prefix together are refused, every one by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.domain.linking import (
    LinkFault,
    PackageContents,
    PackageFile,
    PathConflict,
    PythonInfo,
    check_paths,
    prefix_path,
)

PYTHON = PythonInfo.of("3.11.7", platform="linux-64")


def file(
    path: str, content: str = "same", *, placeholder: int = 0, binary: bool = False
) -> PackageFile:
    return PackageFile(path, "file", len(content), content, "", placeholder, binary)


def link(path: str, target: str) -> PackageFile:
    return PackageFile(path, "link", 0, "", target, 0, binary=False)


def folder(path: str) -> PackageFile:
    return PackageFile(path, "folder", 0, "", "", 0, binary=False)


def package(
    name: str, *files: PackageFile, noarch: bool = False, entry_points: tuple[str, ...] = ()
) -> PackageContents:
    return PackageContents(
        name=name,
        label=f"{name}-1.0-0",
        noarch_python=noarch,
        files=files,
        entry_points=entry_points,
    )


def faults(
    *packages: PackageContents,
    python: PythonInfo | None = PYTHON,
    platform: str = "linux-64",
    prefix: str = "/store/prefixes/research/12-ml",
) -> list[LinkFault]:
    return [*check_paths(packages, python=python, platform=platform, prefix=prefix).faults]


def conflicts(*packages: PackageContents, platform: str = "linux-64") -> list[PathConflict]:
    checked = check_paths(packages, python=PYTHON, platform=platform, prefix="/p")
    assert not checked.faults
    return [*checked.conflicts]


def test_packages_side_by_side_have_no_fault() -> None:
    assert (
        faults(
            package(
                "one", file("lib/one.so"), link("lib/one.so.1", "one.so"), folder("share/empty")
            ),
            package("two", file("lib/two.so"), file("share/empty/file")),
        )
        == []
    )


def test_of_two_files_at_one_path_that_of_the_package_linked_last_is_kept() -> None:
    one, two = package("one", file("share/x", "one")), package("two", file("share/x", "two"))
    [conflict] = conflicts(one, two)
    assert conflict.path == "share/x"
    assert (conflict.winner, conflict.replaced) == ("two-1.0-0", ("one-1.0-0",))
    assert conflict.sentence == "two-1.0-0 replaces 'share/x' of one-1.0-0"
    assert PathConflict.from_json(conflict.to_json()) == conflict
    [other] = conflicts(two, one)
    assert other.winner == "one-1.0-0"


def test_the_last_of_several_packages_is_kept_also_where_some_are_equal() -> None:
    [conflict] = conflicts(
        package("one", file("share/x", "same")),
        package("two", file("share/x", "same")),
        package("three", file("share/x", "other")),
        package("four", file("share/x", "same")),
    )
    assert conflict.winner == "four-1.0-0"
    assert conflict.replaced == ("one-1.0-0", "two-1.0-0", "three-1.0-0")


def test_one_path_with_one_content_is_no_fault() -> None:
    assert not faults(package("one", file("share/x")), package("two", file("share/x")))


@pytest.mark.parametrize("placeholder", [0, 10])
def test_equal_bytes_into_which_a_prefix_is_written_are_a_conflict(placeholder: int) -> None:
    """Each package names the bytes that become the prefix: what is installed may differ."""
    one = package("one", file("bin/x", "#!/opt/old", placeholder=placeholder))
    two = package("two", file("bin/x", "#!/opt/old", placeholder=10))
    [conflict] = conflicts(one, two)
    assert (conflict.path, conflict.winner) == ("bin/x", "two-1.0-0")
    assert conflict.replaced == ("one-1.0-0",)


def test_two_forms_of_an_accented_letter_are_one_path_on_a_mac() -> None:
    one = package("one", file("share/caf\u00e9", "a"))
    two = package("two", file("share/CAFE\u0301", "b"))
    python = PythonInfo.of("3.11.1", platform="osx-arm64")
    checked = check_paths([one, two], python=python, platform="osx-arm64", prefix="/x")
    [fault] = checked.faults
    assert "one path here" in fault.reason
    assert not conflicts(one, two)


def test_every_fault_is_reported_beside_conflicts() -> None:
    found = faults(
        package("one", file("a", "1"), link("b", "1"), file("c.pyc", "1")),
        package("two", file("a", "2"), link("b", "2"), file("c.pyc", "2")),
    )
    assert sorted(fault.path for fault in found) == ["b", "c.pyc"]


@pytest.mark.parametrize(
    "pair",
    [
        (link("x", "one"), link("x", "two")),
        (link("x", "one"), file("x")),
        (file("lib/a.pyc", "1"), file("lib/a.pyc", "2")),
        (file("lib/A.PYC", "1"), file("lib/A.PYC", "2")),
    ],
)
def test_links_and_compiled_files_are_never_replaced(pair: tuple[PackageFile, PackageFile]) -> None:
    assert len(faults(package("one", pair[0]), package("two", pair[1]))) == 1
    assert len(faults(package("two", pair[1]), package("one", pair[0]))) == 1


@pytest.mark.parametrize("compiled", ["lib/__pycache__/x.cpython-311.pyc", "lib/x.pyc"])
def test_a_source_is_not_replaced_beside_the_compiled_file_of_another_package(
    compiled: str,
) -> None:
    old = package("old", file("lib/x.py", "1"), file(compiled, "1"))
    new = package("new", file("lib/x.py", "2"))
    [fault] = faults(old, new)
    assert fault.path == compiled
    assert "Python would run instead" in fault.reason
    assert conflicts(new, old)[0].winner == "old-1.0-0"


def test_a_package_does_not_replace_its_own_file() -> None:
    assert len(faults(package("one", file("x", "1"), file("x", "2")))) == 1


def test_the_folder_of_replaced_files_comes_from_no_package() -> None:
    assert len(faults(package("one", file("__clobbers__/two/share/x")))) == 1
    assert not faults(package("one", file("__clobbersx")))


def test_a_file_and_a_link_at_one_path_clash() -> None:
    assert len(faults(package("one", file("x")), package("two", link("x", "y")))) == 1


@pytest.mark.parametrize(("platform", "number"), [("linux-64", 0), ("osx-arm64", 1), ("win-64", 1)])
def test_two_spellings_are_one_path_where_case_is_ignored(platform: str, number: int) -> None:
    found = faults(
        package("one", file("share/Readme")),
        package("two", file("share/README")),
        platform=platform,
    )
    assert len(found) == number


def test_a_file_where_another_has_a_folder_is_refused() -> None:
    [fault] = faults(package("one", file("lib/x")), package("two", file("lib/x/y")))
    assert fault.reason == "lib/x is a file in one-1.0-0 and a folder in two-1.0-0."


def test_a_link_where_another_has_a_folder_is_refused() -> None:
    """What the other brings would land behind the link, wherever that leads."""
    [fault] = faults(package("one", link("lib64", "lib")), package("two", file("lib64/x.so")))
    assert fault.reason == "lib64 is a link in one-1.0-0 and a folder in two-1.0-0."


@pytest.mark.parametrize(
    ("path", "target", "leads_out"),
    [
        ("bin/python", "python3.11", False),
        ("bin/python", "../lib/python", False),
        ("lib/a/b", "../../share", False),
        ("share/dangling", "nowhere", False),
        ("bin/x", "../../x", True),
        ("x", "..", True),
        ("x", "/etc/passwd", True),
        ("a/b", "c/../../../x", True),
    ],
)
def test_a_link_must_stay_inside(path: str, target: str, leads_out: bool) -> None:
    found = faults(package("one", link(path, target)))
    assert bool(found) == leads_out
    assert all("leads out of the environment" in fault.reason for fault in found)


def test_a_link_through_other_links_must_stay_inside() -> None:
    """`d/e/up` is the prefix, so `d/e/up/..` is outside, though the text looks harmless."""
    found = faults(package("one", link("d/e/up", "../.."), link("d/e/out", "up/../x")))
    assert [fault.path for fault in found] == ["d/e/out"]


def test_links_in_a_circle_do_not_hang_it() -> None:
    assert faults(package("one", link("a", "b"), link("b", "a"))) == []


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "./a",
        "a/./b",
        "a\\b",
        "a\nb",
        "",
        "a\x00b",
        "a/..",
    ],
)
def test_a_path_with_another_meaning_is_refused(path: str) -> None:
    assert faults(package("one", file(path)))


@pytest.mark.parametrize("path", ["share/odd paths/ünï-日本語.txt", "a..b/c", "...", "a/.hidden"])
def test_an_odd_path_is_taken(path: str) -> None:
    assert not faults(package("one", file(path)))


@pytest.mark.parametrize(
    "path",
    [
        "conda-meta",
        "conda-meta/history",
        "conda-meta/frozen",
        "conda-meta/state",
        "conda-meta/x.json",
    ],
)
def test_condas_own_notes_cannot_come_from_a_package(path: str) -> None:
    [fault] = faults(package("one", file(path)))
    assert "metadata of conda" in fault.reason


def test_a_prefix_longer_than_its_room_is_refused_in_binary_files_only() -> None:
    files = [file("bin/tool", placeholder=20, binary=True), file("bin/script", placeholder=20)]
    [fault] = faults(package("one", *files), prefix="/" + "x" * 20)
    assert fault.path == "bin/tool"
    assert "room for a prefix of 20 bytes" in fault.reason
    assert not faults(package("one", *files), prefix="/" + "x" * 19)


def test_a_python_package_without_python_is_refused() -> None:
    [fault] = faults(package("one", file("site-packages/x.py"), noarch=True), python=None)
    assert "the environment has no python" in fault.reason


def test_noarch_files_conflict_where_they_go() -> None:
    [conflict] = conflicts(
        package("one", file("site-packages/x.py", "one"), noarch=True),
        package("two", file("lib/python3.11/site-packages/x.py", "two")),
    )
    assert conflict.path == "lib/python3.11/site-packages/x.py"


def test_an_entry_point_clashes_with_a_file() -> None:
    [fault] = faults(
        package("one", noarch=True, entry_points=("tool = one:main",)),
        package("two", file("bin/tool")),
    )
    assert fault.path == "bin/tool"


def test_an_entry_point_is_the_name_of_a_program() -> None:
    assert faults(package("one", noarch=True, entry_points=("../evil = one:main",)))


@pytest.mark.parametrize(
    ("version", "platform", "path", "place"),
    [
        ("3.11.7", "linux-64", "site-packages/x.py", "lib/python3.11/site-packages/x.py"),
        ("3.9", "win-64", "site-packages/x.py", "Lib/site-packages/x.py"),
        ("3.9", "win-64", "python-scripts/x", "Scripts/x"),
        ("3.12.1", "osx-64", "python-scripts/x", "bin/x"),
        ("3.12.1", "osx-64", "site-packagesx/x", "site-packagesx/x"),
        ("3.12.1", "osx-64", "etc/x", "etc/x"),
    ],
)
def test_where_a_noarch_file_goes(version: str, platform: str, path: str, place: str) -> None:
    python = PythonInfo.of(version, platform=platform)
    assert prefix_path(path, noarch_python=True, python=python) == place


names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
targets = st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=5).map("/".join)
entries = st.one_of(
    st.builds(file, paths, st.sampled_from(["1", "2"])), st.builds(link, paths, targets)
)


@given(st.lists(st.lists(entries, max_size=5, unique_by=lambda each: each.path), max_size=3))
def test_what_has_no_fault_can_be_made_in_any_order_and_stays_inside(
    contents: list[list[PackageFile]],
) -> None:
    import tempfile
    from pathlib import Path

    packages = [package(f"p{number}", *files) for number, files in enumerate(contents)]
    if faults(*packages):
        return
    for order in (packages, packages[::-1]):
        with tempfile.TemporaryDirectory() as location:
            root = Path(location).resolve() / "prefix"
            root.mkdir()
            for each in order:
                for one in each.files:
                    created = root / one.path
                    created.parent.mkdir(parents=True, exist_ok=True)
                    if created.is_symlink() or created.exists():
                        continue
                    if one.kind == "link":
                        created.symlink_to(one.target)
                    else:
                        created.write_text(one.sha256)
            contents_of: dict[str, set[str]] = {}  # of conflicting paths, more than one
            for one in (one for each in packages for one in each.files):
                contents_of.setdefault(one.path, set()).add(one.sha256)
            for one in (one for each in packages for one in each.files):
                created = root / one.path
                if one.kind == "file":
                    assert created.read_text() in contents_of[one.path]
                    assert created.resolve() == created
                elif created.exists():
                    assert created.resolve().is_relative_to(root)
