"""Checks of untrusted zip archives (wheels): a bounded directory, and validated members."""

from __future__ import annotations

import contextlib
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from environments.domain.unpacking import Limits, path_fault

#: Maximum size in bytes of an archive's directory, enough for 100,000 files; zipfile loads all of
#: it.
MAX_DIRECTORY_BYTES = 16 << 20
#: Methods that zipfile decompresses in bounded pieces; wheels use no others.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class DirectoryTooLongError(zipfile.BadZipFile):
    """The directory of the archive is longer than allowed."""


class BoundedFile:
    """File object for zipfile that limits a read to the maximum size of a directory."""

    def __init__(self, file: IO[bytes], longest: int, name: str | None = None) -> None:
        self._file, self._longest = file, longest
        self.name = name
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._longest if size < 0 else min(size, self._longest))
        if size > self._longest:
            raise DirectoryTooLongError("The directory of the archive is too long.")
        return data


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive at `path`.

    Raises:
        zipfile.BadZipFile: it is not a zip archive, or its directory is too long.
    """
    with (
        path.open("rb") as file,
        zipfile.ZipFile(BoundedFile(file, MAX_DIRECTORY_BYTES, str(path))) as archive,
    ):
        yield archive


def member_faults(
    archive: zipfile.ZipFile, *, packed: int, limits: Limits
) -> Iterator[tuple[str, str]]:
    """Yield (path, fault) of members that no archive may have; path is "" for the whole archive.

    zipfile reads no more of a member than the directory says, so the sizes given there count.
    """
    files: set[str] = set()
    members = archive.infolist()
    if len(members) > limits.entries:
        yield "", limits.entries_fault()
        return
    if sum(member.file_size for member in members) > limits.bytes_for(packed):
        yield "", limits.size_fault(packed)
        return
    for member in members:
        path, mode = member.filename, member.external_attr >> 16
        if fault := path_fault(path, longest=limits.path_bytes):
            yield path, f"The path {fault}."
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield path, "It must be a file or a folder, not a link or a device."
        elif member.compress_type not in _COMPRESSIONS or member.flag_bits & 1:
            yield path, "It must not be encrypted or compressed with a method other than Deflate."
        elif not member.is_dir():
            if path in files:
                yield path, "The path occurs twice."
            files.add(path)
    for path in sorted(files):
        end = path.find("/")
        while end > 0:
            if path[:end] in files:
                yield path, f"It lies below {path[:end]}, which is a file."
                break
            end = path.find("/", end + 1)
