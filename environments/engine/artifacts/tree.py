"""Which files does an artifact hold, and what does each look like, wherever it is made?

An archive and a file system are made from the same list: path, content, mode and time of each
file, straight from the caches. No prefix is linked, and nothing of this machine is in it: not its
paths, not the times of its files, not their owners.

A file's time is that of its package. Only Python sources whose compiled form comes with the package
have the time that the compiled form names: with another one Python would compile them at every
start. Python that no package compiled stays so: who compiles it would need a machine of the
artifact's platform, and other machines would give other bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from conda_pack.core import PREFIX_PLACEHOLDER, rewrite_shebang
from rattler.package import PathsJson

from environments.domain.errors import LinkError
from environments.domain.linking import PackageFile, PythonInfo, find_faults, prefix_path
from environments.domain.moments import EARLIEST
from environments.domain.policy.subjects import in_seconds
from environments.domain.progress import obey
from environments.engine.artifacts.staging import Material
from environments.engine.package_cache import CachedPackage
from environments.engine.pypi_install import CachedWheel, install_wheels

#: Part of what compressed parts are kept by: grows when the same package gives other entries.
RECIPE = 1
#: What stands for the prefix where no one knows it yet.
UNKNOWN_PREFIX: str = PREFIX_PLACEHOLDER
#: Flags, then the source's time, of a compiled Python file (PEP 552).
_COMPILED = struct.Struct("<4xII")
_LATEST = 2**32 - 1  # the last second that a squashfs can name
BLOCK = 512  # bytes, of a tar archive
END = bytes(2 * BLOCK)


class Entry(NamedTuple):
    """One path. (A tuple: an environment has tens of thousands of them.)

    `content`: the bytes, or where they are; None for a folder, and for a link, which has a target.
    """

    path: str
    content: bytes | str | None
    size: int
    moment: int
    executable: bool = False
    target: str = ""


class PrefixRecord(NamedTuple):
    """What is to be replaced in a file once it is known where the environment lies."""

    path: str
    placeholder: str
    mode: str  # text or binary


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The entries of one package, sorted; the same in every artifact that gives it this `key`."""

    key: str  # sha256, hex; "" where it is of this artifact only
    name: str
    entries: Sequence[Entry]
    prefixes: Sequence[PrefixRecord] = ()
    tail: bytes = b""  # after the entries

    def stream(self) -> Iterator[bytes]:
        """Its members of a tar archive."""
        yield from tar_stream(self.entries)
        if self.tail:
            yield self.tail


def parts_of(material: Material, *, prefix: str | None) -> list[Part]:
    """The parts of all packages by name, and last what conda notes of the environment.

    Args:
        prefix: stands in the files; None where it is to be replaced by whoever unpacks them.
    Raises:
        LinkError: packages that clash or cannot be linked; all of them are named.
    """
    _refuse_faults(material, prefix or "")
    python, moment = material.python, int(material.moment.timestamp())
    parts: list[Part] = []
    taken: dict[str, str] = {}
    for package in sorted(material.packages, key=lambda each: each.contents.name):
        obey(material.cancelled)
        parts.append(_without(_package_part(package, python, prefix), taken))
    for number, wheel in enumerate(sorted(material.wheels, key=lambda each: each.label)):
        obey(material.cancelled)
        assert python is not None, "wheels are locked beside a python only"
        made = _wheel_part(wheel, python, prefix, material.work / f"wheel-{number}")
        _refuse_clashes(made, taken)
        parts.append(_without(made, taken))
    parts.append(Part(key="", name="notes", entries=_notes(material, moment)))
    return parts


def _refuse_faults(material: Material, prefix: str) -> None:
    faults = find_faults(
        [package.contents for package in material.packages],
        python=material.python,
        platform=material.platform,
        prefix=prefix,
    )
    if faults:
        raise LinkError(
            "; ".join(fault.reason.rstrip(".") for fault in faults[:20]) + ".",
            hint="Ask for other versions of these packages, or leave one of them out.",
        )


def _without(part: Part, taken: dict[str, str]) -> Part:
    """`part` without the paths that an earlier one has with the same content."""
    again = {entry.path for entry in part.entries if entry.path in taken}
    taken.update((entry.path, part.name) for entry in part.entries)
    if not again:
        return part
    return Part(
        key=_digest([part.key, sorted(again)]),
        name=part.name,
        entries=[entry for entry in part.entries if entry.path not in again],
        prefixes=[record for record in part.prefixes if record.path not in again],
    )


