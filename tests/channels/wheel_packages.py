"""Conda packages made of wheels.

A *stack* (``stacks.toml``) is a set of requirements and a date. uv resolves each stack as it
would have been resolved on that date and says where the wheels are and when they were uploaded;
the union of all stacks becomes the channel. Every stack is solvable by itself, and mixing them
gives a solver real constraints to work on.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.parse
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from functools import partial
from pathlib import Path
from typing import cast

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from .conda_package import PLACEHOLDER, PackageFile, PackageSpec, write_package

#: Names that differ between the Python index and the usual conda channels.
CONDA_NAMES = {
    "blosc2": "python-blosc2",
    "build": "python-build",
    "graphviz": "python-graphviz",
    "importlib-resources": "importlib_resources",
    "jupyter-client": "jupyter_client",
    "jupyter-core": "jupyter_core",
    "jupyter-events": "jupyter_events",
    "jupyter-server": "jupyter_server",
    "jupyter-server-terminals": "jupyter_server_terminals",
    "jupyterlab-pygments": "jupyterlab_pygments",
    "jupyterlab-server": "jupyterlab_server",
    "jupyterlab-widgets": "jupyterlab_widgets",
    "msgpack": "msgpack-python",
    "prometheus-client": "prometheus_client",
    "pure-eval": "pure_eval",
    "ruamel-yaml": "ruamel.yaml",
    "stack-data": "stack_data",
    "tables": "pytables",
    "torch": "pytorch",
    "typing-extensions": "typing_extensions",
}

_LICENSE_BY_CLASSIFIER = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL-2.1-or-later",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}

#: The platforms for which compiled wheels also get a stub: metadata as usual, but no files.
STUB_PLATFORMS = ("osx-arm64", "win-64")

_DOWNLOAD_ATTEMPTS = 3


def conda_name(project: str) -> str:
    name = canonicalize_name(project)
    return CONDA_NAMES.get(name, name)


# ---------------------------------------------------------------------------------------------
# Resolving stacks and fetching wheels


@dataclass(frozen=True, slots=True)
class Stack:
    name: str
    date: str
    python_versions: tuple[str, ...]
    requirements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A wheel that belongs in the channel, and the Python versions it was chosen for."""

    url: str
    sha256: str
    uploaded: int
    python: str

    @property
    def file_name(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlparse(self.url).path.rsplit("/", 1)[1])


@dataclass(frozen=True, slots=True)
class AbiLimit:
    """Compiled wheels uploaded before ``date`` do not work with ``name`` beyond ``limit``.

    Wheels rarely say so; conda channels do, since they pin what a package was built against.
    """

    name: str
    date: str
    limit: str

    def applies_to(self, wheel: WheelMetadata) -> bool:
        uploaded = datetime.fromtimestamp(wheel.uploaded, UTC).date().isoformat()
        return not wheel.is_pure and uploaded < self.date


def read_abi_limits(path: Path) -> list[AbiLimit]:
    entries = tomllib.loads(path.read_text()).get("abi-limit", [])
    return [AbiLimit(entry["name"], entry["date"], entry["limit"]) for entry in entries]


def read_stacks(path: Path) -> list[Stack]:
    """The stacks of a file, with the requirements that they share."""
    return _read_stacks(path, "stack")


def read_index_stacks(path: Path) -> list[Stack]:
    """The stacks whose wheels are for a Python package index rather than for a channel."""
    return _read_stacks(path, "index")


def _read_stacks(path: Path, table: str) -> list[Stack]:
    document = tomllib.loads(path.read_text())
    common = document.get("requirements", [])
    return [
        Stack(
            name=entry["name"],
            date=entry["date"],
            python_versions=tuple(entry["python"]),
            requirements=(*common, *entry["requirements"]),
        )
        for entry in document.get(table, [])
    ]


