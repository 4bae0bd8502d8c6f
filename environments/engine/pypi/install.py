"""Installation of the wheels of a lock into a prefix, beside its conda packages.

Each wheel is checked against its own RECORD and unpacked once, into `<folder>/<sha256>/`; prefixes
get hard links, and their own scripts and RECORD.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from installer import install
from installer.destinations import SchemeDictionaryDestination
from installer.exceptions import InstallerError
from installer.records import Hash, RecordEntry
from installer.sources import WheelFile, WheelSource
from installer.utils import Scheme, canonicalize_name

from condastore.errors import DiskSpaceError, LinkError
from environments.domain.linking import PythonInfo
from environments.domain.names import printable
from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.domain.records import PypiPackage
from environments.domain.unpacking import DEFAULT_LIMITS, Limits
from environments.engine.channels.credentials import CredentialSource, no_credentials
from environments.engine.packages import downloads
from environments.engine.packages.download_types import PATIENCE, Archive, Download, Patience
from environments.engine.packages.zip_files import member_faults, open_zip
from environments.engine.prefix.python_sources import PythonSources

if TYPE_CHECKING:
    from installer.scripts import ScriptSection

CONTENTS = "contents.json"
_CONTENTS_VERSION = 2
#: Version written by releases that did not compare a wheel with its METADATA.
_UNCOMPARED_VERSION = 1
INSTALLER = b"condastore\n"
#: Maximum bytes of a document in .dist-info, and additional bytes per line of RECORD.
_LARGEST_DOCUMENT, _LONGEST_LINE = 4 << 20, 512
#: Bytes that are unpacked between two checks of the free disk space.
_CHECK_EVERY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelEntry:
    """A file of a wheel."""

    path: str  # in the wheel
    sha256: str  # encoded as in RECORD
    size: int
    executable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedWheel:
    """A wheel that is unpacked and complete."""

    package: PypiPackage
    folder: Path
    distribution: str
    version: str
    entries: tuple[WheelEntry, ...]
    license: str = ""  # from its METADATA

    @property
    def label(self) -> str:
        return f"{self.package.name}-{self.package.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelReport:
    """Result of an installation; `bytes_unique` is disk space that the cache does not share."""

    paths: int
    bytes_apparent: int
    bytes_unique: int
    sources: tuple[PythonSources, ...]  # files to compile


class WheelCache:
    """Unpacked wheels below one folder; any number of processes may use it at once."""

    def __init__(
        self,
        folder: Path,
        *,
        archive: Archive | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`limits`: limits of what a wheel may unpack to."""
        self.folder = folder
        self.archive = archive
        self.limits = limits
        self.downloads = folder / "downloads"

    def ensure(
        self,
        wheels: Sequence[PypiPackage],
        *,
        credentials: CredentialSource = no_credentials,
        cancelled: Cancelled = never,
        progress: Report = ignore,
        parallel: int = 8,
        patience: Patience = PATIENCE,
    ) -> list[CachedWheel]:
        """Return all of `wheels` in order; fetch, check and unpack those that are missing.

        Raises:
            DownloadError, DiskSpaceError: a wheel could not be fetched.
            LinkError: a wheel is damaged, holds what no wheel may, or is a different project or
                version than in the lock.
            LeaseLostError: `cancelled` returned True.
        """
        found: dict[str, CachedWheel] = {}
        by_key = {Download.from_package(wheel).key: wheel for wheel in wheels}

        def present(download: Download) -> bool:
            if download.key not in found and (wheel := self._find(by_key[download.key])):
                found[download.key] = wheel
            return download.key in found

        async def unpack(download: Download, archive: Path) -> None:
            wheel = by_key[download.key]
            await asyncio.to_thread(self._unpack, wheel, archive, patience.reserve)
            if not present(download):
                raise LinkError(
                    f"{wheel.file_name} was changed while it was unpacked.",
                    hint="Build again; if it fails again, ask an administrator to check the disk.",
                )

        downloads.download_all(
            [Download.from_package(wheel) for wheel in wheels],
            folder=self.downloads,
            present=present,
            use=unpack,
            credentials=credentials,
            cancelled=cancelled,
            progress=progress,
            parallel=parallel,
            patience=patience,
            archive=self.archive,
        )
        return [found[Download.from_package(wheel).key] for wheel in wheels]

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove old temporary files of killed workers."""
        downloads.remove_leftovers(self.downloads, older_than=older_than)
        limit = time.time() - older_than.total_seconds()
        for path in self.folder.glob(".unpacking-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    shutil.rmtree(path, ignore_errors=True)

    def entries(self) -> Iterator[tuple[str, datetime]]:
        """Yield (digest, last use) of every entry."""
        for path in self.folder.glob(f"*/{CONTENTS}"):
            with contextlib.suppress(FileNotFoundError):
                yield path.parent.name, datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def _find(self, wheel: PypiPackage) -> CachedWheel | None:
        folder = self.folder / Download.from_package(wheel).key
        try:
            document = json.loads((folder / CONTENTS).read_bytes())
            if document["format"] == _UNCOMPARED_VERSION:
                document = _compared_again(folder, document)
            cached = CachedWheel(
                package=wheel,
                folder=folder / "wheel",
                distribution=document["distribution"],
                version=document["version"],
                license=document["license"],
                entries=tuple(
                    WheelEntry(path=path, sha256=sha256, size=size, executable=executable)
                    for path, sha256, size, executable in document["entries"]
                ),
            )
            whole = document["format"] == _CONTENTS_VERSION and all(
                (cached.folder / entry.path).lstat().st_size == entry.size
                for entry in cached.entries
            )
            os.utime(folder / CONTENTS)
        except FileNotFoundError:
            whole = not folder.exists()
            if whole:
                return None
        except (ValueError, TypeError, KeyError, StopIteration):
            whole = False
        if not whole:
            self._discard(folder)
            return None
        _refuse_other(wheel, document["metadata"])
        return cached

    def _unpack(self, wheel: PypiPackage, archive: Path, reserve: int) -> None:
        work = self.folder / f".unpacking-{secrets.token_hex(8)}"
        try:
            (work / "wheel").mkdir(parents=True)
            document = _unpack(wheel, archive, work / "wheel", limits=self.limits, reserve=reserve)
            (work / CONTENTS).write_text(json.dumps(document, separators=(",", ":")))
            try:
                work.rename(self.folder / Download.from_package(wheel).key)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        doomed = self.folder / f".unpacking-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def install_wheels(
    wheels: Sequence[CachedWheel],
    *,
    target: Path,
    final_prefix: Path,
    python: PythonInfo,
    progress: Report = ignore,
    cancelled: Cancelled = never,
) -> WheelReport:
    """Install `wheels` into the prefix in `target`, with scripts for `final_prefix`.

    Raises:
        LinkError: a wheel has a path that a conda package or another wheel has with different
            contents; reports all such paths.
    """
    clashes: list[str] = []
    owners: dict[str, str] = {}
    sources: list[PythonSources] = []
    paths = apparent = unique = 0
    for done, wheel in enumerate(wheels):
        obey(cancelled)
        destination = _Destination(
            wheel, target=target, final_prefix=final_prefix, python=python, owners=owners
        )
        # Replaces an INSTALLER file in the wheel.
        metadata = {"INSTALLER": INSTALLER}
        try:
            install(_Unpacked(wheel), destination, metadata)
        except (InstallerError, ValueError, KeyError) as error:
            raise LinkError(
                f"{wheel.label} cannot be installed: {error}.",
                hint="Use another version, or report it to the project.",
            ) from error
        clashes += destination.clashes
        paths += destination.paths
        apparent += destination.bytes_apparent
        unique += destination.bytes_written
        if destination.python_files:
            sources.append(
                PythonSources(
                    key=wheel.folder.parent.name,
                    name=wheel.package.name,
                    folder=wheel.folder,
                    files=tuple(destination.python_files),
                )
            )
        progress(
            Progress(stage="linking", done=done + 1, total=len(wheels), current=wheel.package.name)
        )
    if clashes:
        raise LinkError(
            "; ".join(clashes[:20]) + ".",
            hint="Install the package from conda or from PyPI, not from both.",
            details={"faults": clashes},
        )
    return WheelReport(
        paths=paths, bytes_apparent=apparent, bytes_unique=unique, sources=tuple(sources)
    )


def _unpack(
    wheel: PypiPackage, archive: Path, folder: Path, *, limits: Limits, reserve: int
) -> Mapping[str, object]:
    """Unpack a verified wheel into `folder`; check each file against the wheel's RECORD."""
    name = wheel.file_name
    # installer reads the name and the version from the file's name.
    alone = archive.with_name(f".named-{secrets.token_hex(8)}")
    named = alone / name.rpartition("/")[2]
    alone.mkdir()
    os.link(archive, named)
    entries: list[tuple[str, str, int, bool]] = []
    try:
        with open_zip(named) as members:
            _refuse_members(name, members, packed=named.stat().st_size, limits=limits)
            source = WheelFile(members)
            metadata = _metadata_of(source.read_dist_info("METADATA"))
            _refuse_other(wheel, metadata)
            source.validate_record(validate_contents=False)
            total = looked = 0
            records: dict[str, RecordEntry] = {}
            for record, stream, executable in source.get_contents():
                entry = RecordEntry.from_elements(*record)
                path = entry.path
                if path in records:
                    raise LinkError(f"{name} contains {path} twice.", where=wheel.url)
                records[path] = entry
                executable = executable or path.startswith(f"{source.data_dir}/scripts/")
                digest, size = _store(stream, folder / path, executable=executable)
                total += size
                if entry.hash_ is not None and entry.hash_.name == "sha256":
                    if entry.hash_.value != digest:
                        raise LinkError(f"{name}: {path} differs from its RECORD.", where=wheel.url)
                elif not path.endswith((".dist-info/RECORD", ".jws", ".p7s")):
                    raise LinkError(f"{name}: {path} has no sha256 in its RECORD.", where=wheel.url)
                if total - looked > _CHECK_EVERY_BYTES:
                    looked = total
                    if shutil.disk_usage(folder).free < reserve:
                        raise DiskSpaceError(
                            f"The disk is full: {name} could not be unpacked.",
                            hint="Ask an administrator to free disk space, then try again.",
                        )
                entries.append((path, digest, size, executable))
            return {
                "format": _CONTENTS_VERSION,
                "distribution": source.distribution,
                "version": source.version,
                "entries": entries,
                **_noted(metadata),
            }
    except (
        InstallerError,
        ValueError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
    ) as error:
        reason = str(error).replace(f"{alone}/", "")  # do not reveal the path of the cache
        raise LinkError(
            f"{name} is not a valid wheel: {reason}.",
            where=wheel.url,
            hint="Use another version, or report it to the project.",
        ) from error
    finally:
        shutil.rmtree(alone, ignore_errors=True)


