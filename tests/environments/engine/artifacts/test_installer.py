"""Offline installer: complete installation or none, with and without Python."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from condastore.errors import InvalidInputError
from environments.domain.lock import Lock
from environments.domain.records import CondaPackage
from environments.engine.artifacts.installer import make_installer
from environments.engine.artifacts.staging import Material
from environments.engine.packages.cache import PackageCache
from tests.channels.conda_package import PLACEHOLDER, PackageFile, PackageSpec
from tests.environments.engine.package_fixtures import channel_of, lock_of, packages_of

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, shared_cache: PackageCache) -> Make:
    """The installer of some packages, in a new folder."""

    def made(
        packages: Sequence[CondaPackage],
        cache: PackageCache = shared_cache,
        name: str = "work",
        platform: str = "linux-64",
    ) -> Path:
        part = replace(lock_of(*packages), platform=platform)
        work = tmp_path / name
        work.mkdir()
        return make_installer(
            Material(
                lock=Lock(channels=("https://a.example.org",), platforms=(part,)),
                platform=platform,
                packages=cache.ensure(packages),
                wheels=(),
                variables={"GREETING": "it's me"},
                cache=cache,
                work=work,
            )
        )

    return made


@pytest.fixture
def tools(tmp_path: Path) -> list[CondaPackage]:
    """Without Python; the prefix is in a text, and twice in one string of a program."""
    binary = (
        b"\x7fELF" + PLACEHOLDER.encode() + b"/lib:" + PLACEHOLDER.encode() + b"/x\0\x01\n\xff\0"
    )
    spec = PackageSpec(
        "tools",
        "1.0",
        files=[
            PackageFile.text("etc/tools.conf", f"home = {PLACEHOLDER}/share\nand {PLACEHOLDER}\n"),
            PackageFile("lib/tools.bin", binary, mode=0o755, prefix_mode="binary"),
            PackageFile.text("bin/say", "#!/bin/sh\necho said\n", executable=True),
        ],
        license="MIT",
    )
    return [channel_of(tmp_path / "channel", spec)["tools"]]


def install(
    file: Path, *options: str, env: dict[str, str] | None = None, says: str = ""
) -> subprocess.CompletedProcess[str]:
    """Offline: with no network at all, where the machine allows to make it so."""
    command = ["sh", str(file), *options]
    return subprocess.run(command, capture_output=True, text=True, input=says, env=env)


def python_packages(small_channel: Path) -> list[CondaPackage]:
    found = packages_of(small_channel)
    return [found["python"], found["hello-noarch"]]


def test_an_environment_with_python_runs_where_it_was_installed(
    make: Make, small_channel: Path, tmp_path: Path
) -> None:
    file = make(python_packages(small_channel))
    prefix = tmp_path / "new" / "env"
    done = install(file, "-p", str(prefix), "-b")
    assert done.returncode == 0, done.stderr
    run = subprocess.run(
        [prefix / "bin/python", "-c", "import sys, hello_noarch; print(sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
    )
    assert run.stdout.strip() == str(prefix)
    activated = f". {prefix}/bin/activate; echo $CONDA_PREFIX $GREETING"
    shell = subprocess.run(["bash", "-c", activated], capture_output=True, text=True, check=True)
    assert shell.stdout.strip() == f"{prefix} it's me"
    for script in (prefix / "bin").iterdir():
        if not script.is_symlink() and script.read_bytes()[:2] == b"#!":
            first = script.read_text().splitlines()[0]
            assert first.startswith((f"#!{prefix}/bin/python", "#!/bin/")), (script, first)
    assert not (prefix / "bin" / "conda-unpack").exists()


def test_an_environment_without_python_gets_its_prefix_too(
    make: Make, tools: list[CondaPackage], tmp_path: Path
) -> None:
    file = make(tools)
    prefix = tmp_path / "env"
    done = install(file, "-p", str(prefix), "-b")
    assert done.returncode == 0, done.stderr
    assert (prefix / "etc/tools.conf").read_text() == f"home = {prefix}/share\nand {prefix}\n"
    reported = f"\x7fELF{prefix}/lib:{prefix}/x".encode("latin-1")
    content = (prefix / "lib/tools.bin").read_bytes()
    length = len(b"\x7fELF") + 2 * len(PLACEHOLDER) + len(b"/lib:/x")
    assert content == reported.ljust(length, b"\0") + b"\0\x01\n\xff\0"
    assert stat.S_IMODE((prefix / "lib/tools.bin").stat().st_mode) == 0o755
    said = subprocess.run([prefix / "bin/say"], capture_output=True, text=True, check=True)
    assert said.stdout == "said\n"


def test_the_same_lock_gives_the_same_bytes_with_another_cache(
    make: Make, small_channel: Path, tmp_path: Path
) -> None:
    packages = python_packages(small_channel)
    one = make(packages)
    two = make(packages, PackageCache(tmp_path / "other" / "packages"), "again")
    assert one.read_bytes() == two.read_bytes()


def test_a_prefix_that_is_not_empty_is_refused_and_left_alone(
    make: Make, tools: list[CondaPackage], tmp_path: Path
) -> None:
    file = make(tools)
    prefix = tmp_path / "env"
    prefix.mkdir()
    (prefix / "mine").write_text("kept")
    done = install(file, "-p", str(prefix), "-b")
    assert done.returncode != 0
    assert "not empty" in done.stderr
    assert [path.name for path in prefix.iterdir()] == ["mine"]
    (prefix / "mine").unlink()
    assert install(file, "-p", str(prefix), "-b").returncode == 0


@pytest.mark.parametrize("where", [-1, -1000])
def test_a_damaged_or_cut_file_installs_nothing(
    make: Make, tools: list[CondaPackage], tmp_path: Path, where: int
) -> None:
    file = make(tools)
    content = bytearray(file.read_bytes())
    content[where] ^= 1
    broken = tmp_path / "broken.sh"
    for bad in (bytes(content), file.read_bytes()[:where]):
        broken.write_bytes(bad)
        done = install(broken, "-p", str(tmp_path / "env"), "-b")
        assert done.returncode != 0
        assert "damaged or incomplete" in done.stderr
        assert not (tmp_path / "env").exists()
    assert install(file, "-t").stdout == "This file is complete.\n"


def test_it_asks_for_agreement_to_the_licenses(
    make: Make, tools: list[CondaPackage], tmp_path: Path
) -> None:
    file = make(tools)
    prefix = str(tmp_path / "env")
    for answer in ("no\n", ""):
        refused = install(file, "-p", prefix, says=answer)
        assert refused.returncode != 0
        assert "tools 1.0: MIT" in refused.stdout
        assert not (tmp_path / "env").exists()
    assert install(file, "-p", prefix, says="yes\n").returncode == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "the option -p PREFIX is missing"),
        (("-p",), "-p needs"),
        (("-x",), "unknown option -x"),
        (("-b", "-p", "/tmp/has a space"), "character"),
        (("-b", "-p", "/tmp/has'quote"), "character"),
        (("-b", "-p", "/"), "cannot be /"),
        (("-b", "-p", "/tmp/" + "x" * 255), "longer than 255 bytes"),
        (("-b", "-p", "/etc/passwd"), "not a folder"),
    ],
)
def test_invalid_options_are_refused_with_the_reason(
    make: Make, tools: list[CondaPackage], options: tuple[str, ...], says: str
) -> None:
    done = install(make(tools), *options)
    assert done.returncode != 0
    assert says in done.stderr


def test_an_installation_that_fails_halfway_leaves_nothing(
    make: Make, tools: list[CondaPackage], tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "tar").write_text("#!/bin/sh\n/bin/tar -xof - || true\nrm -r conda-meta\nexit 2\n")
    (programs / "tar").chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    file, prefix = make(tools), tmp_path / "env"
    done = install(file, "-p", str(prefix), "-b", env=environment)
    assert done.returncode != 0
    assert not prefix.exists()
    prefix.mkdir()
    assert install(file, "-p", str(prefix), "-b", env=environment).returncode != 0
    assert list(prefix.iterdir()) == []


def test_an_installer_for_another_platform_refuses_this_machine(
    make: Make, tools: list[CondaPackage], tmp_path: Path
) -> None:
    file = make(tools, platform="osx-arm64")
    done = install(file, "-p", str(tmp_path / "env"), "-b")
    assert "osx-arm64" in done.stderr
    assert done.returncode != 0
    with pytest.raises(InvalidInputError, match="win-64"):
        make(tools, platform="win-64", name="windows")
