"""Repodata of the size and shape of a large public channel, for benchmarks of solvers.

There are no package files, only records. The same seed gives the same channel. What it keeps of
a real one:

* ten years of releases; a few names have thousands of records, most have a handful;
* compiled Python packages are built for each Python of their day, and rebuilt now and then;
* native libraries are pinned to the major version they were built against, so that packages
  of different years do not always fit together;
* a few libraries are needed by nearly everything.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from .channel_index import write_shards

Kind = Literal["native", "compiled", "noarch"]

_PLATFORM = "linux-64"
_MONTHS = 120
_FIRST_MONTH_MS = 1_451_606_400_000  # January 2016
_MONTH_MS = 2_629_800_000
#: From this month on, packages are in the newer archive format.
_NEW_FORMAT_MONTH = 66

#: Minor versions of Python and the month they were first packaged in.
_PYTHONS = (
    ("3.6", 11),
    ("3.7", 30),
    ("3.8", 45),
    ("3.9", 57),
    ("3.10", 69),
    ("3.11", 82),
    ("3.12", 94),
    ("3.13", 106),
    ("3.14", 117),
)
_PYTHONS_BUILT_AT_ONCE = 4

_SHARES: dict[Kind, float] = {"native": 0.35, "compiled": 0.20, "noarch": 0.45}

# The most used names are real ones, so that the specs of a benchmark read well.
_KNOWN_NAMES: dict[Kind, tuple[str, ...]] = {
    "native": (
        *("libgcc", "libstdcxx", "libzlib", "openssl", "libblas", "xz", "bzip2", "libsqlite"),
        *("ncurses", "readline", "tk", "libffi", "icu", "libxml2", "libpng", "freetype", "hdf5"),
        *("libcurl", "libarrow", "libprotobuf", "boost", "gdal", "proj", "geos", "cmake", "git"),
    ),
    "compiled": (
        *("numpy", "pyyaml", "markupsafe", "cffi", "cython", "scipy", "pandas", "pillow"),
        *("lxml", "psutil", "cryptography", "matplotlib-base", "scikit-learn", "h5py", "numba"),
        *("pyarrow", "pyzmq", "tornado", "sqlalchemy", "statsmodels", "pytorch", "opencv"),
    ),
    "noarch": (
        *("packaging", "six", "typing_extensions", "setuptools", "pip", "wheel", "attrs"),
        *("click", "idna", "certifi", "urllib3", "requests", "python-dateutil", "pytz"),
        *("jinja2", "tqdm", "traitlets", "ipython", "ipykernel", "jupyter_client", "rich"),
        *("pydantic", "fastapi", "dask-core", "xarray", "seaborn", "jupyterlab", "pytest"),
    ),
}

_LICENSES = (
    *(["MIT"] * 9 + ["BSD-3-Clause"] * 7 + ["Apache-2.0"] * 5 + ["GPL-3.0-or-later"] * 3),
    *("LGPL-2.1-only", "MPL-2.0", "BSD-2-Clause", "GPL-2.0-only", "LicenseRef-Proprietary"),
)


@dataclass(frozen=True, slots=True)
class SyntheticShape:
    names: int = 25_000
    records: int = 600_000
    noarch_records: int = 150_000
    seed: int = 1
    #: Names to use where there is no known one, such as those of a real channel.
    spare_names: tuple[str, ...] = ()


@dataclass(slots=True)
class _Release:
    month: int
    version: tuple[int, int, int]

    @property
    def text(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(slots=True)
class _Project:
    name: str
    kind: Kind
    releases: list[_Release]
    #: How many records the project should come to, roughly.
    records: int
    native: list[_Project] = field(default_factory=list)
    pure: list[_Project] = field(default_factory=list)

    def latest(self, month: int) -> _Release | None:
        position = bisect_right(self.releases, month, key=lambda release: release.month)
        return self.releases[position - 1] if position else None


def write_synthetic_channel(
    channel: Path, shape: SyntheticShape, *, shards: bool = False
) -> dict[str, int]:
    """Write the channel's repodata files; returns the number of records by subdir."""
    projects = _make_projects(shape)
    counts = {}
    for subdir in (_PLATFORM, "noarch"):
        folder = channel / subdir
        folder.mkdir(parents=True, exist_ok=True)
        kinds: set[Kind] = {"noarch"} if subdir == "noarch" else {"native", "compiled"}
        records = _records([p for p in projects if p.kind in kinds], subdir, shape.seed)
        counts[subdir] = _write_repodata(folder, subdir, records)
        if shards:
            write_shards(folder, json.loads((folder / "repodata.json").read_bytes()))
    return counts