def _refuse_members(name: str, members: zipfile.ZipFile, *, packed: int, limits: Limits) -> None:
    """Refuse members that no wheel may have, and documents that are too large for memory."""
    for path, fault in member_faults(members, packed=packed, limits=limits):
        raise LinkError(f"{name}: {printable(path)}: {fault}" if path else f"{name}: {fault}")
    for member in members.infolist():
        folder, _, document = member.filename.partition("/")
        if folder.endswith(".dist-info"):
            # RECORD has one line per file.
            lines = len(members.infolist()) if document == "RECORD" else 0
            largest = _LARGEST_DOCUMENT + lines * _LONGEST_LINE
            if document in _DOCUMENTS and member.file_size > largest:
                raise LinkError(f"{name}: {member.filename} is larger than {largest:,} bytes.")


#: Documents that are read into memory, here or by the library `installer`.
_DOCUMENTS = ("RECORD", "METADATA", "WHEEL", "entry_points.txt")


def _metadata_of(text: str) -> Message:
    return HeaderParser().parsestr(text)


def _noted(metadata: Message) -> dict[str, object]:
    """Return the parts of a wheel's METADATA that the contents file stores."""
    license_ = metadata.get("License-Expression") or metadata.get("License") or ""
    license_ = str(license_).strip()
    if "\n" in license_ or len(license_) > _LONGEST_LICENSE:  # the license text, not a name
        license_ = ""
    return {
        "metadata": {"Name": str(metadata.get("Name")), "Version": str(metadata.get("Version"))},
        "license": license_,
    }


