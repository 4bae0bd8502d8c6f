"""Conda packages of native libraries and programs, made of Debian or Ubuntu packages.

The packages are fetched with ``apt-get download`` (as any user, nothing is installed), unpacked,
and given a run path inside the prefix: libraries look beside themselves, programs look in
``<prefix>/lib`` by an absolute path that is relocated as binary text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from . import patchelf
from .conda_package import PLACEHOLDER, PackageFile, PackageSpec


@dataclass(frozen=True, slots=True)
class NativeRecipe:
    """Which files of which Debian packages make up a conda package."""

    name: str
    #: Debian package names; alternatives (for other releases) are separated by ``|``.
    debian: tuple[str, ...]
    license: str
    summary: str
    #: Patterns of the files to take, below the root of the unpacked packages.
    patterns: tuple[str, ...] = ("*lib/*-linux-gnu/*.so*", "*bin/*")
    depends: tuple[str, ...] = ()
    noarch: bool = False


RECIPES: tuple[NativeRecipe, ...] = (
    NativeRecipe("libzlib", ("zlib1g",), "Zlib", "compression library"),
    NativeRecipe("bzip2", ("libbz2-1.0", "bzip2"), "bzip2-1.0.6", "block-sorting compressor"),
    NativeRecipe("liblzma", ("liblzma5",), "0BSD", "LZMA compression library"),
    NativeRecipe("xz", ("xz-utils",), "0BSD AND GPL-2.0-or-later", "LZMA compressor"),
    NativeRecipe("zstd", ("libzstd1", "zstd"), "BSD-3-Clause", "fast compressor"),
    NativeRecipe("lz4-c", ("liblz4-1", "lz4"), "BSD-2-Clause", "very fast compressor"),
    NativeRecipe("libexpat", ("libexpat1",), "MIT", "XML parser library"),
    NativeRecipe("libffi", ("libffi8",), "MIT", "foreign function interface"),
    NativeRecipe("libuuid", ("libuuid1",), "BSD-3-Clause", "unique identifiers"),
    NativeRecipe("libxcrypt", ("libcrypt1",), "LGPL-2.1-or-later", "password hashing"),
    NativeRecipe("ncurses", ("libncursesw6", "libtinfo6"), "X11", "terminal library"),
    NativeRecipe("readline", ("libreadline8|libreadline8t64",), "GPL-3.0-only", "line editing"),
    NativeRecipe("libsqlite", ("libsqlite3-0",), "blessing", "SQL database library"),
    NativeRecipe("sqlite", ("sqlite3",), "blessing", "SQL database shell"),
    NativeRecipe(
        "openssl", ("libssl3|libssl3t64", "openssl"), "Apache-2.0", "cryptography and TLS"
    ),
    NativeRecipe("oniguruma", ("libonig5",), "BSD-2-Clause", "regular expressions"),
    NativeRecipe("jq", ("libjq1", "jq"), "MIT", "command-line JSON processor"),
    NativeRecipe("ripgrep", ("ripgrep",), "MIT OR Unlicense", "recursive text search"),
    NativeRecipe("tree", ("tree",), "GPL-2.0-or-later", "list folders as trees"),
    NativeRecipe("make", ("make",), "GPL-3.0-or-later", "build automation"),
    NativeRecipe(
        "tzdata",
        ("tzdata",),
        "LicenseRef-Public-Domain",
        "time zone data",
        patterns=("usr/share/zoneinfo/*",),
        noarch=True,
    ),
    NativeRecipe(
        "ca-certificates",
        ("ca-certificates",),
        "MPL-2.0",
        "certificates of the public authorities",
        patterns=("usr/share/ca-certificates/*/*.crt",),
        noarch=True,
    ),
)


# Plug-ins that OpenSSL looks for where it was built to be installed, which is not the prefix.
_PLUGIN_FOLDERS = {"engines-3", "ossl-modules"}


class AptUnavailableError(RuntimeError):
    """apt-get is missing, or knows no package lists (run ``apt-get update`` first)."""


@dataclass(slots=True)
class NativePackages:
    """The packages made, and which requirement provides which soname."""

    specs: list[PackageSpec] = field(default_factory=list)
    requirement_by_soname: dict[str, str] = field(default_factory=dict)


def download_and_unpack(names: list[str], work: Path) -> dict[str, tuple[str, Path]]:
    """Fetch Debian packages; returns (version, unpacked root) by the name asked for.

    A name may hold alternatives: ``libssl3|libssl3t64``. Names that this release of the
    distribution does not have are left out.
    """
    if shutil.which("apt-get") is None:
        raise AptUnavailableError("apt-get was not found")
    known = _known_packages([part for name in names for part in name.split("|")])
    chosen = {}
    for name in names:
        candidate = next((part for part in name.split("|") if part in known), None)
        if candidate:
            chosen[name] = candidate
    if not chosen:
        raise AptUnavailableError("apt knows none of the packages; run: apt-get update")
    downloads = work / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    missing = [name for name in chosen.values() if not _archive(downloads, name)]
    if missing:
        command = ["apt-get", "download", "-qq", *missing]
        run = subprocess.run(command, cwd=downloads, check=False, capture_output=True, text=True)
        if run.returncode:
            raise AptUnavailableError(f"apt-get could not download: {run.stderr.strip()[-300:]}")
    unpacked = {}
    for name, package in chosen.items():
        archive = _archive(downloads, package)
        if archive is None:
            continue
        root = work / "roots" / package
        if not root.is_dir():
            root.mkdir(parents=True)
            subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
        unpacked[name] = (upstream_version(archive.name.split("_")[1]), root)
    return unpacked


def upstream_version(debian_version: str) -> str:
    """``1%3a1.2.13.dfsg-1+b1`` is 1.2.13: without epoch, repackaging suffix and revision."""
    version = re.sub(r"^\d+(%3a|:)", "", debian_version)
    version = version.rsplit("-", 1)[0]
    version = re.split(r"[+~]|\.?dfsg|\.?ds\d", version)[0]
    return version.replace("-", ".")


def native_packages(
    work: Path, *, subdir: str = "linux-64", timestamp: int | None = None
) -> NativePackages:
    """Make every recipe that this distribution's packages allow."""
    names = [name for recipe in RECIPES for name in recipe.debian]
    unpacked = download_and_unpack(names, work)
    created = NativePackages()
    drafts: list[tuple[PackageSpec, set[str]]] = []
    for recipe in RECIPES:
        parts = [unpacked[name] for name in recipe.debian if name in unpacked]
        if len(parts) < len(recipe.debian):
            continue
        version = parts[0][0]
        if recipe.name == "ca-certificates":
            files, needed = _certificate_bundle(parts[0][1]), set[str]()
        else:
            files, needed = _collect(recipe, [root for _, root in parts], work / "scratch")
        spec = PackageSpec(
            recipe.name,
            version,
            subdir=subdir,
            noarch="generic" if recipe.noarch else None,
            depends=list(recipe.depends),
            license=recipe.license,
            timestamp=timestamp,
            summary=recipe.summary,
            license_files=_copyright(recipe, [root for _, root in parts]),
            files=files,
        )
        drafts.append((spec, needed))
        requirement = f"{recipe.name} >={version},<{_next_major(version)}"
        for file in files:
            soname = Path(file.path).name
            if file.path.startswith("lib/") and ".so" in soname:
                created.requirement_by_soname[soname] = requirement
    for spec, needed in drafts:
        found = {created.requirement_by_soname.get(soname, "") for soname in needed}
        own = {item for item in found if item.split(" ")[0] == spec.name}
        spec.depends += sorted(found - own - {""})
        if not spec.noarch:
            spec.depends.append("__glibc >=2.17,<3.0.a0")
        spec.build = spec.default_build_string()
        created.specs.append(spec)
    return created


