"""Bundles: installation offline by condastore and by other tools."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from rattler import Channel, Gateway, Subdir, VirtualPackage, install, solve

from environments.domain.lock import Lock, dependency_order
from environments.engine.artifacts.bundle import make_bundle
from environments.engine.artifacts.staging import Material
from environments.engine.packages.cache import PackageCache
from environments.engine.pypi.install import WheelCache
from tests.channels.simple_index import make_wheel
from tests.environments.engine.package_fixtures import lock_of, packages_of
from tests.environments.engine.pypi.test_install import stored

NAMES = ("python", "hello-noarch")


def material(
    channel: Path,
    work: Path,
    cache: PackageCache,
    index: Path | None = None,
    names: tuple[str, ...] = NAMES,
) -> Material:
    """Python, a noarch package of it, and a wheel, as a lock of `channel` has them."""
    found = packages_of(channel)
    requested = set(names)
    while (
        more := {
            need.split()[0]
            for name in requested
            for need in found[name].depends
            if need.split()[0] in found
        }
        - requested
    ):
        requested |= more
    packages = dependency_order(found[name] for name in requested)
    index = index or work.parent / f"index-{work.name}"
    wheel = stored(make_wheel("kept", "1.0", files={"kept.py": "x = 1\n"}), index)
    part = lock_of(*packages)
    lock = Lock(
        channels=(channel.as_uri(),),
        platforms=(type(part)(platform="linux-64", conda=part.conda, pypi=(wheel,)),),
    )
    work.mkdir()
    return Material(
        lock=lock,
        platform="linux-64",
        packages=cache.ensure(packages),
        wheels=WheelCache(cache.folder.parent / "wheels").ensure([wheel]),
        variables={},
        cache=cache,
        work=work,
    )


def unpacked(file: Path, folder: Path) -> Path:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    [top] = folder.iterdir()
    return top


def test_other_tools_create_the_environment_from_its_channel_offline(
    own_channel: Path, tmp_path: Path
) -> None:
    created = material(
        own_channel, tmp_path / "work", PackageCache(tmp_path / "cache" / "packages")
    )
    top = unpacked(make_bundle(created), tmp_path / "out")
    locked = {package.name: package for package in created.part.conda}
    shutil.rmtree(own_channel)
    shutil.rmtree(tmp_path / "cache")
    specs = (top / "packages.txt").read_text().split()
    assert len(specs) == len(locked)

    async def recreate() -> None:
        records = await solve(
            sources=[Channel((top / "channel").as_uri())],
            specs=[
                f"{name} =={version} {build}"
                for name, version, build in (spec.split("=") for spec in specs)
            ],
            gateway=Gateway(cache_dir=tmp_path / "repodata"),
            platforms=[Subdir("linux-64"), Subdir("noarch")],
            virtual_packages=VirtualPackage.detect(),
        )
        assert {r.name.normalized: r.sha256.hex() for r in records} == {
            name: package.sha256 for name, package in locked.items()
        }
        await install(
            records,
            target_prefix=tmp_path / "env",
            cache_dir=tmp_path / "rattler",
            show_progress=False,
        )

    asyncio.run(recreate())
    answer = subprocess.run(
        [tmp_path / "env/bin/python", "-c", "import hello_noarch; print('hello')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "hello\n"


def test_it_holds_every_original_package_and_their_metadata(
    own_channel: Path, tmp_path: Path
) -> None:
    created = material(
        own_channel, tmp_path / "work", PackageCache(tmp_path / "cache" / "packages")
    )
    top = unpacked(make_bundle(created), tmp_path / "out")
    for package in created.part.conda:
        content = (top / "channel" / package.subdir / package.file_name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == package.sha256
    [wheel] = created.part.pypi
    content = (top / "wheels" / wheel.file_name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == wheel.sha256
    assert sorted(path.name for path in top.iterdir()) == [
        "README.txt", "channel", "conda-lock.yml", "explicit.txt", "install.sh", "packages.txt",
        "sbom.cdx.json", "wheels",
    ]  # fmt: skip
    for subdir in ("linux-64", "noarch"):
        index = json.loads((top / "channel" / subdir / "repodata.json").read_text())
        assert index["info"] == {"subdir": subdir}
        for name in (*index["packages"], *index["packages.conda"]):
            assert (top / "channel" / subdir / name).is_file()
    command = ["sh", str(top / "install.sh"), "-b", "-p", str(tmp_path / "env")]
    done = subprocess.run(command, capture_output=True, check=True)
    assert b"Installed" in done.stdout
    imported = [str(tmp_path / "env/bin/python"), "-c", "import kept, hello_noarch"]
    subprocess.run(imported, check=True, cwd="/")


def test_the_same_lock_gives_the_same_bytes(
    own_channel: Path, tmp_path: Path, shared_cache: PackageCache
) -> None:
    index = tmp_path / "index"
    one = make_bundle(material(own_channel, tmp_path / "one", shared_cache, index))
    other = PackageCache(tmp_path / "cache" / "packages")
    two = make_bundle(material(own_channel, tmp_path / "two", other, index))
    assert one.read_bytes() == two.read_bytes()


def test_the_instructions_name_the_variables_that_a_lock_without_pip_needs(
    own_channel: Path, tmp_path: Path
) -> None:
    cache = PackageCache(tmp_path / "cache" / "packages")
    top = unpacked(make_bundle(material(own_channel, tmp_path / "work", cache)), tmp_path / "out")
    readme = (top / "README.txt").read_text()
    assert "CONDA_ADD_PIP_AS_PYTHON_DEPENDENCY=false" in readme
    assert "-m pip" not in readme
    complete = material(own_channel, tmp_path / "work2", cache, names=(*NAMES, "pip"))
    top = unpacked(make_bundle(complete), tmp_path / "out2")
    readme = (top / "README.txt").read_text()
    assert "ADD_PIP" not in readme
    assert "PREFIX/bin/python -m pip install" in readme
