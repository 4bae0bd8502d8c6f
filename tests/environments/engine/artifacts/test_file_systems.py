"""Squashfs and Apptainer images: they run where they are mounted, with reproducible bytes."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from condastore.errors import ArtifactFailedError, InvalidInputError, LeaseLostError
from environments.engine.artifacts import file_systems
from environments.engine.artifacts.sif import DATA_AT
from environments.engine.artifacts.staging import Material
from environments.engine.packages.cache import PackageCache
from environments.engine.system.sandbox import can_sandbox
from tests.environments.engine.artifact_fixtures import material_of, stack
from tests.environments.engine.package_fixtures import packages_of
from tests.services.processes import ComponentMissing, find_program

Make = Callable[[Material], Path]
KINDS = pytest.mark.parametrize("make", [file_systems.make_squashfs, file_systems.make_sif])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@pytest.fixture
def material(small_channel: Path, shared_cache: PackageCache, index: Path) -> Material:
    tool("mksquashfs", "squashfs-tools")
    return stack(small_channel, shared_cache, index)


def tool(name: str, package: str) -> str:
    return str(find_program(name, component=name, install=f"apt-get install {package}"))


@contextlib.contextmanager
def mounted(image: Path, *, offset: int = 0) -> Iterator[Path]:
    """What is in the squashfs: mounted, or unpacked where this machine lets nobody mount."""
    folder = image.with_name(f"{image.name}-mounted")
    folder.mkdir()
    squashfuse = tool("squashfuse", "squashfuse")
    done = subprocess.run(
        [squashfuse, "-o", f"offset={offset}", image, folder], capture_output=True, check=False
    )
    if done.returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
        return
    folder.rmdir()
    unsquashfs = tool("unsquashfs", "squashfs-tools")
    command: list[str | Path] = [unsquashfs, "-q", "-n", "-o", str(offset), "-d", folder, image]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    yield folder


def run_in(binds: list[str | Path], *command: str) -> str:
    """Run `command` in a sandbox that has the system's libraries, and `binds`."""
    if not can_sandbox():
        raise ComponentMissing("bubblewrap", "apt-get install bubblewrap")
    system = ["/usr", "/lib", "/lib64", "/bin"]
    shown = [part for path in system for part in ("--ro-bind-try", path, path)]
    wrapped = [
        "bwrap",
        "--unshare-all",
        "--dev",
        "/dev",
        *binds,
        *shown,
        *command,
    ]
    done = subprocess.run([*map(str, wrapped)], capture_output=True, text=True, check=True)
    return done.stdout.strip("\n\0 ")


def test_a_mounted_environment_runs(material: Material) -> None:
    with mounted(file_systems.make_squashfs(material)) as root:
        binds: list[str | Path] = ["--ro-bind", root, "/opt/env"]
        assert run_in(binds, "/opt/env/bin/apptool") == "/opt/env/share/apptool"
        assert run_in(binds, "/opt/env/bin/hello-noarch") == "hello 2.0 from /opt/env"
        assert run_in(binds, "/opt/env/bin/greet") == "hi from /opt/env"


def test_an_apptainer_image_is_one_to_other_tools_and_runs(material: Material) -> None:
    image = file_systems.make_sif(material)
    siftool = tool("siftool", "siftool")

    def ask(*command: str) -> str:
        done = subprocess.run(
            [siftool, *command, image], capture_output=True, text=True, check=True
        )
        return done.stdout

    assert re.search(rf"\|{DATA_AT}-\d+ +\|FS \(Squashfs/\*System/amd64\)", ask("list"))
    assert f"{material.moment:%Y-%m-%d %H:%M:%S}" in ask("header")
    dumped = subprocess.run([siftool, "dump", "1", image], capture_output=True, check=True).stdout
    assert dumped == (material.work / "root.squashfs").read_bytes()
    listed = ask("list")
    assert re.search(r"\|JSON\.(Labels|Generic)|Labels", listed)
    labels, inspected = (
        json.loads(subprocess.run([siftool, "dump", each, image], capture_output=True).stdout)
        for each in ("2", "3")
    )
    assert labels["condastore.lock"] == material.lock.digest
    attributes = inspected["data"]["attributes"]
    assert attributes["labels"] == labels
    with mounted(image, offset=DATA_AT) as root:
        assert attributes["runscript"] == (root / ".singularity.d/runscript").read_text()
        assert labels == json.loads((root / ".singularity.d/labels.json").read_text())
        binds: list[str | Path] = ["--ro-bind", root, "/"]
        activated = ". /.singularity.d/env/90-environment.sh; hello-noarch; echo $GREETING"
        said = run_in(binds, "/.singularity.d/runscript", "bash", "-c", activated)
        assert said.splitlines() == ["hello 2.0 from /opt/env", "it's $HOME"]


@KINDS
def test_two_workers_produce_the_same_bytes(
    small_channel: Path, index: Path, material: Material, make: Make, tmp_path: Path
) -> None:
    far_away = stack(small_channel, PackageCache(tmp_path / "another/cache/packages"), index)
    assert make(far_away).read_bytes() == make(material).read_bytes()


def test_another_linux_needs_no_program_of_it(
    small_channel: Path, shared_cache: PackageCache
) -> None:
    found = packages_of(small_channel, platform="linux-aarch64")
    chosen = [found[name] for name in ("libalpha", "libbeta", "apptool")]
    image = file_systems.make_sif(material_of(shared_cache, *chosen, platform="linux-aarch64"))
    listed = subprocess.run(
        [tool("siftool", "siftool"), "list", image], capture_output=True, text=True, check=True
    )
    assert "*System/arm64" in listed.stdout


def test_read_only_files_stay_so(small_channel: Path, shared_cache: PackageCache) -> None:
    odd = packages_of(small_channel)["odd-paths"]
    with mounted(file_systems.make_squashfs(material_of(shared_cache, odd))) as root:
        folder = root / "share/odd paths"
        modes = {path.name: path.lstat().st_mode & 0o777 for path in folder.iterdir()}
    assert (modes["read-only.txt"], modes["with space.txt"], modes["run.sh"]) == (
        0o444,
        0o644,
        0o755,
    )


def test_a_file_system_for_another_system_is_refused(
    small_channel: Path, shared_cache: PackageCache
) -> None:
    found = packages_of(small_channel, platform="osx-arm64")
    with pytest.raises(InvalidInputError, match="osx-arm64"):
        file_systems.make_squashfs(
            material_of(shared_cache, found["libalpha"], platform="osx-arm64")
        )


def test_a_worker_without_the_tools_says_what_to_install(
    small_channel: Path, shared_cache: PackageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = packages_of(small_channel)
    monkeypatch.setenv("PATH", "/nowhere")
    file_systems.squashfs_program.cache_clear()
    with pytest.raises(ArtifactFailedError, match="no squashfs-tools") as caught:
        file_systems.make_squashfs(material_of(shared_cache, found["libalpha"]))
    assert "apt-get install squashfs-tools" in caught.value.hint
    file_systems.squashfs_program.cache_clear()


def test_losing_the_lease_stops_the_tool(material: Material) -> None:
    begun = material.work / "env.squashfs"
    stopped = replace(material, cancelled=begun.exists)  # as soon as the tool has begun
    with pytest.raises(LeaseLostError):
        file_systems.make_squashfs(stopped)
