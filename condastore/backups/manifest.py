"""The folder of a backup, and the document that makes it complete.

    <folder>/manifest.json              which snapshot is complete; written last, by one rename
    <folder>/snapshots/<time>/          the database, blobs.txt, secrets/ and first-seen/
    <folder>/snapshots/<time>.partial/  of a backup that is not complete
    <folder>/blobs/sha256/ab/<digest>   kept bytes, shared by all snapshots

Everything is closed to other accounts (0700, 0600): a backup holds the secrets of the installation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condastore.cli.errors import CommandError, Status

FORMAT = 1
MANIFEST, SNAPSHOTS, PARTIAL, BLOB_LIST = "manifest.json", "snapshots", ".partial", "blobs.txt"
LOCK = ".lock"
_BLOB_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64}) (?P<size>[0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a snapshot; `path` is relative to the snapshot."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a complete backup consists of."""

    snapshot: str
    version: str
    created_at: str
    database: str  # "sqlite" or "postgresql"
    migrations: Mapping[str, list[str]]  # application: names, sorted
    files: tuple[FileEntry, ...]
    store: str  # where the blobs were: "files" or a class of an object store
    blobs_copied: bool
    blobs: int
    blob_bytes: int
    absent: tuple[str, ...]  # digests whose bytes were not there, or were others
    keys_from_settings: tuple[str, ...]

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        partial = folder / f".{MANIFEST}.partial"
        write_private(partial, text.encode())
        partial.replace(folder / MANIFEST)
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a complete backup.

        Raises:
            CommandError: there is none, it cannot be read, or a newer program wrote it.
        """
        try:
            found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            form = found.pop("format")
        except FileNotFoundError:
            if (folder / SNAPSHOTS).is_dir():
                raise fault(
                    "This backup is not complete.",
                    folder,
                    hint=f"Finish it: `condastore backup {folder}`.",
                ) from None
            raise fault(
                "There is no backup in this folder.",
                folder,
                hint="Name the folder that was given to `condastore backup`.",
            ) from None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise fault(f"The manifest cannot be read: {error}.", folder / MANIFEST) from error
        if form != FORMAT:
            raise fault(
                f"The backup has format {form}; this version of condastore reads format {FORMAT}.",
                folder,
                hint="Install the version of condastore that made it, or a newer one.",
            )
        try:
            found["files"] = tuple(FileEntry(**entry) for entry in found["files"])
            for name in ("absent", "keys_from_settings"):
                found[name] = tuple(found[name])
            manifest = cls(**found)
            for path in (manifest.snapshot, *(entry.path for entry in manifest.files)):
                _require_inside(path)
            return manifest
        except (KeyError, TypeError, ValueError) as error:
            raise fault(f"The manifest cannot be read: {error}.", folder / MANIFEST) from error

    def folder(self, backup: Path) -> Path:
        return backup / SNAPSHOTS / self.snapshot


def _require_inside(path: str) -> None:
    """ValueError where a path of the manifest could lead out of the backup."""
    parts = path.split("/")
    if "\0" in path or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{path!r} is not a path inside the backup")


def fault(
    message: str, where: Path, *, hint: str = "", code: str = "invalid-input"
) -> CommandError:
    return CommandError(message, status=Status.INVALID, code=code, where=str(where), hint=hint)


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Around what writes to a backup; CommandError where the folder or its disk refuses it."""
    try:
        yield
    except OSError as error:
        if not _is_about(error, folder.absolute()):
            raise
        hint = "Name a folder that this account can write to, on a disk with space."
        raise fault(
            f"The backup cannot be written: {error.strerror}.", folder, hint=hint
        ) from error


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether `folder`, one that holds it or a file in it is at fault; a write names no file."""
    if not isinstance(error.filename, str | os.PathLike):
        return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
    path = Path(os.fspath(error.filename)).absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a backup's folder; CommandError if another command does.

    On a read-only file system nobody writes to it: then there is nothing to hold.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise fault(
                "Another command is using this backup.",
                folder,
                hint="Wait until it has ended.",
                code="conflict",
            ) from None
        yield
    finally:
        os.close(descriptor)


def read_blob_list(path: Path) -> Iterator[tuple[str, int]]:
    """Yield (sha256, size in bytes) of each kept blob.

    Raises:
        CommandError: a line of the list is not a digest and a size.
    """
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            found = _BLOB_LINE.fullmatch(line.strip())
            if found is None:
                raise fault(
                    f"Line {number} of the list of blobs is not a sha256 and a size.",
                    path,
                    hint="The backup is damaged: use another one.",
                    code="damaged",
                )
            yield found["sha256"], int(found["size"])


def blob_path(backup: Path, sha256: str) -> Path:
    return backup / "blobs" / "sha256" / sha256[:2] / sha256


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries_of(folder: Path) -> tuple[FileEntry, ...]:
    """All files below `folder`, with their digests."""
    return tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=digest_of(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def create_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this account reads, from the first moment on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def copy_private(source: Path, target: Path) -> None:
    """Copy a tree of small files; links in it are left out."""
    create_private(target)
    for path in sorted(source.rglob("*")):
        location = target / path.relative_to(source)
        if path.is_symlink():
            continue
        if path.is_dir():
            create_private(location)
        elif path.is_file():
            write_private(location, path.read_bytes())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