def resolve_stacks(stacks: Iterable[Stack], python_versions: Sequence[str]) -> list[WheelSource]:
    """Resolve every stack for every wanted Python version; one entry for each wheel."""
    jobs = [
        (stack, version)
        for stack in stacks
        for version in stack.python_versions
        if version in python_versions
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        resolved = pool.map(lambda job: _resolve(*job), jobs)
        unique = {(source.url, source.python): source for batch in resolved for source in batch}
    return sorted(unique.values(), key=lambda source: (source.file_name, source.python))


def find_uv() -> Path:
    """The uv of this interpreter's environment; whatever else is on the PATH is not asked."""
    beside = Path(sys.executable).with_name("uv")
    if not beside.exists():
        raise FileNotFoundError(
            f"uv is needed; install it with: {sys.executable} -m pip install uv"
        )
    return beside


def _resolve(stack: Stack, python_version: str) -> list[WheelSource]:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "requirements.in").write_text("\n".join(stack.requirements) + "\n")
        command = [str(find_uv()), "pip", "compile", "--quiet", "--format", "pylock.toml"]
        command += ["--only-binary", ":all:", "--python-version", python_version]
        command += ["--python", sys.executable, "--no-python-downloads"]
        command += ["--python-platform", "x86_64-manylinux_2_28"]
        command += ["--output-file", "pylock.toml", "requirements.in"]
        dated = [*command, "--exclude-newer", stack.date]
        if subprocess.run(dated, cwd=scratch, check=False, capture_output=True).returncode:
            # A mirror that does not tell when a file was uploaded has nothing that is old enough.
            subprocess.run(command, cwd=scratch, check=True)
        document = tomllib.loads(Path(scratch, "pylock.toml").read_text())
    sources = []
    for package in document["packages"]:
        for wheel in package.get("wheels", [])[:1]:
            uploaded = wheel.get("upload-time")
            seconds = int(uploaded.timestamp()) if uploaded else 0
            url = urllib.parse.urljoin(package.get("index", ""), wheel["url"])
            sources.append(WheelSource(url, wheel["hashes"]["sha256"], seconds, python_version))
    return sources


def fetch_wheels(sources: Sequence[WheelSource], folder: Path, *, parallel: int = 8) -> None:
    """Fetch the wheels that are not in ``folder`` yet, checking their digests."""
    folder.mkdir(parents=True, exist_ok=True)
    unique = {source.file_name: source for source in sources}
    missing = [source for name, source in unique.items() if not (folder / name).exists()]
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda source: _fetch(source, folder), missing))


def _fetch(source: WheelSource, folder: Path) -> None:
    for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(source.url, timeout=180) as response:
                content = response.read()
            break
        except OSError:
            if attempt == _DOWNLOAD_ATTEMPTS:
                raise
            time.sleep(attempt)
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise ValueError(f"{source.file_name} does not have the digest it should have")
    partial_file = folder / f".{source.file_name}.part"
    partial_file.write_bytes(content)
    partial_file.replace(folder / source.file_name)


# ---------------------------------------------------------------------------------------------
# Reading a wheel's metadata


@dataclass(slots=True)
class WheelMetadata:
    path: Path
    python: str
    uploaded: int
    project: str
    version: str
    requires_python: str
    requirements: list[Requirement]
    extras: set[str]
    summary: str
    home: str
    license: str | None
    is_pure: bool
    glibc: str
    #: All Python versions the channel is made for; set once every wheel is known.
    targets: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return conda_name(self.project)


def read_wheel(path: Path, python: str, uploaded: int) -> WheelMetadata:
    project, version, _, tags = parse_wheel_filename(path.name)
    with zipfile.ZipFile(path) as archive:
        dist_info = _dist_info(archive)
        headers = HeaderParser().parsestr(archive.read(f"{dist_info}/METADATA").decode())
    tag = next(iter(sorted(tags, key=str)))
    requirements = []
    for line in headers.get_all("Requires-Dist", []):
        try:
            requirements.append(Requirement(line))
        except InvalidRequirement:
            continue
    return WheelMetadata(
        path=path,
        python=python,
        uploaded=uploaded,
        project=str(project),
        version=str(version),
        requires_python=headers.get("Requires-Python", ""),
        requirements=requirements,
        extras={canonicalize_name(extra) for extra in headers.get_all("Provides-Extra", [])},
        summary=headers.get("Summary", "").replace("\n", " "),
        home=_home_page(headers.get("Home-page", ""), headers.get_all("Project-URL", [])),
        license=_license(headers),
        is_pure=all(tag.platform == "any" and tag.abi == "none" for tag in tags),
        glibc=_glibc_of(str(tag.platform)),
    )