_LONGEST_LICENSE = 200  # characters


def _refuse_other(wheel: PypiPackage, metadata: Mapping[str, str] | Message) -> None:
    """Raise LinkError if the wheel is a different project or version than in the lock."""
    own_name, own_version = str(metadata["Name"]), str(metadata["Version"])
    same_name = canonicalize_name(own_name) == canonicalize_name(wheel.name)
    if not same_name or not _is_same_version(own_version, wheel.version):
        raise LinkError(
            f"{wheel.file_name} contains {printable(f'{own_name} {own_version}')}, but the lock "
            f"names {wheel.name} {wheel.version}.",
            where=wheel.url,
            hint="Do not use this file: the lock or the index is wrong about it.",
        )


def _is_same_version(one: str, other: str) -> bool:
    """Compare versions by PEP 440: 2026.01 equals 2026.1."""
    if one == other:
        return True
    try:
        from packaging.version import InvalidVersion, Version
    except ImportError:  # in the node agent; the server has compared them
        return True
    try:
        return Version(one) == Version(other)
    except InvalidVersion:
        return False


def _compared_again(folder: Path, old: dict[str, Any]) -> dict[str, Any]:
    """Add what the comparison needs to the contents file of an entry of an older release."""
    path = next(entry[0] for entry in old["entries"] if entry[0].endswith(".dist-info/METADATA"))
    file = folder / "wheel" / path
    if file.stat().st_size > _LARGEST_DOCUMENT:
        raise ValueError("METADATA is too long")
    document = {
        **old,
        "format": _CONTENTS_VERSION,
        **_noted(_metadata_of(file.read_text(errors="replace"))),
    }
    new = folder / f".{CONTENTS}.{secrets.token_hex(8)}"
    new.write_text(json.dumps(document, separators=(",", ":")))
    new.replace(folder / CONTENTS)
    return document


