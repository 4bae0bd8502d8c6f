"""Validation of an uploaded conda package, and reading of its own metadata.

The file is read once from start to end, and nothing of it is written to disk: a file that unpacks
to more than it may, or a header that claims gigabytes, is refused when the limit is reached.
"""

from __future__ import annotations

import bz2
import contextlib
import posixpath
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import rattler
import zstandard

from condastore.errors import FaultError, PackageInvalidError, StoreError
from environments.domain.json_text import parse_json
from environments.domain.linking import is_reserved, is_site_packages
from environments.domain.names import SUBDIRS, printable
from environments.domain.records import CondaPackage
from environments.domain.unpacking import Limits, LinkEnd, link_end, path_fault
from environments.engine.channels.records import to_rattler
from environments.engine.packages.tar_files import (
    MAX_HEADER_BYTES,
    Budget,
    ForwardReader,
    StopReadingError,
    read_entries,
)
from environments.engine.packages.zip_files import BoundedFile, DirectoryTooLongError

ENDINGS = (".conda", ".tar.bz2")
INDEX, PATHS, FILES = "info/index.json", "info/paths.json", "info/files"
LINK = "info/link.json"
#: Documents that are read from a package, with their maximum sizes in bytes.
_DOCUMENTS = {INDEX: 1 << 20, LINK: 1 << 20, PATHS: 64 << 20, FILES: 16 << 20}
#: Keys of the index that a channel lists; other keys stay in the package only.
_TEXTS = (
    *("arch", "build", "features", "license", "license_family", "name", "platform"),
    *("python_site_packages_path", "subdir", "version"),
)
_LISTS = ("constrains", "depends")
_OTHERS = ("build_number", "noarch", "timestamp", "track_features")
_MAX_FAULTS = 20
_WINDOW = 1 << 28  # zstd window in bytes; level 22 needs half of that

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+!-]*(?:\.conda|\.tar\.bz2)")
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*")
_BUILD = re.compile(r"[A-Za-z0-9_.+]+")
# Errors that Python's readers raise for bytes that are not an archive.
_UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zstandard.ZstdError,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    struct.error,
    ValueError,
)


@dataclass(slots=True, kw_only=True)
class _Found:
    """Contents of a package, and its faults."""

    limits: Limits
    files: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    documents: dict[str, bytes] = field(default_factory=dict)
    faults: list[StoreError] = field(default_factory=list)

    def fault(self, message: str, where: str = "") -> None:
        shown = printable(where).strip("'\"") if where else ""
        self.faults.append(FaultError(message, where=shown))
        if len(self.faults) >= _MAX_FAULTS:
            raise PackageInvalidError(self.faults)


def check_file_name(file_name: str) -> None:
    """Check a conda package's file name.

    Raises:
        PackageInvalidError: it is not a valid name.
    """
    if len(file_name) > 255 or _FILE_NAME.fullmatch(file_name) is None:
        raise PackageInvalidError(
            [FaultError(f"{printable(file_name)} is not the name of a conda package.")],
            hint="A file name is NAME-VERSION-BUILD.conda or NAME-VERSION-BUILD.tar.bz2.",
        )


def read_package(path: Path, file_name: str, *, limits: Limits) -> dict[str, Any]:
    """Return the package's own record, as a channel would list it, without digests and size.

    Raises:
        PackageInvalidError: reports all faults of the package.
    """
    check_file_name(file_name)
    found = _Found(limits=limits)
    read = _conda_parts if file_name.endswith(".conda") else _tar_parts
    budget = Budget(path.stat().st_size, limits)
    try:
        for part in read(path, file_name):
            for archive, member in read_entries(ForwardReader(part, budget), budget):
                _look(archive, member, found)
    except (StopReadingError, DirectoryTooLongError) as stop:
        found.fault(str(stop))
    except _UNREADABLE as error:
        reason = printable(str(error) or type(error).__name__, limit=160).strip("'\"")
        found.fault(f"{file_name} is not a readable package: {reason}.")
    if not found.faults:
        return _judged(found, file_name)
    raise PackageInvalidError(found.faults)


