"""Archives in conda-pack's format: relocation, reproducible bytes, and cached parts."""

from __future__ import annotations

import ast
import hashlib
import json
import shlex
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import conda_pack
import pytest

from condastore.errors import InvalidInputError, LeaseLostError, LinkError
from environments.engine.artifacts import archives, parts
from environments.engine.artifacts.parts import GZIP, ZSTD, write_parts
from environments.engine.artifacts.staging import Material
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix import linking
from tests.channels.conda_package import PLACEHOLDER, PackageFile, PackageSpec
from tests.channels.simple_index import make_wheel
from tests.environments.engine.artifact_fixtures import NAMES, material_of, stack
from tests.environments.engine.package_fixtures import channel_of, packages_of
from tests.environments.engine.pypi.test_install import stored
from tests.services.processes import find_program

Make = Callable[[Material], Path]
KINDS = pytest.mark.parametrize("make", [archives.make_tar_gz, archives.make_tar_zst])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture
def material(small_channel: Path, shared_cache: PackageCache, index: Path) -> Material:
    return stack(small_channel, shared_cache, index)


def members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """As the plainest of readers sees them: what a standard tool unpacked to a tar."""
    plain = archive.with_suffix("")
    if archive.suffix == ".gz":
        command = ["gzip", "-dk", str(archive)]
    else:
        zstd = find_program("zstd", component="zstd", install="apt-get install zstd")
        command = [str(zstd), "-dqf", str(archive)]
    subprocess.run(command, check=True)
    with tarfile.open(plain, "r:") as opened:
        yield from opened
    plain.unlink()


def unpacked(archive: Path, to: Path) -> Path:
    to.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", to], check=True)
    return to


def run(*command: str | Path) -> str:
    path = {"PATH": "/usr/bin:/bin", "HOME": "/home/someone"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=path)
    return done.stdout.strip("\n\0 ")


@KINDS
def test_an_archive_works_wherever_it_is_unpacked(
    material: Material, make: Make, tmp_path: Path
) -> None:
    location = unpacked(make(material), tmp_path / "some where")
    activated = f"source {shlex.quote(str(location))}/bin/activate && "
    run("bash", "-c", f"{activated} conda-unpack")
    assert run(location / "bin/apptool") == f"{location}/share/apptool"  # in its binary
    assert f"prefix={location}\n" in (location / "lib/pkgconfig/libalpha.pc").read_text()
    said = run("bash", "-c", f"{activated} hello-noarch; greet; echo $CONDA_PREFIX; echo $GREETING")
    assert said.splitlines() == [
        *(f"hello 2.0 from {location}", f"hi from {location}", str(location), "it's $HOME"),
    ]
    left = f"{activated} source deactivate; echo ${{GREETING-gone}} ${{CONDA_PREFIX-gone}}"
    assert run("bash", "-c", left) == "gone gone"


@KINDS
def test_two_workers_produce_the_same_bytes(
    small_channel: Path, index: Path, material: Material, make: Make, tmp_path: Path
) -> None:
    far_away = stack(small_channel, PackageCache(tmp_path / "another/cache/packages"), index)
    assert make(far_away).read_bytes() == make(material).read_bytes()


def test_nothing_of_this_machine_is_in_an_archive(material: Material) -> None:
    archive = archives.make_tar_gz(material)
    for member in members(archive):
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", ""), member
        assert member.mode in (0o644, 0o755, 0o777), member
        assert member.mtime <= material.moment.timestamp(), member
    location = unpacked(archive, material.work / "place")
    for path in location.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert str(material.cache.folder.parent).encode() not in path.read_bytes(), path


def test_threads_and_cached_parts_do_not_change_the_bytes(material: Material) -> None:
    pieces = archives.archive_parts(material)
    created = set()
    for folder, threads in (("a", 1), ("b", 3), ("b", 1)):  # the last one only copies
        retained = parts.PartFolder(material.work / folder)
        path = material.work / f"{folder}-{threads}"
        with path.open("xb") as out:
            write_parts(pieces, out, compression=ZSTD, kept=retained, threads=threads)
        created.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(created) == 1