def _dist_info(archive: zipfile.ZipFile) -> str:
    metadata = next(
        name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)
    )
    return metadata.split("/")[0]


def _home_page(home_page: str, project_urls: list[str]) -> str:
    if home_page and home_page != "UNKNOWN":
        return home_page
    by_label: dict[str, str] = {}
    for line in project_urls:
        label, _, url = line.partition(",")
        by_label[label.strip().lower()] = url.strip()
    for label in ("homepage", "home", "source", "repository", "source code", "documentation"):
        if label in by_label:
            return by_label[label]
    return ""


def _license(headers: Message) -> str | None:
    expression = headers.get("License-Expression", "")
    if expression:
        return str(expression)
    for classifier in headers.get_all("Classifier", []):
        label = classifier.rsplit(" :: ", 1)[-1]
        if classifier.startswith("License") and label in _LICENSE_BY_CLASSIFIER:
            return _LICENSE_BY_CLASSIFIER[label]
    free_text = str(headers.get("License", "")).strip()
    return free_text if free_text and "\n" not in free_text and len(free_text) < 60 else None


def _glibc_of(platform: str) -> str:
    match = re.search(r"manylinux_(\d+)_(\d+)", platform)
    if match:
        return f"{match[1]}.{match[2]}"
    return "2.12" if "manylinux2010" in platform else "2.17"


# ---------------------------------------------------------------------------------------------
# Translating requirements


def conda_requirement(requirement: Requirement) -> list[str]:
    """The conda requirements that stand for one requirement of a wheel.

    A requirement on an extra becomes one on the metapackage made for that extra.
    """
    specifier = conda_version_spec(requirement.specifier)
    names = [conda_name(requirement.name)]
    names += [extra_package_name(requirement.name, extra) for extra in requirement.extras]
    return [f"{name} {specifier}".strip() for name in names]


def extra_package_name(project: str, extra: str) -> str:
    return f"{conda_name(project)}-with-{canonicalize_name(extra)}"


def conda_version_spec(specifiers: SpecifierSet) -> str:
    parts = []
    for specifier in sorted(specifiers, key=lambda item: (item.operator[0] != ">", str(item))):
        version = specifier.version
        match specifier.operator:
            case "==" | "===":
                parts.append(version if version.endswith(".*") else f"=={version}")
            case "~=":
                release = version.split(".")
                parts += [f">={version}", f"{'.'.join(release[:-1])}.*"]
            case operator:
                parts.append(f"{operator}{version}")
    return ",".join(parts)