# --- the archive --------------------------------------------------------------------------------


def _tar_parts(path: Path, file_name: str) -> Iterator[IO[bytes]]:
    with bz2.open(path, "rb") as file:
        yield file


def _conda_parts(path: Path, file_name: str) -> Iterator[IO[bytes]]:
    stem = file_name.removesuffix(".conda")
    requested = (f"info-{stem}.tar.zst", f"pkg-{stem}.tar.zst")
    with path.open("rb") as file, zipfile.ZipFile(BoundedFile(file, MAX_HEADER_BYTES)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) != len(archive.infolist()) or set(members) - {"metadata.json", *requested}:
            raise StopReadingError(
                "A .conda file must hold metadata.json, one info- part and one pkg- part only."
            )
        for name in requested:
            if name not in members:
                raise StopReadingError(f"The package has no {name}.")
            if members[name].compress_type != zipfile.ZIP_STORED:
                raise StopReadingError(f"{name} must not be compressed again by the .conda file.")
        for name in requested:
            with archive.open(members[name]) as member:
                reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
                    member, read_across_frames=True, closefd=False
                )
                yield reader


def _look(archive: tarfile.TarFile, entry: tarfile.TarInfo, found: _Found) -> None:
    name = posixpath.normpath(entry.name) if entry.name else ""
    if problem := path_fault(entry.name, longest=found.limits.path_bytes):
        found.fault(f"The path {problem}.", where=entry.name)
        return
    if entry.isdir():
        if name in found.files:
            found.fault("The path occurs twice.", where=name)
        found.folders.add(name)
        return
    if name in found.files or name in found.folders:
        found.fault("The path occurs twice.", where=name)
        return
    found.files.add(name)
    if entry.issym():
        found.links[name] = entry.linkname
    elif entry.islnk():
        if posixpath.normpath(entry.linkname) not in found.files - found.links.keys():
            found.fault("The hard link must refer to an earlier file of the package.", where=name)
    elif not entry.isreg() or entry.issparse():
        found.fault("A package must hold only files, links and folders.", where=name)
    elif name in _DOCUMENTS:
        if entry.size > _DOCUMENTS[name]:
            found.fault(f"The file is larger than {_DOCUMENTS[name]:,} bytes.", where=name)
            return
        content = archive.extractfile(entry)
        found.documents[name] = content.read() if content else b""


# --- metadata -----------------------------------------------------------------------------------


def _judged(found: _Found, file_name: str) -> dict[str, Any]:
    for path in sorted(found.files):
        if is_reserved(path):
            found.fault("This path is reserved for conda and must not be in a package.", where=path)
        for parent in _parents(path):
            if parent in found.files:
                found.fault(f"The path is below {printable(parent)}, which is a file.", where=path)
    for link in found.links:
        if link_end(link, found.links) is not LinkEnd.INSIDE:
            found.fault("The link leads out of the package.", where=link)
    _judge_paths(found)
    index = _document(found, INDEX)
    record = _record(index, found) if index is not None else {}
    if LINK in found.documents and (linking := _document(found, LINK)) is not None:
        noarch = linking.get("noarch")
        kind = noarch.get("type") if isinstance(noarch, dict) else noarch
        if kind == "python" and record.get("noarch") != "python":
            found.fault("noarch is python here, but not in info/index.json.", where=LINK)
    if record and not found.faults:
        ending = next(ending for ending in ENDINGS if file_name.endswith(ending))
        named = f"{record['name']}-{record['version']}-{record['build']}{ending}"
        if named != file_name:
            found.fault(f"The metadata is for {named}, but the file is {file_name}.", where=INDEX)
    if not found.faults:
        package = CondaPackage.from_record(
            record, url=f"file:///{file_name}", channel="file:///", file_name=file_name
        )
        try:
            to_rattler(package)
        except StoreError as error:
            found.fault(error.message, where=INDEX)
    if found.faults:
        raise PackageInvalidError(found.faults)
    return record


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