def _refuse_clashes(part: Part, taken: Mapping[str, str]) -> None:
    clashes = [
        f"{entry.path} of {part.name} is there already, from {taken[entry.path]}"
        for entry in part.entries
        if entry.path in taken
    ]
    if clashes:
        raise LinkError(
            "; ".join(clashes[:20]) + ".",
            hint="Take the package from one of the two, not from both.",
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
        place = prefix_path(file.path, noarch_python=contents.noarch_python, python=python)
        record = placeholders.get(file.path)
        source = f"{package.folder}/{file.path}"
        entry = _plain(file, source, place, times.get(file.path, moment))
        note = _note_of(file, place)
        if record is not None and file.kind == "file":
            note |= {"file_mode": record.mode, "prefix_placeholder": record.placeholder}
            entry, kept = _filled_in(entry, record, prefix)
            if kept:
                prefixes.append(record._replace(path=place))
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
    entries.append(_written(f"conda-meta/{contents.label}.json", document, moment))
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
        return Entry(place, None, 0, moment)
    if file.kind == "link":
        return Entry(place, None, 0, moment, target=file.target)
    executable = bool(os.lstat(source).st_mode & stat.S_IXUSR)
    return Entry(place, source, file.size, moment, executable)


def _filled_in(entry: Entry, record: PrefixRecord, prefix: str | None) -> tuple[Entry, bool]:
    """The file with its prefix in it; and whether it is still to be replaced by who unpacks it."""
    if prefix is None and not (record.mode == "text" and entry.path.startswith("bin/")):
        return entry, True
    content = Path(str(entry.content)).read_bytes()
    if prefix is None:  # as conda-pack: a script finds its interpreter on the path
        content, done = rewrite_shebang(content, entry.path, record.placeholder)
        return entry._replace(content=content, size=len(content)), not done
    old, new = record.placeholder.encode(), prefix.encode()
    content = (
        _in_binary(content, old, new) if record.mode == "binary" else content.replace(old, new)
    )
    return entry._replace(content=content, size=len(content)), False


def _in_binary(content: bytes, old: bytes, new: bytes) -> bytes:
    """Replace `old` in the strings of a compiled file, each of which keeps its length."""
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
    """Path in the package -> what stands for the prefix in it."""
    document = PathsJson.from_package_directory_with_deprecated_fallback(folder)
    return {
        (path := os.fspath(entry.relative_path)): PrefixRecord(
            path, found.placeholder, "binary" if found.file_mode.binary else "text"
        )
        for entry in document.paths
        if (found := entry.prefix_placeholder) is not None
    }


def _times_of_sources(package: CachedPackage) -> dict[str, int]:
    """Path of a Python source -> its time, as the compiled file of the package names it."""
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


def _note_of(file: PackageFile, place: str) -> dict[str, Any]:
    if file.kind == "folder":
        return {}
    note: dict[str, Any] = {"_path": place, "path_type": "softlink"}
    if file.kind == "file":
        note |= {"path_type": "hardlink", "sha256": file.sha256, "size_in_bytes": file.size}
    return note


def _entry_point(
    text: str, python: PythonInfo, prefix: str | None, moment: int
) -> tuple[Entry, dict[str, Any]]:
    """The script of `command = module:function`, as conda writes it."""
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
        "    sys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])\n"
        f"    sys.exit({function}())\n"
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
    return _written(path, script, moment, executable=True), note


def _record(package: CachedPackage, paths: Sequence[Mapping[str, Any]]) -> bytes:
    """conda's own note of an installed package (CEP 32), without anything of this machine."""
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
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _notes(material: Material, moment: int) -> list[Entry]:
    """The history and the variables of the environment."""
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
        _written("conda-meta/history", ("\n".join(lines) + "\n").encode(), moment),
        _written("conda-meta/state", (json.dumps(state, indent=2) + "\n").encode(), moment),
    ]


# --- wheels ---------------------------------------------------------------------------------------


def _wheel_part(wheel: CachedWheel, python: PythonInfo, prefix: str | None, work: Path) -> Part:
    """What a wheel becomes when it is installed alone, in an empty folder."""
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
            entry = Entry(
                source[root:],
                source,
                status.st_size,
                moment,
                bool(status.st_mode & stat.S_IXUSR),
            )
            # What is no link to the cache was written for this prefix.
            if prefix is None and status.st_nlink == 1:
                entry, kept = _filled_in_script(entry)
                if kept:
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


def _filled_in_script(entry: Entry) -> tuple[Entry, bool]:
    content = Path(str(entry.content)).read_bytes()
    if UNKNOWN_PREFIX.encode() not in content:
        return entry, False
    content, done = rewrite_shebang(content, entry.path, UNKNOWN_PREFIX)
    return entry._replace(content=content, size=len(content)), not done


# --- as a tar archive -----------------------------------------------------------------------------


def with_folders(entries: Iterable[Entry], moment: int) -> list[Entry]:
    """`entries` and every folder they are in, sorted: folders come before what is in them."""
    everything = {entry.path: entry for entry in entries}
    for path in list(everything):
        folder = posixpath.dirname(path)
        while folder and folder not in everything:
            everything[folder] = Entry(folder, None, 0, moment)
            folder = posixpath.dirname(folder)
    return [everything[path] for path in sorted(everything)]


def tar_stream(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The members of a tar archive, owned by nobody in particular; its end is `END`."""
    for entry in entries:
        yield _header(entry)
        if isinstance(entry.content, bytes):
            yield entry.content + bytes(-entry.size % BLOCK)
        elif entry.content is not None:
            yield from _content(entry, entry.content)


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.mtime = entry.moment
    info.mode = 0o755 if entry.executable else 0o644
    if entry.target:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
    elif entry.content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size = entry.size
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")


def _content(entry: Entry, source: str) -> Iterator[bytes]:
    left = entry.size
    with open(source, "rb", buffering=0) as file:  # noqa: PTH123  # no Path for each of 10,000
        while left and (piece := file.read(min(left, 1 << 20))):
            left -= len(piece)
            yield piece
    if left:
        raise LinkError(f"{entry.path} is shorter in the cache than it was.")
    if padding := -entry.size % BLOCK:
        yield bytes(padding)


def chunks(stream: Iterable[bytes], size: int) -> Iterator[bytes]:
    """`stream` in pieces of `size` bytes; the last one may be shorter."""
    waiting: list[bytes] = []
    length = 0
    for piece in stream:
        waiting.append(piece)
        length += len(piece)
        if length >= size:
            joined = b"".join(waiting)
            whole = length - length % size
            for start in range(0, whole, size):
                yield joined[start : start + size]
            waiting, length = [joined[whole:]], length - whole
    if length:
        yield b"".join(waiting)


def _written(path: str, content: bytes, moment: int, *, executable: bool = False) -> Entry:
    return Entry(path, content, len(content), moment, executable)


def _moment(timestamp: float | None) -> int:
    if timestamp is None:
        return int(EARLIEST.timestamp())
    return min(max(int(in_seconds(timestamp)), 0), _LATEST)


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