def test_a_damaged_part_is_not_used_again(material: Material) -> None:
    whole = archives.make_tar_zst(material).read_bytes()
    retained = archives.parts_folder(material)
    victim = max(retained.folder.glob(f"*-{ZSTD.name}"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    again = material.work / "again"
    again.mkdir()
    assert archives.make_tar_zst(replace(material, work=again)).read_bytes() == whole


def test_a_cancelled_archive_leaves_nothing_among_the_parts(
    small_channel: Path, index: Path, tmp_path: Path
) -> None:
    answers = iter([False] * (len(NAMES) + 4))
    cache = PackageCache(tmp_path / "cache/packages")
    stopped = stack(small_channel, cache, index, cancelled=lambda: next(answers, True))
    with pytest.raises(LeaseLostError):
        archives.make_tar_zst(stopped)
    retained = archives.parts_folder(stopped)
    assert list(retained.folder.glob(".*")) == []
    again = archives.make_tar_zst(stack(small_channel, cache, index))
    other = stack(small_channel, PackageCache(tmp_path / "other/packages"), index)
    assert again.read_bytes() == archives.make_tar_zst(other).read_bytes()


def test_leftover_parts_of_a_killed_worker_are_removed(tmp_path: Path) -> None:
    retained = parts.PartFolder(tmp_path)
    (tmp_path / ".half-made").touch()
    (tmp_path / "whole").touch()
    retained.remove_leftovers(older_than=timedelta(hours=1))
    assert len(list(tmp_path.iterdir())) == 2
    retained.remove_leftovers(older_than=timedelta(hours=-1))
    assert [name for name, _ in retained.entries()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.filterwarnings("ignore")
def test_conda_pack_finds_the_same_files_and_the_same_prefixes(
    material: Material, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    linking.link(
        material.part,
        target=prefix,
        final_prefix=prefix,
        cache=material.cache,
        packages=material.packages,
        requested=(),
        variables={},
        moment=material.moment,
        note="",
    )
    theirs = tmp_path / "theirs.tar.gz"
    conda_pack.pack(prefix=str(prefix), output=str(theirs), n_threads=1)
    ours = archives.make_tar_gz(
        material_of(material.cache, *(each.package for each in material.packages), variables={})
    )
    assert names(ours) == names(theirs) - {"conda-meta/frozen"}
    assert records(unpacked(ours, tmp_path / "a")) == records(unpacked(theirs, tmp_path / "b"))


def names(archive: Path) -> set[str]:
    return {member.name for member in members(archive) if not member.isdir()}


def records(place: Path) -> set[tuple[str, str, str]]:
    """What `conda-unpack` is going to replace."""
    script = (place / "bin/conda-unpack").read_text()
    found = script.partition("_prefix_records = [")[2].partition("\n]\n")[0]
    every = ast.literal_eval(f"[{found}]")
    return {record for record in every if not record[0].startswith("conda-meta/")}


@pytest.mark.parametrize("platform", ["linux-aarch64", "osx-arm64"])
def test_archives_of_other_platforms_can_be_created(
    small_channel: Path, shared_cache: PackageCache, tmp_path: Path, platform: str
) -> None:
    found = packages_of(small_channel, platform=platform)
    chosen = [found[name] for name in ("libalpha", "libbeta", "apptool")]
    archive = archives.make_tar_zst(material_of(shared_cache, *chosen, platform=platform))
    location = unpacked(archive, tmp_path / "place")
    run(sys.executable, location / "bin/conda-unpack")
    assert f"prefix={location}\n" in (location / "lib/pkgconfig/libalpha.pc").read_text()
    binary = (location / "lib/libalpha.bin").read_bytes()
    assert f"{location}/share/libalpha\0".encode() in binary


def test_there_is_no_archive_for_windows(small_channel: Path, shared_cache: PackageCache) -> None:
    found = packages_of(small_channel, platform="win-64")
    with pytest.raises(InvalidInputError, match="win-64"):
        archives.make_tar_gz(material_of(shared_cache, found["libalpha"], platform="win-64"))


def test_compiled_python_of_a_package_stays_usable(
    tmp_path: Path, shared_cache: PackageCache
) -> None:
    """Python compares the time of a source with the one that its compiled file names."""
    source, when = b"x = 1\n", 1_600_000_000
    compiled = b"\xa7\r\r\n" + struct.pack("<III", 0, when, len(source)) + b"rest"
    folder = "lib/python3.11/site-packages"
    spec = PackageSpec(
        "compiled",
        "1.0",
        timestamp=1_700_000_000_000,
        files=[
            PackageFile(f"{folder}/one.py", source),
            PackageFile(f"{folder}/__pycache__/one.cpython-311.pyc", compiled),
            PackageFile(f"{folder}/two.py", source),
        ],
    )
    found = channel_of(tmp_path, spec)
    archive = archives.make_tar_gz(material_of(shared_cache, found["compiled"]))
    times = {member.name.rpartition("/")[2]: member.mtime for member in members(archive)}
    assert times["one.py"] == when
    assert times["two.py"] == times["one.cpython-311.pyc"] == 1_700_000_000


def test_a_wheel_and_a_package_with_the_same_path_are_refused(
    small_channel: Path, shared_cache: PackageCache, tmp_path: Path
) -> None:
    found = packages_of(small_channel)
    [path] = [
        file.path
        for cached in shared_cache.ensure([found["hello-noarch"]])
        for file in cached.contents.files
        if file.path.endswith("hello_noarch/__init__.py")
    ]
    clashing = make_wheel(
        "clashing", "1", files={path.removeprefix("site-packages/"): "other = 1\n"}
    )
    with pytest.raises(LinkError, match="clashing-1"):
        archives.make_tar_gz(
            material_of(
                shared_cache,
                *(found["python"], found["hello-noarch"]),
                wheels=[stored(clashing, tmp_path / "index")],
            )
        )


@pytest.mark.parametrize(
    ("compression", "digest"),
    [
        (GZIP, "cf0fa5d96c4dd5015e81aa24b76e61a340025151a2b567fe5c925af09dc69e89"),
        (ZSTD, "531f71c3fbf2f364bd6b38b4a67a4d39def6a9e550fa9a8328c6ee1b6b1d2b0a"),
    ],
    ids=["gzip", "zstd"],
)
def test_the_compressors_give_the_bytes_that_they_always_gave(
    compression: parts.Compression, digest: str
) -> None:
    """Where this fails after an update, the kinds' `recipe` (domain/artifacts.py) has to grow."""
    state, words = 1, []
    for _ in range(200_000):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        words.append(f"{state % 997:03d} ")
    content = "".join(words).encode()
    assert hashlib.sha256(compression.compress(memoryview(content))).hexdigest() == digest


@KINDS
def test_read_only_files_stay_so(
    small_channel: Path, shared_cache: PackageCache, tmp_path: Path, make: Make
) -> None:
    filled = replace(PackageFile.text("share/filled.txt", f"in {PLACEHOLDER}\n"), mode=0o444)
    created = channel_of(
        tmp_path / "channel", PackageSpec("filled", "1.0", noarch="generic", files=[filled])
    )
    odd = packages_of(small_channel)["odd-paths"]
    location = unpacked(make(material_of(shared_cache, odd, created["filled"])), tmp_path / "place")
    folder = location / "share/odd paths"
    assert (folder / "read-only.txt").stat().st_mode & 0o777 == 0o444
    assert (folder / "with space.txt").stat().st_mode & 0o777 == 0o644
    # conda-unpack writes into it, for people who are not root.
    assert (location / "share/filled.txt").stat().st_mode & 0o777 == 0o644


def test_activation_sets_the_variables_of_packages_before_those_of_the_specification(
    small_channel: Path, shared_cache: PackageCache, tmp_path: Path
) -> None:
    """Values are data for the shell; names that are none are left out."""
    value = "a 'b' \"c\" $HOME `id` $(id) \\ ; & |\nend"
    hostile = PackageSpec(
        "hostile",
        "1.0",
        noarch="generic",
        files=[
            PackageFile.text("etc/conda/env_vars.d/z.json", json.dumps({"VALUE": value})),
            PackageFile.text(
                "etc/conda/env_vars.d/a.json",
                json.dumps({"VALUE": "early", "A;touch pwned": "x", "GREETING": "package"}),
            ),
            PackageFile.text("etc/conda/env_vars.d/broken.json", "{"),
        ],
    )
    found = channel_of(tmp_path / "channel", hostile)
    activating = packages_of(small_channel)["activating"]
    created = material_of(
        shared_cache, activating, found["hostile"], variables={"GREETING": "specification"}
    )
    location = unpacked(archives.make_tar_gz(created), tmp_path / "place")
    shown = "cd / && env -0 | grep -z -e ^VALUE= -e ^GREETING= -e ^ACTIVATING_ -e pwned | sort -z"
    said = run("bash", "-c", f"source {location}/bin/activate && {shown}").split("\0")
    assert said == [
        "ACTIVATING_SCRIPT=active",
        "ACTIVATING_VARIABLE=set",
        "GREETING=specification",
        f"VALUE={value}",
    ]
    left = f"source {location}/bin/activate && source {location}/bin/deactivate && env"
    assert "ACTIVATING_VARIABLE" not in run("bash", "-c", left)
