"""The small channel is a real one: py-rattler reads, solves, links and runs what is in it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import rattler
from rattler.exceptions import SolverError

from . import stamp
from .building import build_small, ensure_demo
from .channel_index import index_channel
from .conda_package import PLACEHOLDER, PackageFile, PackageSpec, write_package
from .fixtures import TODAY, cache_folder
from .sample_packages import sample_packages
from .server import ChannelServer, Fault
from .stamp import ForeignFolderError, ensure_channel, read_stamp
from .synthetic_repodata import SyntheticShape, write_synthetic_channel

Records = list[rattler.RepoDataRecord]
Solve = Callable[..., Records]

LINUX = ("__unix=0=0", "__linux=6.1=0", "__glibc=2.36=0", "__archspec=1=x86_64")
FORMS = {
    "sharded": rattler.SourceConfig(),
    "zstd": rattler.SourceConfig(sharded_enabled=False),
    "plain": rattler.SourceConfig(sharded_enabled=False, zstd_enabled=False),
}

#: What cannot be linked with everything else, or not on this platform.
APART = {
    "clobber-two",
    "conflict-left",
    "conflict-left-base",
    "conflict-right",
    "conflict-right-base",
    "dangling",
    "empty-folder",
    "hello-plugin",
    "legacy-app",
    "alpha-guard",
    "needs-cuda",
    "needs-avx2",
    "needs-future-glibc",
    "needs-osx",
    "needs-win",
}


def virtual(packages: Sequence[str]) -> list[rattler.GenericVirtualPackage]:
    """Virtual packages, each written `name=version=build`."""
    parts = [package.split("=") for package in packages]
    return [
        rattler.GenericVirtualPackage(
            rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build)
        )
        for name, version, build in parts
    ]


def solve_from(
    url: str,
    cache: Path,
    specs: Sequence[str],
    *,
    form: str = "sharded",
    platform: str = "linux-64",
    machine: Sequence[str] = LINUX,
) -> Records:
    gateway = rattler.Gateway(cache_dir=cache, default_config=FORMS[form])
    return asyncio.run(
        rattler.solve(
            [url],
            list(specs),
            gateway=gateway,
            platforms=[rattler.Subdir(platform), rattler.Subdir("noarch")],
            virtual_packages=list(virtual(machine)),
        )
    )


@pytest.fixture
def solve(small_channel: Path, tmp_path: Path) -> Solve:
    """Solve with the small channel, read from the disk."""

    def solve(*specs: str, **options: object) -> Records:
        return solve_from(small_channel.as_uri(), tmp_path / "repodata", specs, **options)  # type: ignore[arg-type]

    return solve


def versions(records: Records) -> dict[str, str]:
    return {record.name.normalized: str(record.version) for record in records}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_repodata_gives_the_same_solution(
    channel_server: ChannelServer, tmp_path: Path, form: str
) -> None:
    specs = ["demo-stack", "hello-plugin"]
    found = solve_from(channel_server.url, tmp_path / "repodata", specs, form=form)
    assert versions(found)["hello-noarch"] == "1.1"
    assert versions(found)["libalpha"] == "2.1"
    read = {"sharded": "*/shards/*", "zstd": "*.json.zst", "plain": "*/repodata.json"}
    assert channel_server.requests.count(read[form], status=200)


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["demo-stack 2023.*", "legacy-app"], {"libalpha": "1.1", "apptool": "1.0"}),
        (["alpha-guard", "libalpha"], {"libalpha": "1.1"}),
        (["apptool"], {"libalpha": "2.1", "libbeta": "2.0", "apptool": "2.0"}),
        (["withdrawn"], {"withdrawn": "1.0"}),
        (["fresh-release"], {"fresh-release": "1.2"}),
        (["needs-glibc", "needs-linux", "needs-unix"], {"needs-glibc": "1.0"}),
        (["older-format", "undated", "license-missing"], {"older-format": "1.0"}),
        (["python-tinyname"], {"python-tinyname": "1.0"}),
    ],
)
def test_a_solvable_sample_is_solved_as_it_is_meant_to_be(
    solve: Solve, specs: list[str], expected: dict[str, str]
) -> None:
    assert versions(solve(*specs)).items() >= expected.items()


def test_of_two_builds_the_one_without_a_feature_is_chosen(solve: Solve) -> None:
    (kernel,) = solve("mathkernel")
    assert str(kernel.build) == "tuned_1"


@pytest.mark.parametrize(
    "specs",
    [
        ["conflict-left", "conflict-right"],
        ["dangling"],
        ["needs-future-glibc"],
        ["needs-win"],
        ["needs-cuda"],
        ["withdrawn 1.1.*"],
        ["withdrawn 1.2.*"],
        ["legacy-app", "apptool 2.*"],
        ["hello-plugin", "hello-noarch 2.*"],
    ],
)
def test_a_sample_without_a_solution_has_none(solve: Solve, specs: list[str]) -> None:
    with pytest.raises(SolverError):
        solve(*specs)


@pytest.mark.parametrize(
    ("platform", "machine"),
    [
        ("osx-arm64", ["__unix=0=0", "__osx=14.0=0"]),
        ("win-64", ["__win=0=0"]),
        ("linux-aarch64", LINUX),
    ],
)
def test_the_samples_are_solved_for_other_platforms(
    solve: Solve, platform: str, machine: list[str]
) -> None:
    found = solve("demo-stack", "hello-noarch", platform=platform, machine=machine)
    assert versions(found)["apptool"] == "2.0"
    assert {str(record.subdir) for record in found} == {platform, "noarch"}


def test_the_releases_of_today_are_as_old_as_they_say(small_channel: Path) -> None:
    repodata = json.loads((small_channel / "noarch" / "repodata.json").read_text())
    stamps = {
        record["version"]: record["timestamp"] / 1000
        for record in repodata["packages.conda"].values()
        if record["name"] == "fresh-release"
    }
    ages = {version: TODAY.timestamp() - moment for version, moment in stamps.items()}
    assert ages == {
        "1.0": timedelta(days=400).total_seconds(),
        "1.1": timedelta(days=20).total_seconds(),
        "1.2": timedelta(hours=6).total_seconds(),
    }


def test_everything_links_into_one_environment_and_runs(
    solve: Solve, channel_server: ChannelServer, tmp_path: Path
) -> None:
    names = {spec.name for spec in sample_packages()} - APART
    records = solve_from(
        channel_server.url, tmp_path / "repodata", ["python", "older-format", *sorted(names)]
    )
    prefix = tmp_path / "prefix"
    asyncio.run(
        rattler.install(records, prefix, cache_dir=tmp_path / "packages", show_progress=False)
    )

    def output(*command: str) -> str:
        run = subprocess.run(
            [str(prefix / "bin" / command[0]), *command[1:]],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": str(prefix)},
        )
        return run.stdout.strip()

    assert output("apptool") == f"{prefix}/share/apptool"
    assert output("apptool-script") == f"apptool 2.0 in {prefix}"
    assert output("hello-noarch") == f"hello 2.0 from {prefix}"
    assert output("hello-script") == f"hello 2.0 from {prefix}"
    requested = "import sys, sysconfig; print(sys.prefix, sysconfig.get_paths()['purelib'])"
    short = "{}.{}".format(*sys.version_info)
    assert output("python", "-c", requested).split() == [
        *(str(prefix), f"{prefix}/lib/python{short}/site-packages")
    ]
    # Scripts of packages are not run unless someone asks for it.
    assert not (prefix / "post-link-ran").exists()
    odd = prefix / "share" / "odd paths"
    assert (odd / "link.txt").readlink() == Path("with space.txt")
    assert (odd / "dangling-link").is_symlink()
    assert (odd / "ünï-日本語.txt").read_text() == "unicode\n"
    assert (prefix / "lib" / "libalpha.bin").read_bytes().count(PLACEHOLDER.encode()) == 0
    left = [path for path in prefix.rglob("*.pc") if PLACEHOLDER in path.read_text()]
    assert left == []


def test_wrong_bytes_are_not_taken_for_a_package(
    channel_server: ChannelServer, tmp_path: Path
) -> None:
    records = solve_from(channel_server.url, tmp_path / "repodata", ["large-data"])
    channel_server.faults.add(Fault("*large-data*", wrong_bytes=True))
    with pytest.raises(Exception, match="large-data"):
        asyncio.run(
            rattler.install(
                records,
                tmp_path / "prefix",
                cache_dir=tmp_path / "packages",
                show_progress=False,
            )
        )
    assert channel_server.requests.count("linux-64/large-data*") >= 1


def test_the_same_input_gives_the_same_archives(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_small(tmp_path / name, python="stub", now=TODAY)
    one, two = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_both_archive_formats_hold_the_same_metadata(tmp_path: Path) -> None:
    spec = PackageSpec("demo", "1.0", noarch="generic", files=[PackageFile.text("a.txt", "a")])
    newer = write_package(spec, tmp_path)
    older = write_package(spec, tmp_path, archive_format=".tar.bz2")
    with tarfile.open(older) as archive:
        assert {"info/index.json", "info/paths.json", "a.txt"} <= set(archive.getnames())
    with zipfile.ZipFile(newer) as archive:
        assert archive.namelist()[0] == "metadata.json"
    assert index_channel(tmp_path) == {"noarch": 2}


def test_a_changed_channel_is_indexed_anew(own_channel: Path, tmp_path: Path) -> None:
    write_package(
        PackageSpec("novelty", "1.0", noarch="generic", depends=["libalpha"]), own_channel
    )
    index_channel(own_channel)
    found = solve_from(own_channel.as_uri(), tmp_path / "repodata", ["novelty"])
    assert versions(found) == {"novelty": "1.0", "libalpha": "2.1"}


def test_synthetic_records_are_sorted_and_solvable(tmp_path: Path) -> None:
    shape = SyntheticShape(names=300, records=4000, noarch_records=800)
    counts = write_synthetic_channel(tmp_path / "channel", shape)
    assert counts["linux-64"] > 2000
    repodata = json.loads((tmp_path / "channel" / "linux-64" / "repodata.json").read_text())
    names = list(repodata["packages.conda"])
    assert names == sorted(names)
    uri = (tmp_path / "channel").as_uri()
    assert solve_from(uri, tmp_path / "repodata", ["numpy"], form="plain")


def test_a_channel_is_made_once_and_whole(tmp_path: Path) -> None:
    created = []

    def build(folder: Path) -> None:
        created.append(folder)
        (folder / "noarch").mkdir()

    channel = tmp_path / "channel"
    assert ensure_channel(channel, {"kit": "1"}, build)
    assert not ensure_channel(channel, {"kit": "1"}, build)
    assert ensure_channel(channel, {"kit": "2"}, build)
    assert len(created) == 2

    def fail(folder: Path) -> None:
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="gone"):
        ensure_channel(channel, {"kit": "3"}, fail)
    assert read_stamp(channel) == {"kit": "2"}
    assert {path.name for path in tmp_path.iterdir()} == {"channel", ".channel.lock"}


def test_what_is_not_ours_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ForeignFolderError):
        ensure_channel(tmp_path, {"kit": "1"}, lambda folder: None)
    assert (tmp_path / "thesis.txt").exists()


def test_a_complete_demo_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    written = {"kind": "demo", "kit": stamp.kit_version(), "python": python}
    (tmp_path / stamp.STAMP_FILE).write_text(json.dumps(written))
    assert not ensure_demo(tmp_path)


def test_the_command_line_makes_a_small_channel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.channels", "small", "--python", "stub"]
    run = subprocess.run(
        [*command, str(tmp_path / "out")],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "records" in run.stdout
    assert (tmp_path / "out" / "linux-64" / "repodata_shards.msgpack.zst").exists()


def test_the_cache_is_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONDASTORE_TEST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CONDASTORE_TEST_CACHE")
    assert cache_folder().name == "channels"
