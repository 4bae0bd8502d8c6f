"""Which packages make up the small, numpy, demo and full channels.

small
    Generated packages and the running Python; no network, a second.
numpy
    The running Python and numpy: what an archive or an image must be able to run.
demo
    The running Python and a choice of wheels in two generations; what is needed to build, compare
    and roll back environments by hand. With a Python package index in ``pypi/simple/``.
full
    Two Pythons, native libraries, and several years of wheels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from shutil import copytree, rmtree

from . import debian_packages, simple_index, wheel_packages
from .channel_index import PATCHES_FILE, index_channel
from .conda_package import PackageSpec, write_package
from .cpython_package import (
    InstalledCPython,
    inspect_interpreter,
    python_abi_package,
    python_packages,
    with_bytecode,
)
from .sample_packages import PLATFORMS, release_timestamp, sample_packages, sample_patches
from .stamp import ensure_channel, kit_version

#: Stub pythons of the platforms whose packages are only solved for, never run.
STUB_PYTHONS = ("3.11.9", "3.12.7", "3.13.1")

FULL_STACKS = Path(__file__).with_name("stacks.toml")
NUMPY_STACKS = Path(__file__).with_name("numpy.toml")
DEMO_STACKS = Path(__file__).with_name("demo.toml")

#: Where in a demo channel its Python package index is.
INDEX_FOLDER = "pypi"

_LEVEL = 3  # of zstd


def build_small(
    channel: Path,
    *,
    python: str = "real",
    now: datetime | None = None,
    level: int = _LEVEL,
) -> None:
    """Write the small channel.

    Args:
        channel: a folder, made where it is missing.
        python: `real` (the running one), `stub` (records without files) or `none`.
        now: the day of the packages that stand for a release of today.
        level: of zstd; 1 to 19.
    """
    channel.mkdir(parents=True, exist_ok=True)
    with _step("generated packages"):
        _write_samples(channel, now or datetime.now(tz=UTC), level)
    if python == "stub":
        _write_stub_pythons(channel, ("linux-64",))
    elif python == "real":
        with _step("python"):
            source = inspect_interpreter(Path(sys.executable))
            _write_python(channel, source, level, slim=True)
    _index(channel)


def build_numpy(channel: Path, *, work: Path) -> None:
    """Write the numpy channel into an empty folder."""
    source = inspect_interpreter(Path(sys.executable))
    libraries = _write_native_packages(channel, work, _LEVEL)
    with _step("python"):
        _write_python(channel, source, _LEVEL, libraries=libraries, slim=True)
    _write_wheels(channel, work / "wheels", NUMPY_STACKS, [source.short], _LEVEL)
    _index(channel)


def ensure_demo(channel: Path, *, work: Path | None = None) -> bool:
    """Make the demo channel in `channel`, unless it is there already; say if it was made.

    Args:
        channel: a folder that is missing, empty, or holds a demo channel.
        work: downloads, kept for the next time; beside the channel unless it is given.
    """
    work = work or channel.with_name(f"{channel.name}-work")
    version = ".".join(map(str, sys.version_info[:3]))
    stamp = {"kind": "demo", "kit": kit_version(), "python": version}
    return ensure_channel(channel, stamp, lambda partial: build_demo(partial, work=work))


def build_demo(channel: Path, *, work: Path) -> None:
    """Write the demo channel into an empty folder."""
    work.mkdir(parents=True, exist_ok=True)
    source = inspect_interpreter(Path(sys.executable))
    with _step("generated packages"):
        _write_samples(channel, datetime.now(tz=UTC), _LEVEL)
    libraries = _write_native_packages(channel, work, _LEVEL)
    with _step("python"):
        source = with_bytecode(source, work / f"bytecode-{source.version}")
        _write_python(channel, source, _LEVEL, libraries=libraries, slim=True)
    converted = _write_wheels(channel, work / "wheels", DEMO_STACKS, [source.short], _LEVEL)
    with _step("python package index"):
        requested = wheel_packages.read_index_stacks(DEMO_STACKS)
        others = wheel_packages.resolve_stacks(requested, [source.short])
        wheel_packages.fetch_wheels(others, work / "wheels")
        real = {source.file_name: source for source in (*converted, *others)}
        downloaded = (
            simple_index.read_distribution(
                work / "wheels" / name, uploaded=datetime.fromtimestamp(source.uploaded, UTC)
            )
            for name, source in sorted(real.items())
        )
        simple_index.write_simple_index(
            channel / INDEX_FOLDER, [*simple_index.sample_distributions(), *downloaded]
        )
    _index(channel)
    # Of what was downloaded only the archives are of use again.
    for unpacked in (work / "roots", work / "scratch", *work.glob("bytecode-*")):
        rmtree(unpacked, ignore_errors=True)


def build_full(
    channel: Path,
    *,
    pythons: Sequence[str] = ("3.11", "3.12"),
    interpreters: Sequence[Path] = (),
    stacks: Path = FULL_STACKS,
    work: Path | None = None,
    level: int = _LEVEL,
) -> None:
    """Write the full channel.

    Args:
        channel: a folder, made where it is missing; packages that are in it are kept.
        pythons: minor versions; those of which no interpreter is found are left out.
        interpreters: CPythons to package, before any that is found by itself.
        stacks: what to take from the Python package index.
        work: downloads, kept for the next time; beside the channel unless it is given.
        level: of zstd; 1 to 19.
    """
    work = work or channel.with_name(f"{channel.name}-work")
    work.mkdir(parents=True, exist_ok=True)
    channel.mkdir(parents=True, exist_ok=True)
    with _step("generated packages"):
        _write_samples(channel, datetime.now(tz=UTC), level)
    libraries = _write_native_packages(channel, work, level)
    created = []
    with _step("python"):
        for version in pythons:
            source = find_cpython(version, work, interpreters)
            if source is None:
                print(f"  Python {version} left out: no interpreter and no package of it found")
                continue
            source = with_bytecode(source, work / f"bytecode-{source.version}")
            _write_python(channel, source, level, libraries=libraries)
            created.append(version)
    _write_wheels(channel, work / "wheels", stacks, created, level)
    _index(channel)


def index(channel: Path) -> None:
    """Index the packages that are in `channel`, as after changing some of them by hand."""
    _index(channel)


def find_cpython(
    version: str, work: Path, interpreters: Sequence[Path] = ()
) -> InstalledCPython | None:
    """An interpreter of a minor version, wherever this machine has one.

    One that was named, this one, one that pyenv or uv knows, or the one in a Debian package, which
    need not be installed.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    by_pyenv = sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
    for executable in (*interpreters, Path(sys.executable), *by_pyenv):
        found = inspect_interpreter(executable)
        if found.short == version:
            return found
    command = [str(wheel_packages.find_uv()), "python", "find", "--no-config"]
    command += ["--no-python-downloads", version]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    if answer.returncode == 0:
        return inspect_interpreter(Path(answer.stdout.strip()))
    parts = [f"python{version}-minimal", f"libpython{version}-minimal"]
    parts.append(f"libpython{version}-stdlib")
    try:
        unpacked = debian_packages.download_and_unpack(parts, work)
    except debian_packages.AptUnavailableError:
        return None
    if len(unpacked) < len(parts):
        return None
    joined = work / f"python{version}"
    for _, root in unpacked.values():
        copytree(root, joined, symlinks=True, dirs_exist_ok=True)
    return inspect_interpreter(joined / f"usr/bin/python{version}")