def _store(stream: BinaryIO, place: Path, *, executable: bool) -> tuple[str, int]:
    """Write `stream` to `place`; return the digest, encoded as in RECORD, and the size."""
    place.parent.mkdir(parents=True, exist_ok=True)
    hasher, size = hashlib.sha256(), 0
    with place.open("xb") as file:
        while chunk := stream.read(1024 * 1024):
            file.write(chunk)
            hasher.update(chunk)
            size += len(chunk)
    # Set the mode here: prefixes share the file, so it must not change later.
    place.chmod(0o755 if executable else 0o644)
    return base64.urlsafe_b64encode(hasher.digest()).decode().rstrip("="), size


class _Unpacked(WheelSource):
    """A cached wheel as a source for the library `installer`."""

    def __init__(self, wheel: CachedWheel) -> None:
        super().__init__(wheel.distribution, wheel.version)
        self._wheel = wheel
        self._dist_info = next(
            path.partition("/")[0]
            for path in (entry.path for entry in wheel.entries)
            if path.partition("/")[0].endswith(".dist-info") and path.endswith("/WHEEL")
        )

    @property
    def dist_info_dir(self) -> str:
        return self._dist_info

    @property
    def data_dir(self) -> str:
        return f"{self._dist_info.removesuffix('.dist-info')}.data"

    @property
    def dist_info_filenames(self) -> list[str]:
        start = f"{self._dist_info}/"
        return [
            entry.path.removeprefix(start)
            for entry in self._wheel.entries
            if entry.path.startswith(start)
        ]

    def read_dist_info(self, filename: str) -> str:
        return (self._wheel.folder / self._dist_info / filename).read_text()

    def get_contents(self) -> Iterator[tuple[tuple[str, str, str], BinaryIO, bool]]:
        for entry in self._wheel.entries:
            if entry.path == f"{self._dist_info}/INSTALLER" or "/__pycache__/" in entry.path:
                continue
            record = (entry.path, f"sha256={entry.sha256}", str(entry.size))
            with (self._wheel.folder / entry.path).open("rb") as stream:
                yield record, stream, entry.executable