def _collect(
    recipe: NativeRecipe, roots: list[Path], scratch: Path
) -> tuple[list[PackageFile], set[str]]:
    scratch.mkdir(parents=True, exist_ok=True)
    files: dict[str, PackageFile] = {}
    needed: set[str] = set()
    for root in roots:
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root).as_posix()
            if not any(fnmatch(relative, pattern) for pattern in recipe.patterns):
                continue
            if path.parent.name in _PLUGIN_FOLDERS:
                continue
            target = _target_path(relative)
            if path.is_symlink():
                # Links out of the package (to alternatives of the system) lead nowhere here.
                link = path.readlink().as_posix()
                if not link.startswith("/"):
                    files[target] = PackageFile.link(target, link)
            elif path.is_file():
                files[target] = _relocatable(path, target, scratch, needed)
    return list(files.values()), needed


def _target_path(relative: str) -> str:
    name = relative.rsplit("/", 1)[1]
    if relative.startswith("usr/share/"):
        return relative.removeprefix("usr/")
    return f"bin/{name}" if "/bin/" in relative else f"lib/{name}"


def _relocatable(path: Path, target: str, scratch: Path, needed: set[str]) -> PackageFile:
    content = path.read_bytes()
    mode = 0o755 if target.startswith(("bin/", "lib/")) else 0o644
    if not patchelf.is_elf(content):
        return PackageFile(target, content, mode)
    copy = scratch / path.name
    copy.write_bytes(content)
    copy.chmod(0o755)
    needed |= patchelf.needed_sonames(copy)
    is_program = target.startswith("bin/")
    patchelf.set_rpath(copy, f"{PLACEHOLDER}/lib" if is_program else "$ORIGIN")
    changed = copy.read_bytes()
    return PackageFile(target, changed, mode, prefix_mode="binary" if is_program else None)


def _certificate_bundle(root: Path) -> list[PackageFile]:
    parts = [path.read_text() for path in sorted(root.rglob("*.crt"))]
    return [
        PackageFile.text("ssl/cacert.pem", "\n".join(parts)),
        PackageFile.link("ssl/cert.pem", "cacert.pem"),
    ]


def _copyright(recipe: NativeRecipe, roots: list[Path]) -> dict[str, bytes]:
    texts: Iterator[Path] = (path for root in roots for path in root.rglob("copyright"))
    found = next((path for path in texts if path.is_file()), None)
    return {f"{recipe.name}.txt": found.read_bytes()} if found else {}


def _next_major(version: str) -> str:
    major = re.match(r"\d+", version)
    return f"{int(major.group()) + 1}.0a0" if major else "99999"


def _known_packages(names: list[str]) -> set[str]:
    run = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", *names],
        check=False,
        capture_output=True,
        text=True,
    )
    return set(re.findall(r"^Package: (\S+)$", run.stdout, re.MULTILINE))


def _archive(folder: Path, package: str) -> Path | None:
    return next(iter(sorted(folder.glob(f"{package}_*.deb"))), None)