def _write_samples(channel: Path, now: datetime, level: int) -> None:
    for spec in sample_packages(now=now):
        write_package(spec, channel, level=level)
    # One package in the older format, which servers and clients must still handle.
    older = PackageSpec(
        "older-format",
        "1.0",
        noarch="generic",
        license="MIT",
        timestamp=release_timestamp(5),
        summary="package in the older archive format",
    )
    write_package(older, channel, archive_format=".tar.bz2")
    _write_stub_pythons(channel, tuple(p for p in PLATFORMS if p != "linux-64"))
    (channel / PATCHES_FILE).write_text(json.dumps(sample_patches(), indent=1))


def _write_stub_pythons(channel: Path, platforms: tuple[str, ...]) -> None:
    for version in STUB_PYTHONS:
        short = version.rsplit(".", 1)[0]
        write_package(python_abi_package(short, release_timestamp(600)), channel)
        for subdir in platforms:
            stub = PackageSpec(
                "python",
                version,
                subdir=subdir,
                build="h0000000_0_cpython",
                constrains=[f"python_abi {short}.* *_cp{short.replace('.', '')}"],
                license="Python-2.0",
                timestamp=release_timestamp(600),
                summary="stands for Python where packages are only solved for",
                extra_index={"python_site_packages_path": f"lib/python{short}/site-packages"},
            )
            write_package(stub, channel)


def _write_native_packages(channel: Path, work: Path, level: int) -> Mapping[str, str] | None:
    """Write native packages; gives the requirement for each soname, None where apt is missing."""
    with _step("native packages"):
        try:
            native = debian_packages.native_packages(work, timestamp=release_timestamp(300))
        except debian_packages.AptUnavailableError as error:
            print(f"  left out: {error}")
            return None
        for spec in native.specs:
            write_package(spec, channel, level=level)
    return native.requirement_by_soname


def _write_python(
    channel: Path,
    source: InstalledCPython,
    level: int,
    *,
    libraries: Mapping[str, str] | None = None,
    slim: bool = False,
) -> None:
    for spec in python_packages(
        source, timestamp=release_timestamp(500), libraries=libraries, slim=slim
    ):
        written = write_package(spec, channel, level=level)
        print(f"  {written.name}: {written.stat().st_size / 1e6:.1f} MB")


def _write_wheels(
    channel: Path, downloads: Path, stacks: Path, pythons: Sequence[str], level: int
) -> list[wheel_packages.WheelSource]:
    with _step("resolving stacks"):
        sources = wheel_packages.resolve_stacks(wheel_packages.read_stacks(stacks), pythons)
    with _step(f"fetching {len({source.file_name for source in sources})} wheels"):
        wheel_packages.fetch_wheels(sources, downloads)
    with _step("converting wheels"):
        created = wheel_packages.convert_wheels(
            sources,
            downloads,
            channel,
            pythons,
            abi_limits=wheel_packages.read_abi_limits(stacks),
            level=level,
        )
    print(f"  {created} packages made")
    return sources


def _index(channel: Path) -> None:
    with _step("indexing"):
        counts = index_channel(channel)
    print(f"  records: {json.dumps(counts)}")


@contextmanager
def _step(title: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{title}: {time.monotonic() - started:.1f} s", flush=True)