def _environment(python: str, extra: str = "") -> dict[str, str]:
    return {
        **cast("dict[str, str]", default_environment()),
        "extra": extra,
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _dependencies(wheel: WheelMetadata, python: str, extra: str = "") -> list[str]:
    """Requirements that hold for ``python``: of ``extra`` alone when it is given."""
    found: set[str] = set()
    for requirement in wheel.requirements:
        marker = requirement.marker
        requested = marker is None or marker.evaluate(_environment(python, extra))
        if extra and (marker is None or marker.evaluate(_environment(python))):
            requested = False
        if requested:
            found.update(conda_requirement(requirement))
    return sorted(found)


# ---------------------------------------------------------------------------------------------
# Converting


def convert_wheels(
    sources: Sequence[WheelSource],
    wheels: Path,
    channel: Path,
    python_versions: Sequence[str],
    *,
    abi_limits: Sequence[AbiLimit] = (),
    level: int = 3,
    processes: int | None = None,
) -> int:
    """Write the conda packages of all wheels into ``channel``; returns how many were made.

    Packages that are there already are not made again.
    """
    metadata = [
        read_wheel(wheels / source.file_name, source.python, source.uploaded) for source in sources
    ]
    for wheel in metadata:
        wheel.targets = sorted(python_versions, key=_version_key)
    work = partial(_convert, channel=channel, abi_limits=tuple(abi_limits), level=level)
    with ProcessPoolExecutor(processes) as pool:
        created = sum(pool.map(work, _unique(metadata), chunksize=4))
    for spec in _extra_metapackages(metadata):
        write_package(spec, channel, level=level)
        created += 1
    return created


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _unique(metadata: Sequence[WheelMetadata]) -> list[WheelMetadata]:
    """One entry for each package to make: a noarch wheel makes the same one for every Python."""
    chosen: dict[tuple[str, str], WheelMetadata] = {}
    for wheel in metadata:
        key = (wheel.path.name, "" if _is_noarch(wheel) else wheel.python)
        chosen.setdefault(key, wheel)
    # The largest first, so that no process is left alone with it at the end.
    return sorted(chosen.values(), key=lambda wheel: -wheel.path.stat().st_size)


def _is_noarch(wheel: WheelMetadata) -> bool:
    """Pure, and with the same requirements whatever the Python version."""
    variants = {tuple(_dependencies(wheel, python)) for python in wheel.targets}
    return wheel.is_pure and len(variants) == 1


def _convert(
    wheel: WheelMetadata, *, channel: Path, abi_limits: tuple[AbiLimit, ...], level: int
) -> int:
    noarch = _is_noarch(wheel)
    spec = _package_spec(wheel, noarch, abi_limits)
    if (channel / spec.subdir / f"{spec.stem}.conda").exists():
        return 0
    with zipfile.ZipFile(wheel.path) as archive:
        if noarch:
            spec.entry_points = list(_entry_points(archive))
        spec.files = list(_payload(archive, wheel, noarch))
        spec.license_files = _license_files(archive)
    write_package(spec, channel, level=level)
    if not noarch:
        for subdir in STUB_PLATFORMS:
            write_package(_stub(spec, subdir), channel, level=level)
    return 1


def _package_spec(
    wheel: WheelMetadata, noarch: bool, abi_limits: tuple[AbiLimit, ...]
) -> PackageSpec:
    depends = _dependencies(wheel, wheel.python)
    for limit in abi_limits:
        needed = any(item.split(" ")[0] == limit.name for item in depends)
        if needed and limit.applies_to(wheel):
            depends.append(f"{limit.name} {limit.limit}")
    if noarch:
        lowest = wheel.targets[0]
        upper = [
            str(item) for item in SpecifierSet(wheel.requires_python) if item.operator[0] in "<!"
        ]
        depends.append(",".join([f"python >={lowest}", *sorted(upper)]))
    else:
        depends += _pinned_python(wheel.python)
        if not wheel.is_pure:
            depends.append(f"__glibc >={wheel.glibc},<3.0.a0")
    spec = PackageSpec(
        wheel.name,
        wheel.version.replace("-", "_").replace("+", "_"),
        noarch="python" if noarch else None,
        depends=sorted(depends),
        license=wheel.license,
        timestamp=wheel.uploaded * 1000 or None,
        purls=[f"pkg:pypi/{canonicalize_name(wheel.project)}@{wheel.version}"],
        summary=wheel.summary,
        home=wheel.home,
    )
    if not noarch:
        spec.build = spec.default_build_string(f"py{wheel.python.replace('.', '')}")
    return spec


def _pinned_python(python: str) -> list[str]:
    major, minor = python.split(".")
    tag = f"cp{major}{minor}"
    return [
        f"python >={python},<{major}.{int(minor) + 1}.0a0",
        f"python_abi {python}.* *_{tag}",
    ]


def _stub(spec: PackageSpec, subdir: str) -> PackageSpec:
    """The same package for another platform, for solving only: it holds no files."""
    platform = {"osx-arm64": "__osx >=11.0", "win-64": "__win"}[subdir]
    depends = [platform if item.startswith("__glibc") else item for item in spec.depends]
    stub = PackageSpec(
        spec.name,
        spec.version,
        subdir=subdir,
        depends=depends,
        license=spec.license,
        timestamp=spec.timestamp,
        purls=spec.purls,
        summary=f"{spec.summary} (metadata only)",
        home=spec.home,
    )
    stub.build = stub.default_build_string(spec.build.split("h", 1)[0])
    return stub


def _extra_metapackages(metadata: Sequence[WheelMetadata]) -> Iterator[PackageSpec]:
    """A metapackage for each extra that some requirement in the channel names."""
    requested: dict[str, set[str]] = defaultdict(set)
    for wheel in metadata:
        for requirement in wheel.requirements:
            for extra in requirement.extras:
                requested[canonicalize_name(requirement.name)].add(canonicalize_name(extra))
    seen = set()
    for wheel in metadata:
        for extra in sorted(requested[canonicalize_name(wheel.project)] & wheel.extras):
            name = extra_package_name(wheel.project, extra)
            if (name, wheel.version) in seen:
                continue
            seen.add((name, wheel.version))
            yield PackageSpec(
                name,
                wheel.version,
                noarch="generic",
                depends=[
                    f"{wheel.name} =={wheel.version}",
                    *_dependencies(wheel, wheel.python, extra),
                ],
                license=wheel.license,
                timestamp=wheel.uploaded * 1000 or None,
                summary=f"{wheel.name} with what its extra '{extra}' needs",
            )


def _payload(archive: zipfile.ZipFile, wheel: WheelMetadata, noarch: bool) -> Iterator[PackageFile]:
    site_packages = "site-packages" if noarch else f"lib/python{wheel.python}/site-packages"
    scripts = "python-scripts" if noarch else "bin"
    seen = set()
    for member in archive.infolist():
        if member.is_dir():
            continue
        target = _target_path(member.filename, site_packages, scripts, wheel)
        if target is None or target in seen:
            continue
        seen.add(target)
        content = archive.read(member)
        mode = (member.external_attr >> 16) & 0o777 or 0o644
        if target.startswith(f"{scripts}/"):
            yield _script(target, content)
        else:
            yield PackageFile(target, content, (mode & 0o755) | 0o644)
    dist_info = _dist_info(archive)
    yield PackageFile.text(f"{site_packages}/{dist_info}/INSTALLER", "conda\n")
    if not noarch:
        for entry_point in _entry_points(archive):
            name, target = (part.strip() for part in entry_point.split("=", 1))
            if f"{scripts}/{name}" not in seen:
                yield _entry_point_script(f"{scripts}/{name}", target, wheel.python)


def _target_path(name: str, site_packages: str, scripts: str, wheel: WheelMetadata) -> str | None:
    """Where a wheel's member goes; None for what is written anew or not wanted."""
    if name.endswith((".dist-info/INSTALLER", ".dist-info/direct_url.json")):
        return None
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"unsafe path {name!r} in {wheel.path.name}")
    top, _, rest = name.partition("/")
    if not top.endswith(".data"):
        return f"{site_packages}/{name}"
    scheme, _, path = rest.partition("/")
    folder = {
        "data": "",
        "headers": f"include/python{wheel.python}/{wheel.project}/",
        "platlib": f"{site_packages}/",
        "purelib": f"{site_packages}/",
        "scripts": f"{scripts}/",
    }[scheme]
    return f"{folder}{path}"