class _Destination(SchemeDictionaryDestination):
    """Hard-links shared files, writes the others, and records conflicting paths."""

    def __init__(
        self,
        wheel: CachedWheel,
        *,
        target: Path,
        final_prefix: Path,
        python: PythonInfo,
        owners: dict[str, str],
    ) -> None:
        site_packages = str(target / python.site_packages)
        include = target / "include" / "site" / f"python{python.version}" / wheel.distribution
        super().__init__(
            scheme_dict={
                "purelib": site_packages,
                "platlib": site_packages,
                "scripts": str(target / python.scripts),
                "headers": str(include),
                "data": str(target),
            },
            interpreter=str(final_prefix / "bin" / "python"),
            script_kind="posix",
        )
        self._wheel, self._target, self._python, self._owners = wheel, target, python, owners
        self._entries = {str(wheel.folder / entry.path): entry for entry in wheel.entries}
        self._root = os.path.realpath(target)
        self._inside: set[Path] = set()
        self.clashes: list[str] = []
        self.python_files: list[tuple[str, str]] = []
        self.paths = self.bytes_apparent = self.bytes_written = 0

    def _path(self, scheme: Scheme, path: str) -> Path:
        """Return where a file goes; LinkError if it, or a package's link, leads out of there."""
        folder = Path(os.path.abspath(self.scheme_dict[scheme]))  # noqa: PTH100  # keeps links
        final = Path(os.path.abspath(folder / path))  # noqa: PTH100
        inside = final.is_relative_to(folder)
        if inside and final.parent not in self._inside:
            real = os.path.realpath(final.parent)
            inside = real == self._root or real.startswith(f"{self._root}{os.sep}")
            self._inside.add(final.parent)
        if not inside:
            raise LinkError(
                f"{self._wheel.label}: path {printable(path)} leads out of the environment."
            )
        return final

    def write_to_fs(
        self, scheme: Scheme, path: str, stream: BinaryIO, is_executable: bool
    ) -> RecordEntry:
        location = self._path(scheme, path)
        entry = self._entries.get(str(getattr(stream, "name", "")))
        if os.path.lexists(location):
            if entry is None or not _same(location, self._wheel.folder / entry.path, entry.size):
                self._note_clash(location)
                return RecordEntry(path, None, None)
        elif entry is None:
            record = super().write_to_fs(scheme, path, stream, is_executable)
            self._count(location, record.size or 0, written=True)
            return record
        else:
            location.parent.mkdir(parents=True, exist_ok=True)
            os.link(self._wheel.folder / entry.path, location)
            self._count(location, entry.size, written=False)
            inside = location.relative_to(self._target).as_posix()
            if inside.endswith(".py") and inside.startswith(f"{self._python.site_packages}/"):
                self.python_files.append((entry.path, inside))
        return RecordEntry(path, Hash("sha256", entry.sha256), entry.size)

    def write_script(
        self, name: str, module: str, attr: str, section: ScriptSection
    ) -> RecordEntry:
        location = self._path(Scheme("scripts"), name)
        if os.path.lexists(location):  # before the library changes the mode of an existing file
            self._note_clash(location)
            return RecordEntry(name, None, None)
        return super().write_script(name, module, attr, section)

    def finalize_installation(
        self, scheme: Scheme, record_file_path: str, records: Iterable[tuple[Scheme, RecordEntry]]
    ) -> None:
        if not self.clashes:
            super().finalize_installation(scheme, record_file_path, records)

    def _count(self, place: Path, size: int, *, written: bool) -> None:
        self._owners[str(place)] = self._wheel.label
        self.paths += 1
        self.bytes_apparent += size
        self.bytes_written += size if written else 0

    def _note_clash(self, place: Path) -> None:
        owner = self._owners.get(str(place), "a conda package")
        inside = place.relative_to(self._target)
        self.clashes.append(f"{inside} of {self._wheel.label} already exists, from {owner}")


def _same(place: Path, source: Path, size: int) -> bool:
    status = place.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return False
    return place.read_bytes() == source.read_bytes()
