"""Reproducible tar archives.

The order is the caller's and the owner is fixed; only the contents of files come from the file
system.
"""

from __future__ import annotations

import functools
import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from condastore.errors import LinkError

BLOCK = 512  # bytes of a block of a tar archive
END = bytes(2 * BLOCK)
#: Positions of these fields in a header.
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8**11  # a size field has 11 octal digits


class Entry(NamedTuple):
    """One path; a tuple, because an environment has tens of thousands.

    `content`: the bytes, or the path of a file; None for a folder, and for a link, which has a
    target.
    """

    path: str
    content: bytes | str | None
    size: int
    moment: int
    mode: int = 0o644
    target: str = ""
    owner: int = 0

    @classmethod
    def file(cls, path: str, content: bytes, moment: int, *, executable: bool = False) -> Entry:
        return cls(path, content, len(content), moment, 0o755 if executable else 0o644)

    @classmethod
    def folder(cls, path: str, moment: int, *, mode: int = 0o755, owner: int = 0) -> Entry:
        return cls(path, None, 0, moment, mode, owner=owner)

    @classmethod
    def link(cls, path: str, target: str, moment: int) -> Entry:
        return cls(path, None, 0, moment, 0o777, target)


class Source(NamedTuple):
    """Bytes of a stream that are in a file."""

    path: str
    size: int


def with_folders(entries: Iterable[Entry], moment: int) -> list[Entry]:
    """Return `entries` and all their parent folders, sorted: folders before their contents."""
    everything = {entry.path: entry for entry in entries}
    for path in list(everything):
        folder = path.rpartition("/")[0]
        while folder and folder not in everything:
            everything[folder] = Entry.folder(folder, moment)
            folder = folder.rpartition("/")[0]
    return [everything[path] for path in sorted(everything)]


def tar_stream(entries: Iterable[Entry]) -> Iterator[bytes | Source]:
    """Yield the members of a tar archive, for `chunks`; the caller adds `END`."""
    for entry in entries:
        yield _header(entry)
        if isinstance(entry.content, bytes):
            yield entry.content
        elif entry.content is not None:
            yield Source(entry.content, entry.size)
        if padding := -entry.size % BLOCK:
            yield bytes(padding)


def chunks(
    stream: Iterable[bytes | Source], size: int, *, reuse: bool = False
) -> Iterator[memoryview]:
    """Yield `stream` in pieces of `size` bytes; the last one may be shorter.

    Files are read directly into the pieces: copies would cost a tenth of the compression.

    Args:
        reuse: True overwrites the memory of a piece with the next one.
    Raises:
        LinkError: a file is shorter than expected.
    """
    piece, filled = memoryview(bytearray(size)), 0
    for data in stream:
        descriptor = os.open(data.path, os.O_RDONLY) if isinstance(data, Source) else -1
        try:
            done, length = 0, data.size if isinstance(data, Source) else len(data)
            while done < length:
                space = piece[filled : filled + length - done]
                if isinstance(data, Source):
                    if not (taken := os.readv(descriptor, [space])):
                        raise LinkError(
                            f"{data.path} in the package cache is shorter than expected.",
                            hint="Ask an administrator to check the disk of the package cache.",
                        )
                else:
                    taken = len(space)
                    space[:] = data[done : done + taken]
                done, filled = done + taken, filled + taken
                if filled == size:
                    yield piece
                    piece, filled = piece if reuse else memoryview(bytearray(size)), 0
        finally:
            if descriptor >= 0:
                os.close(descriptor)
    if filled:
        yield piece[:filled]


def _header(entry: Entry) -> bytes:
    """Return `tarfile`'s header, built from a cached copy where only these four fields differ."""
    kind = tarfile.REGTYPE if entry.content is not None else tarfile.DIRTYPE
    path = entry.path if kind == tarfile.REGTYPE else f"{entry.path}/"
    plain = len(path) <= _NAME.stop and path.isascii() and entry.size < _LARGEST
    if entry.target or not plain:
        return _tarfile_header(entry)
    name, numbers = path.encode(), b"%011o\0%011o\0" % (entry.size, entry.moment)
    between, rest, digits = _template(kind, entry.mode, entry.owner)
    total = digits + sum(name) + sum(numbers)
    return b"%s%s%s%06o\0 %s" % (name.ljust(_NAME.stop, b"\0"), between, numbers, total, rest)


@functools.cache
def _template(kind: bytes, mode: int, owner: int) -> tuple[bytes, bytes, int]:
    """Return a header's part after the name, its part after the checksum, and their sum."""
    content = b"" if kind == tarfile.REGTYPE else None
    header = _tarfile_header(Entry("", content, 0, 0, mode, owner=owner))
    between, rest = header[_NAME.stop : _SIZE.start], header[_SUM.stop :]
    return between, rest, sum(between) + sum(rest) + sum(b" " * 8)


def _tarfile_header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    info.mtime, info.mode = entry.moment, entry.mode
    info.uid = info.gid = entry.owner
    if entry.target:
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
    else:
        info.size = entry.size
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")
