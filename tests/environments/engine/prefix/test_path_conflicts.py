"""Packages with different files at one path: prefix and artifacts have the same file."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from condastore.errors import LinkError
from environments.domain.lock import dependency_order
from environments.domain.records import CondaPackage
from environments.engine.artifacts.archives import make_tar_gz
from environments.engine.artifacts.file_systems import make_squashfs
from environments.engine.artifacts.installer import make_installer
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix.python_sources import python_sources
from tests.channels.conda_package import PLACEHOLDER, PackageFile, PackageSpec
from tests.environments.engine.artifact_fixtures import material_of
from tests.environments.engine.package_fixtures import channel_of, packages_of
from tests.environments.engine.prefix.test_linking import link

SHARED = "share/shared.txt"


@pytest.fixture
def cache(shared_cache: PackageCache) -> PackageCache:
    return shared_cache


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "prefixes" / ".hidden"


def spec(name: str, *depends: str, content: str = "", path: str = SHARED) -> PackageSpec:
    return PackageSpec(
        name,
        "1.0",
        noarch="generic",
        depends=[*depends],
        license="MIT",
        files=[
            PackageFile.text(path, content or f"from {name}\n"),
            PackageFile.text(f"share/{name}.txt", name),
        ],
    )


def locked(folder: Path, *specs: PackageSpec) -> tuple[CondaPackage, ...]:
    return dependency_order(channel_of(folder, *specs).values())


#: Packages of one environment, and which of them has its file there.
CASES: list[tuple[Sequence[PackageSpec], str]] = [
    ((spec("aa"), spec("bb")), "bb"),
    ((spec("aa"), spec("bb"), spec("cc")), "cc"),
    ((spec("aa", "bb"), spec("bb")), "aa"),
    ((spec("aa", "bb"), spec("bb"), spec("cc")), "cc"),
    (
        (
            spec("aa", content=f"aa in {PLACEHOLDER}\n"),
            spec("bb", content=f"bb in {PLACEHOLDER}\n"),
        ),
        "bb",
    ),
]


@pytest.mark.parametrize(("specs", "winner"), CASES)
def test_the_package_that_is_linked_last_keeps_its_file(
    specs: Sequence[PackageSpec], winner: str, tmp_path: Path, target: Path, cache: PackageCache
) -> None:
    packages = locked(tmp_path / "channel", *specs)
    report = link(packages, target, cache)
    assert winner in (target / SHARED).read_text()
    [conflict] = report.conflicts
    assert conflict.winner.startswith(f"{winner}-1.0-")
    assert len(conflict.replaced) == len(specs) - 1
    assert not (target / "__clobbers__").exists()
    for note in (target / "conda-meta").glob("*.json"):  # each lists the path, as conda has it
        record = json.loads(note.read_text())
        assert SHARED in record["files"]
        assert "original_path" not in note.read_text()


def test_a_file_that_is_replaced_stays_what_it_is_in_the_cache(
    small_channel: Path, target: Path, cache: PackageCache
) -> None:
    found = packages_of(small_channel)
    packages = [found["clobber-one"], found["clobber-two"]]
    link(packages, target, cache)
    [first, _] = cache.ensure(packages)
    assert (first.folder / "share/clobber/shared.txt").read_text() == "from clobber-one\n"


@pytest.mark.parametrize(("specs", "winner"), CASES)
def test_every_artifact_has_the_file_that_the_prefix_has(
    specs: Sequence[PackageSpec], winner: str, tmp_path: Path, cache: PackageCache
) -> None:
    packages = locked(tmp_path / "channel", *specs)
    with tarfile.open(make_tar_gz(material_of(cache, *packages))) as archive:
        names = archive.getnames()
        assert names.count(SHARED) == 1
        file = archive.extractfile(SHARED)
        assert file is not None
        assert winner.encode() in file.read()
        assert all(f"share/{each.name}.txt" in names for each in specs)
    image = make_squashfs(material_of(cache, *packages))
    shown = subprocess.run(
        ["unsquashfs", "-cat", image, SHARED], capture_output=True, text=True, check=True
    )
    assert winner in shown.stdout
    prefix = tmp_path / "installed"
    command = ["sh", make_installer(material_of(cache, *packages)), "-b", "-p", prefix]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    assert winner in (prefix / SHARED).read_text()


def test_the_compiled_form_of_a_replaced_source_is_not_linked(
    small_channel: Path, tmp_path: Path, target: Path, cache: PackageCache
) -> None:
    def module(name: str) -> PackageSpec:
        files = [PackageFile.text(f"site-packages/{one}.py", f"# {name}\n") for one in ("m", name)]
        return PackageSpec(name, "1.0", noarch="python", depends=["python"], files=files)

    python = packages_of(small_channel)["python"]
    first, second = locked(tmp_path / "channel", module("aa"), module("bb"))
    report = link([python, first, second], target, cache)
    assert report.python is not None
    sources = python_sources(
        cache.ensure([first, second]), report.python, conflicts=report.conflicts
    )
    assert {each.name: sorted(path for path, _ in each.files) for each in sources} == {
        "aa": ["site-packages/aa.py"],
        "bb": ["site-packages/bb.py", "site-packages/m.py"],
    }


@pytest.mark.parametrize(
    "path", ["__clobbers__/bb/share/shared.txt", "conda-meta/aa-1.0-0.json", "conda-meta/history"]
)
def test_a_package_cannot_pose_as_the_file_of_another(
    path: str, tmp_path: Path, target: Path, cache: PackageCache
) -> None:
    packages = locked(tmp_path / "channel", spec("aa"), spec("bb"), spec("cc", path=path))
    with pytest.raises(LinkError, match="cannot come from a package"):
        link(packages, target, cache)
