"""The files of an artifact, the same wherever it is made.

Archives and file systems are made from the same list: path, content, mode and time of each file,
directly from the caches. No prefix is linked, and nothing of the machine is included: no paths, no
times of its files, no owners.

A file's time is its package's. Python sources with a compiled form in the package are the
exception: they have the time that the compiled form names, or Python would compile them at every
start. Python files that no package compiled stay so: compiling needs a machine of the artifact's
platform, and other machines would give other bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from conda_pack.core import PREFIX_PLACEHOLDER, rewrite_shebang
from rattler.package import PathsJson

from condastore.errors import LinkError
from environments.domain.linking import (
    PackageFile,
    PathConflict,
    PythonInfo,
    check_paths,
    prefix_path,
    replaced_paths,
)
from environments.domain.policy.subjects import in_seconds
from environments.domain.progress import Cancelled, never, obey
from environments.domain.timestamps import EARLIEST
from environments.engine.artifacts.staging import Material
from environments.engine.artifacts.tar import Entry, Source, tar_stream
from environments.engine.packages.cache import CachedPackage
from environments.engine.pypi.install import CachedWheel, install_wheels

#: Part of the keys of compressed parts; increase it when the same package gives other entries.
RECIPE = 3
#: Stands for a prefix that is not known yet.
UNKNOWN_PREFIX: str = PREFIX_PLACEHOLDER
#: Flags, then the source's time, of a compiled Python file (PEP 552).
_COMPILED = struct.Struct("<4xII")
_LATEST = 2**32 - 1  # the last second that a squashfs can represent


class PrefixRecord(NamedTuple):
    """A placeholder in a file, to be replaced when the location of the environment is known."""

    path: str
    placeholder: str
    mode: str  # text or binary


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The sorted entries of one package; the same in every artifact with this `key`."""

    key: str  # sha256 in hex; "" if only this artifact has the part
    name: str
    entries: Sequence[Entry]
    prefixes: Sequence[PrefixRecord] = ()
    tail: bytes = b""  # bytes after the entries

    def stream(self) -> Iterator[bytes | Source]:
        """Yield its members of a tar archive."""
        yield from tar_stream(self.entries)
        if self.tail:
            yield self.tail


def parts_of(material: Material, *, prefix: str | None) -> list[Part]:
    """Return the parts of all packages by name, and last conda's metadata of the environment.

    Args:
        prefix: the prefix in the files; None if the program that unpacks them replaces it.
    Raises:
        LinkError: packages conflict or cannot be linked; reports all of them.
    """
    parts = package_parts(
        material.packages,
        material.wheels,
        python=material.python,
        platform=material.platform,
        prefix=prefix,
        work=material.work,
        cancelled=material.cancelled,
    )
    notes = _environment_metadata(material, int(material.moment.timestamp()))
    return [*parts, Part(key="", name="notes", entries=notes)]


def package_parts(
    packages: Sequence[CachedPackage],
    wheels: Sequence[CachedWheel],
    *,
    python: PythonInfo | None,
    platform: str,
    prefix: str | None,
    work: Path,
    cancelled: Cancelled = never,
) -> list[Part]:
    """Return the parts of packages linked together, by name, and of wheels, installed in `work`.

    Args:
        packages: in link order: of two different files at one path, the later package's is used.
    """
    conflicts = find_conflicts(packages, python=python, platform=platform, prefix=prefix or "")
    replaced = replaced_paths(conflicts)
    parts: list[Part] = []
    taken: dict[str, str] = {}
    for package in sorted(packages, key=lambda each: each.contents.name):
        obey(cancelled)
        part = _package_part(package, python, prefix)
        part = _excluding(part, replaced.get(package.contents.label, set()))
        parts.append(_without_duplicates(part, taken))
    for number, wheel in enumerate(sorted(wheels, key=lambda each: each.label)):
        obey(cancelled)
        assert python is not None, "a lock with wheels has python"
        created = _wheel_part(wheel, python, prefix, work / f"wheel-{number}")
        _refuse_clashes(created, taken)
        parts.append(_without_duplicates(created, taken))
    return parts