def _make_projects(shape: SyntheticShape) -> list[_Project]:
    rng = random.Random(shape.seed)
    pools: dict[Kind, list[_Project]] = {"native": [], "compiled": [], "noarch": []}
    budgets: dict[Kind, float] = {
        "native": shape.records * 0.35,
        "compiled": shape.records * 0.65,
        "noarch": shape.noarch_records,
    }
    taken = {"python", "python_abi", *(name for names in _KNOWN_NAMES.values() for name in names)}
    spare = iter([name for name in shape.spare_names if name not in taken])
    for kind, share in _SHARES.items():
        count = max(1, round(shape.names * share))
        weights = [(rank + 12) ** -0.75 for rank in range(count)]
        scale = budgets[kind] / sum(weights)
        for rank, weight in enumerate(weights):
            known = _KNOWN_NAMES[kind]
            made_up = f"{kind}-pkg-{rank:05d}"
            name = known[rank] if rank < len(known) else next(spare, made_up)
            records = max(1, round(weight * scale))
            releases = _make_releases(rng, kind, rank, records)
            pools[kind].append(_Project(name, kind, releases, records))
    for kind, projects in pools.items():
        for rank, project in enumerate(projects):
            _choose_dependencies(rng, kind, rank, project, pools)
    return [_python_project(), *(project for pool in pools.values() for project in pool)]


def _make_releases(rng: random.Random, kind: Kind, rank: int, records: int) -> list[_Release]:
    per_release = {"native": 3.0, "compiled": 5.5, "noarch": 1.2}[kind]
    count = max(1, round(records / per_release))
    popular = rank < 300
    first = rng.randrange(0, 6 if popular else _MONTHS - 12)
    last = _MONTHS - 1 - (0 if popular or rng.random() < 0.6 else rng.randrange(40))
    span = max(1, last - first)
    months = sorted(first + int(rng.random() * span) for _ in range(count))
    version = [rng.randrange(0, 3), rng.randrange(0, 5), 0]
    # A popular library seldom breaks its users; others do as they please.
    major_step = 0.01 if popular else 0.06
    releases = []
    for month in months:
        dice = rng.random()
        if dice < major_step:
            version = [version[0] + 1, 0, 0]
        elif dice < 0.45:
            version = [version[0], version[1] + 1, 0]
        else:
            version = [version[0], version[1], version[2] + 1]
        releases.append(_Release(month, (version[0], version[1], version[2])))
    return releases