def _document(found: _Found, name: str) -> Mapping[str, Any] | None:
    if name not in found.documents:
        found.fault("The package has no such file.", where=name)
        return None
    with contextlib.suppress(ValueError):
        content = parse_json(found.documents.pop(name))
        if isinstance(content, dict):
            return content
    found.fault("The file must be a JSON object.", where=name)
    return None


def _judge_paths(found: _Found) -> None:
    """Check the list of paths, which installers follow."""
    if PATHS not in found.documents and FILES in found.documents:
        listed = found.documents[FILES].decode(errors="replace").splitlines()
        entries: Any = [{"_path": line} for line in listed if line]
    elif (document := _document(found, PATHS)) is None:
        return
    else:
        entries = document.get("paths")
    if not isinstance(entries, list):
        found.fault("The list `paths` is missing.", where=PATHS)
        return
    for entry in entries:
        path = entry.get("_path") if isinstance(entry, dict) else None
        if not isinstance(path, str) or path_fault(path, longest=found.limits.path_bytes):
            found.fault("A listed path is invalid, or leads out of the package.", where=PATHS)
        elif path not in found.files and entry.get("path_type") != "directory":
            found.fault(f"{printable(path)} is listed, but is not in the package.", where=PATHS)


def _record(index: Mapping[str, Any], found: _Found) -> dict[str, Any]:
    def fault(message: str) -> None:
        found.fault(message, where=INDEX)

    record: dict[str, Any] = {
        key: index[key] for key in (*_TEXTS, *_LISTS, *_OTHERS) if index.get(key) is not None
    }
    for key in ("name", "version", "build", "subdir"):
        if key not in record:
            fault(f"{key} is missing.")
    for key in _TEXTS:
        value = record.get(key, "")
        if not isinstance(value, str) or len(value) > 1000 or "\0" in value:
            fault(f"{key} must be a text of at most 1000 characters.")
            record.pop(key)
    location = record.get("python_site_packages_path")
    if location and not is_site_packages(location):
        fault("python_site_packages_path must be a relative path within an environment.")
    number = record.setdefault("build_number", 0)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
        fault("build_number must be a non-negative integer.")
    moment = record.get("timestamp")
    if moment is not None and (not isinstance(moment, int) or not 0 <= moment < 2**53):
        fault("timestamp must be an integer number of milliseconds.")
    if "name" in record and (not _NAME.fullmatch(record["name"]) or len(record["name"]) > 200):
        fault(f"name: {printable(record['name'])} is not a valid package name.")
    if "version" in record and not _is_version(record["version"]):
        fault(f"version: {printable(record['version'])} is not a valid version.")
    if "build" in record and (not _BUILD.fullmatch(record["build"]) or len(record["build"]) > 200):
        fault(f"build: {printable(record['build'])} is not a valid build string.")
    _judge_subdir(record, fault)
    for key in _LISTS:
        for spec in _words(record, key, fault):
            try:
                rattler.MatchSpec(spec, strict=False)
            except Exception:  # rattler's errors have no common base
                fault(f"{key}: {printable(spec)} is not a valid requirement.")
    return record


def _judge_subdir(record: Mapping[str, Any], fault: Any) -> None:
    subdir, noarch = record.get("subdir"), record.get("noarch")
    if subdir is not None and subdir not in SUBDIRS:
        fault(f"subdir: {printable(subdir)} is not a supported platform.")
    if noarch not in (None, False, True, "python", "generic"):
        fault("noarch must be python or generic, or be left out.")
    elif noarch and subdir in SUBDIRS and subdir != "noarch":
        fault(f"noarch packages must use subdir noarch, not {subdir}.")


def _is_version(text: str) -> bool:
    try:
        rattler.Version(text)
    except Exception:  # rattler's errors have no common base
        return False
    return "-" not in text and len(text) <= 100


def _words(record: Mapping[str, Any], key: str, fault: Any) -> list[str]:
    value = record.get(key, [])
    if isinstance(value, list) and len(value) <= 10_000 and all(isinstance(v, str) for v in value):
        return [*value]
    fault(f"{key} must be a list of at most 10,000 requirements.")
    return []