def find_conflicts(
    packages: Sequence[CachedPackage], *, python: PythonInfo | None, platform: str, prefix: str
) -> tuple[PathConflict, ...]:
    """Return the files of packages that other packages replace.

    Raises:
        LinkError: the packages cannot be linked together; reports all faults.
    """
    checked = check_paths(
        [package.contents for package in packages],
        python=python,
        platform=platform,
        prefix=prefix,
    )
    if checked.faults:
        raise LinkError(
            "; ".join(fault.reason.rstrip(".") for fault in checked.faults[:20]) + ".",
            hint="Use other versions of these packages, or remove one of them.",
        )
    return checked.conflicts


def _without_duplicates(part: Part, taken: dict[str, str]) -> Part:
    """Return `part` without paths that an earlier part has with the same content."""
    again = {entry.path for entry in part.entries if entry.path in taken}
    taken.update((entry.path, part.name) for entry in part.entries)
    return _excluding(part, again)


def _excluding(part: Part, paths: set[str]) -> Part:
    if not paths:
        return part
    return Part(
        key=_digest([part.key, sorted(paths)]),
        name=part.name,
        entries=[entry for entry in part.entries if entry.path not in paths],
        prefixes=[record for record in part.prefixes if record.path not in paths],
    )


def _refuse_clashes(part: Part, taken: Mapping[str, str]) -> None:
    clashes = [
        f"{entry.path} of {part.name} already exists, from {taken[entry.path]}"
        for entry in part.entries
        if entry.path in taken
    ]
    if clashes:
        raise LinkError(
            "; ".join(clashes[:20]) + ".",
            hint="Install the package from conda or from PyPI, not from both.",
        )


def _by_path(entry: Entry) -> str:
    return entry.path


# --- conda packages -------------------------------------------------------------------------------


def _package_part(package: CachedPackage, python: PythonInfo | None, prefix: str | None) -> Part:
    contents = package.contents
    replaced = any(file.placeholder for file in contents.files)
    placeholders = _placeholders(package.folder) if replaced else {}
    moment = _moment(package.package.timestamp)
    times = _times_of_sources(package)
    entries: list[Entry] = []
    prefixes: list[PrefixRecord] = []
    notes: list[dict[str, Any]] = []
    for file in contents.files:
        location = prefix_path(file.path, noarch_python=contents.noarch_python, python=python)
        record = placeholders.get(file.path)
        source = f"{package.folder}/{file.path}"
        entry = _plain(file, source, location, times.get(file.path, moment))
        note = _path_record(file, location)
        if record is not None and file.kind == "file":
            note |= {"file_mode": record.mode, "prefix_placeholder": record.placeholder}
            entry, retained = _with_prefix(entry, record, prefix)
            if retained:  # the program that unpacks it must be able to write to it
                entry = entry._replace(mode=entry.mode | stat.S_IWUSR)
                prefixes.append(record._replace(path=location))
            if prefix is not None:
                assert isinstance(entry.content, bytes), "it was just replaced"
                note["sha256_in_prefix"] = hashlib.sha256(entry.content).hexdigest()
        entries.append(entry)
        if note:
            notes.append(note)
    if contents.noarch_python and python is not None:
        for text in contents.entry_points:
            entry, note = _entry_point(text, python, prefix, moment)
            entries.append(entry)
            notes.append(note)
    document = _record(package, sorted(notes, key=lambda note: str(note["_path"])))
    entries.append(Entry.file(f"conda-meta/{contents.label}.json", document, moment))
    key = {
        "recipe": RECIPE,
        "package": package.folder.parent.name,
        "record": hashlib.sha256(document).hexdigest(),
        "python": python and [python.version, python.site_packages, python.scripts],
        "prefix": prefix,
    }
    return Part(
        key=_digest(key),
        name=contents.name,
        entries=sorted(entries, key=_by_path),
        prefixes=prefixes,
    )