def _script(target: str, content: bytes) -> PackageFile:
    if content.startswith(b"#!python"):
        rest = content.split(b"\n", 1)[1]
        content = f"#!{PLACEHOLDER}/bin/python\n".encode() + rest
        return PackageFile(target, content, 0o755, prefix_mode="text")
    return PackageFile(target, content, 0o755)


def _entry_point_script(path: str, target: str, python: str) -> PackageFile:
    module, _, attribute = target.partition(":")
    attribute = attribute.split("[")[0].strip()
    content = (
        f"#!{PLACEHOLDER}/bin/python{python}\n"
        "import sys\n\n"
        f"from {module.strip()} import {attribute.split('.')[0]}\n\n"
        'if __name__ == "__main__":\n'
        f"    sys.exit({attribute}())\n"
    )
    return PackageFile.text(path, content, executable=True)


def _entry_points(archive: zipfile.ZipFile) -> Iterator[str]:
    path = f"{_dist_info(archive)}/entry_points.txt"
    if path not in archive.namelist():
        return
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(archive.read(path).decode())
    for section in ("console_scripts", "gui_scripts"):
        if parser.has_section(section):
            for name, target in parser.items(section):
                yield f"{name} = {target.split('[')[0].strip()}"


def _license_files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    pattern = re.compile(r"[^/]+\.dist-info/(licenses/)?[^/]*(licen[cs]e|copying)[^/]*$", re.I)
    return {
        name.rsplit("/", 1)[1]: archive.read(name)
        for name in archive.namelist()
        if pattern.match(name)
    }