def _choose_dependencies(
    rng: random.Random,
    kind: Kind,
    rank: int,
    project: _Project,
    pools: dict[Kind, list[_Project]],
) -> None:
    def choose(pool: list[_Project], limit: int, count: int) -> list[_Project]:
        """Lower ranks are more likely, and only they are possible: there are no cycles."""
        chosen = {int(limit * rng.random() ** 3) for _ in range(count)} if limit > 0 else set()
        return [pool[position] for position in sorted(chosen)]

    native, compiled, pure = pools["native"], pools["compiled"], pools["noarch"]
    if kind == "native":
        project.native = choose(native, rank, rng.randrange(1, 6))
    elif kind == "compiled":
        project.native = choose(native, min(len(native), 2000), rng.randrange(1, 5))
        project.pure = choose(compiled, min(rank, 400), rng.randrange(0, 4))
        project.pure += choose(pure, min(len(pure), rank // 2), rng.randrange(0, 3))
    else:
        project.pure = choose(pure, min(rank, 3000), rng.randrange(1, 6))
        project.pure += choose(compiled, min(len(compiled), rank // 4), rng.randrange(0, 2))


def _python_project() -> _Project:
    releases = []
    for short, month in _PYTHONS:
        major, minor = map(int, short.split("."))
        for patch in range(14):
            released = month + patch * 2
            if released < _MONTHS:
                releases.append(_Release(released, (major, minor, patch)))
    releases.sort(key=lambda release: release.month)
    return _Project("python", "native", releases, len(releases) * 3)


def _records(
    projects: list[_Project], subdir: str, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sorted by file name, as channel indexers write them: some clients are slow otherwise."""
    rng = random.Random(f"{seed}-{subdir}")
    by_file_name = itemgetter(0)
    markers = sorted(_python_abi_records(rng), key=by_file_name) if subdir == "noarch" else []
    of_projects = (
        record
        for project in sorted(projects, key=lambda project: f"{project.name}-")
        for record in sorted(_project_records(rng, project), key=by_file_name)
    )
    yield from heapq.merge(markers, of_projects, key=by_file_name)


def _project_records(rng: random.Random, project: _Project) -> Iterator[tuple[str, dict[str, Any]]]:
    license_name = rng.choice(_LICENSES)
    per_release = max(1, round(project.records / len(project.releases)))
    for position, release in enumerate(project.releases):
        newest = position == len(project.releases) - 1
        for month, number, python in _builds(rng, project, release, per_release, newest):
            depends = _pins(rng, project, month, python)
            yield _record(rng, project, release, month, number, python, depends, license_name)


def _builds(
    rng: random.Random, project: _Project, release: _Release, wanted: int, newest: bool
) -> Iterator[tuple[int, int, str]]:
    """(month, build number, Python) of each build of one release."""
    if project.kind == "noarch":
        yield release.month, 0, ""
        return
    pythons = _pythons_of(release.month) if project.kind == "compiled" else [""]
    rebuilds = max(1, round(wanted / len(pythons)))
    months = [release.month]
    months += sorted(
        min(_MONTHS - 1, release.month + 1 + rng.randrange(18)) for _ in range(rebuilds - 1)
    )
    # What is still in use is rebuilt for today's libraries and Pythons.
    if newest and months[-1] < _MONTHS - 4 and rng.random() < 0.85:
        months.append(_MONTHS - 1 - rng.randrange(3))
    for number, month in enumerate(months):
        pythons = _pythons_of(month) if project.kind == "compiled" else [""]
        for python in pythons:
            yield month, number, python


def _pythons_of(month: int) -> list[str]:
    released = [short for short, first in _PYTHONS if first <= month]
    return released[-_PYTHONS_BUILT_AT_ONCE:] or [_PYTHONS[0][0]]


def _pins(rng: random.Random, project: _Project, month: int, python: str) -> list[str]:
    depends = []
    if project.kind != "noarch":
        depends.append("__glibc >=2.17,<3.0.a0")
    for library in project.native:
        release = library.latest(month)
        if release:
            depends.append(f"{library.name} >={release.text},<{release.version[0] + 1}.0a0")
    for dependency in project.pure:
        release = dependency.latest(month)
        if not release:
            continue
        dice = rng.random()
        if dice < 0.45:
            depends.append(dependency.name)
        elif dice < 0.95:
            floor = dependency.latest(max(0, month - 24)) or release
            depends.append(f"{dependency.name} >={floor.text}")
        else:
            ceiling = release.version[0] + 1
            depends.append(f"{dependency.name} >={release.text},<{ceiling}")
    if project.kind == "compiled":
        major, minor = python.split(".")
        depends.append(f"python >={python},<{major}.{int(minor) + 1}.0a0")
        depends.append(f"python_abi {python}.* *_cp{major}{minor}")
    elif project.kind == "noarch":
        oldest = _pythons_of(month)[0]
        depends.append(f"python >={oldest}")
    return depends


def _record(
    rng: random.Random,
    project: _Project,
    release: _Release,
    month: int,
    number: int,
    python: str,
    depends: list[str],
    license_name: str,
) -> tuple[str, dict[str, Any]]:
    digest = f"{rng.getrandbits(256):064x}"
    if project.name == "python":
        build = f"h{digest[:7]}_{number}_cpython"
    elif project.kind == "noarch":
        build = f"pyh{digest[:7]}_{number}"
    else:
        build = f"{'py' + python.replace('.', '') if python else ''}h{digest[:7]}_{number}"
    record: dict[str, Any] = {
        "build": build,
        "build_number": number,
        "depends": depends,
        "license": license_name,
        "md5": f"{rng.getrandbits(128):032x}",
        "name": project.name,
        "sha256": digest,
        "size": int(10 ** rng.uniform(4, 7.3)),
        "subdir": "noarch" if project.kind == "noarch" else _PLATFORM,
        "timestamp": _FIRST_MONTH_MS + month * _MONTH_MS + rng.randrange(_MONTH_MS),
        "version": release.text,
    }
    if project.kind == "noarch":
        record["noarch"] = "python"
    extension = ".conda" if month >= _NEW_FORMAT_MONTH else ".tar.bz2"
    return f"{project.name}-{release.text}-{build}{extension}", record


def _python_abi_records(rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    for short, month in _PYTHONS:
        tag = "cp" + short.replace(".", "")
        yield (
            f"python_abi-{short}-8_{tag}.conda",
            {
                "build": f"8_{tag}",
                "build_number": 8,
                "constrains": [f"python {short}.* *_cpython"],
                "depends": [],
                "license": "BSD-3-Clause",
                "md5": f"{rng.getrandbits(128):032x}",
                "name": "python_abi",
                "noarch": "generic",
                "sha256": hashlib.sha256(short.encode()).hexdigest(),
                "size": 7000,
                "subdir": "noarch",
                "timestamp": _FIRST_MONTH_MS + month * _MONTH_MS,
                "version": short,
            },
        )


def _write_repodata(
    folder: Path, subdir: str, records: Iterator[tuple[str, dict[str, Any]]]
) -> int:
    """Write the records as they come: a channel of this size is not held in memory."""
    sections = {"packages": folder / ".packages.part", "packages.conda": folder / ".conda.part"}
    count = 0
    with (
        sections["packages"].open("w") as older,
        sections["packages.conda"].open("w") as newer,
    ):
        first = {older: True, newer: True}
        for file_name, record in records:
            stream = newer if file_name.endswith(".conda") else older
            separator = "" if first[stream] else ",\n"
            first[stream] = False
            stream.write(f'{separator}"{file_name}":{json.dumps(record)}')
            count += 1
    target = folder / "repodata.json"
    with target.open("wb") as output:
        output.write(f'{{"info":{{"subdir":"{subdir}"}},\n'.encode())
        for section, part in sections.items():
            output.write(f'"{section}":{{\n'.encode())
            _append(part, output)
            output.write(b"\n},\n")
        output.write(b'"removed":[],"repodata_version":1}\n')
    for part in sections.values():
        part.unlink()
    with target.open("rb") as plain, (folder / "repodata.json.zst").open("wb") as packed:
        zstandard.ZstdCompressor(level=6, threads=-1).copy_stream(plain, packed)
    return count


def _append(part: Path, output: IO[bytes]) -> None:
    with part.open("rb") as stream:
        shutil.copyfileobj(stream, output, 1024 * 1024)