def _plain(file: PackageFile, source: str, place: str, moment: int) -> Entry:
    if file.kind == "folder":
        return Entry.folder(place, moment)
    if file.kind == "link":
        return Entry.link(place, file.target, moment)
    return Entry(place, source, file.size, moment, _mode(os.lstat(source)))


def _mode(status: os.stat_result) -> int:
    """Return 0644 or 0755, without the owner's write permission if the package's file has none."""
    readable = 0o555 if status.st_mode & stat.S_IXUSR else 0o444
    return readable | (status.st_mode & stat.S_IWUSR)


def _with_prefix(entry: Entry, record: PrefixRecord, prefix: str | None) -> tuple[Entry, bool]:
    """Return the file with the prefix in it, and True if it must still be replaced later."""
    if prefix is None and not (record.mode == "text" and entry.path.startswith("bin/")):
        return entry, True
    content = Path(str(entry.content)).read_bytes()
    if prefix is None:  # like conda-pack: a script finds its interpreter in PATH
        content, done = rewrite_shebang(content, entry.path, record.placeholder)
        return entry._replace(content=content, size=len(content)), not done
    old, new = record.placeholder.encode(), prefix.encode()
    content = (
        _in_binary(content, old, new) if record.mode == "binary" else content.replace(old, new)
    )
    return entry._replace(content=content, size=len(content)), False


def _in_binary(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace `old` in the strings of a binary file; each string keeps its length."""
    parts: list[bytes] = []
    position = 0
    while (start := content.find(old, position)) >= 0:
        end = content.find(b"\0", start)
        end = len(content) if end < 0 else end
        replaced = content[start:end].replace(old, new)
        parts += (content[position:start], replaced, bytes(end - start - len(replaced)))
        position = end
    return b"".join((*parts, content[position:]))


def _placeholders(folder: Path) -> dict[str, PrefixRecord]:
    """Return path in the package -> its placeholder of the prefix."""
    document = PathsJson.from_package_directory_with_deprecated_fallback(folder)
    return {
        (path := os.fspath(entry.relative_path)): PrefixRecord(
            path, found.placeholder, "binary" if found.file_mode.binary else "text"
        )
        for entry in document.paths
        if (found := entry.prefix_placeholder) is not None
    }


def _times_of_sources(package: CachedPackage) -> dict[str, int]:
    """Return path of a Python source -> its time in the package's compiled file."""
    times: dict[str, int] = {}
    for file in package.contents.files:
        if file.kind != "file" or not file.path.endswith(".pyc"):
            continue
        with open(f"{package.folder}/{file.path}", "rb") as compiled:  # noqa: PTH123
            head = compiled.read(_COMPILED.size)
        if len(head) == _COMPILED.size:
            flags, moment = _COMPILED.unpack(head)
            if flags == 0:
                times[_source_of(file.path)] = moment
    return times


def _source_of(compiled: str) -> str:
    folder, _, name = compiled.rpartition("/")
    if posixpath.basename(folder) == "__pycache__":
        return posixpath.join(posixpath.dirname(folder), name.split(".")[0] + ".py")
    return compiled.removesuffix("c")


def _path_record(file: PackageFile, place: str) -> dict[str, Any]:
    if file.kind == "folder":
        return {}
    note: dict[str, Any] = {"_path": place, "path_type": "softlink"}
    if file.kind == "file":
        note |= {"path_type": "hardlink", "sha256": file.sha256, "size_in_bytes": file.size}
    return note


def _entry_point(
    text: str, python: PythonInfo, prefix: str | None, moment: int
) -> tuple[Entry, dict[str, Any]]:
    """Return the script for `command = module:function`, identical to rattler's."""
    command, _, target = (part.strip() for part in text.partition("="))
    module, _, function = (part.strip() for part in target.partition(":"))
    interpreter = f"{prefix}/bin/python{python.version}" if prefix else "/usr/bin/env python"
    script = (
        f"#!{interpreter}\n"
        "# -*- coding: utf-8 -*-\n"
        "import re\n"
        "import sys\n\n"
        f"from {module} import {function.partition('.')[0]}\n\n"
        "if __name__ == '__main__':\n"
        "\tsys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])\n"
        f"\tsys.exit({function}())\n"
    ).encode()
    path = f"{python.scripts}/{command}"
    digest = hashlib.sha256(script).hexdigest()
    note = {
        "_path": path,
        "path_type": "unix_python_entry_point",
        "sha256": digest,
        "sha256_in_prefix": digest,
        "size_in_bytes": len(script),
    }
    return Entry.file(path, script, moment, executable=True), note


def _record(package: CachedPackage, paths: Sequence[Mapping[str, Any]]) -> bytes:
    """Return conda's record of an installed package (CEP 32), without data of this machine."""
    conda = package.package
    record = {
        **conda.record,
        "fn": conda.file_name,
        "url": conda.url,
        "channel": conda.channel,
        "files": [note["_path"] for note in paths],
        "paths_data": {"paths_version": 1, "paths": paths},
        "link": {"source": "", "type": 1},
        "extracted_package_dir": "",
        "package_tarball_full_path": "",
        "requested_spec": "",
    }
    # Without indentation, which the C encoder does not support.
    return (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _environment_metadata(material: Material, moment: int) -> list[Entry]:
    """Return the history and the variables of the environment."""
    lines = [
        f"==> {material.moment:%Y-%m-%d %H:%M:%S} <==",
        f"# cmd: condastore lock {material.lock.digest}",
        *sorted(
            f"+{package.channel}/{package.subdir}::{package.name}-{package.version}-{package.build}"
            for package in material.part.conda
        ),
        "# update specs: []",
    ]
    state = {"version": 1, "env_vars": dict(sorted(material.variables.items()))}
    return [
        Entry.file("conda-meta/history", ("\n".join(lines) + "\n").encode(), moment),
        Entry.file("conda-meta/state", (json.dumps(state, indent=2) + "\n").encode(), moment),
    ]


# --- wheels ---------------------------------------------------------------------------------------


def _wheel_part(wheel: CachedWheel, python: PythonInfo, prefix: str | None, work: Path) -> Part:
    """Install a wheel alone in an empty folder and return its files."""
    work.mkdir()
    final = prefix or UNKNOWN_PREFIX
    install_wheels([wheel], target=work, final_prefix=Path(final), python=python)
    moment = int(EARLIEST.timestamp())
    root = len(f"{work}/")
    entries: list[Entry] = []
    prefixes: list[PrefixRecord] = []
    for folder, _, names in os.walk(work):
        for name in names:
            source = f"{folder}/{name}"
            status = os.lstat(source)
            entry = Entry(source[root:], source, status.st_size, moment, _mode(status))
            # A file that is not a hard link to the cache was written for this prefix.
            if prefix is None and status.st_nlink == 1:
                entry, retained = _script_with_prefix(entry)
                if retained:
                    entry = entry._replace(mode=entry.mode | stat.S_IWUSR)
                    prefixes.append(PrefixRecord(entry.path, UNKNOWN_PREFIX, "text"))
            entries.append(entry)
    key = {
        "recipe": RECIPE,
        "wheel": wheel.folder.parent.name,
        "python": [python.version, python.site_packages, python.scripts],
        "prefix": prefix,
    }
    return Part(
        key=_digest(key),
        name=wheel.label,
        entries=sorted(entries, key=_by_path),
        prefixes=prefixes,
    )


def _script_with_prefix(entry: Entry) -> tuple[Entry, bool]:
    content = Path(str(entry.content)).read_bytes()
    if UNKNOWN_PREFIX.encode() not in content:
        return entry, False
    content, done = rewrite_shebang(content, entry.path, UNKNOWN_PREFIX)
    return entry._replace(content=content, size=len(content)), not done


def _moment(timestamp: float | None) -> int:
    if timestamp is None:
        return int(EARLIEST.timestamp())
    return min(max(int(in_seconds(timestamp)), 0), _LATEST)


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
