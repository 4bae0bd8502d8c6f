"""How are files written as a tar archive, with the same bytes wherever it is done?

In the order that is given, owned by nobody in particular; nothing comes from the file system but
what is in the files.
"""

from __future__ import annotations

import functools
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from environments.domain.errors import LinkError

BLOCK = 512  # bytes, of a tar archive
END = bytes(2 * BLOCK)
_READ = 1 << 20  # bytes
#: Where a header has a name, what is between that and the size, size, time, and the checksum.
_NAME, _SIZE, _TIME, _SUM = slice(0, 100), slice(124, 136), slice(136, 148), slice(148, 156)
_LARGEST = 8**11  # a number of so many digits


class Entry(NamedTuple):
    """One path. (A tuple: an environment has tens of thousands of them.)

    `content`: the bytes, or where they are; None for a folder, and for a link, which has a target.
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


def with_folders(entries: Iterable[Entry], moment: int) -> list[Entry]:
    """`entries` and every folder they are in, sorted: folders come before what is in them."""
    everything = {entry.path: entry for entry in entries}
    for path in list(everything):
        folder = posixpath.dirname(path)
        while folder and folder not in everything:
            everything[folder] = Entry.folder(folder, moment)
            folder = posixpath.dirname(folder)
    return [everything[path] for path in sorted(everything)]


def tar_stream(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The members of a tar archive; its end is `END`."""
    for entry in entries:
        if entry.content is None:
            yield _any_header(entry)
            continue
        yield _file_header(entry)
        if isinstance(entry.content, bytes):
            yield entry.content
        else:
            yield from _content(entry, entry.content)
        if padding := -entry.size % BLOCK:
            yield bytes(padding)


def chunks(stream: Iterable[bytes], size: int) -> Iterator[bytes]:
    """`stream` in pieces of `size` bytes; the last one may be shorter."""
    waiting: list[memoryview] = []
    length = 0
    for piece in stream:
        view = memoryview(piece)
        while length + len(view) >= size:
            yield b"".join([*waiting, view[: size - length]])
            view = view[size - length :]
            waiting, length = [], 0
        if view:
            waiting.append(view)
            length += len(view)
    if waiting:
        yield b"".join(waiting)


def _content(entry: Entry, source: str) -> Iterator[bytes]:
    left = entry.size
    descriptor = os.open(source, os.O_RDONLY)  # an object for each of 10,000 would be felt
    try:
        while left and (piece := os.read(descriptor, min(left, _READ))):
            left -= len(piece)
            yield piece
    finally:
        os.close(descriptor)
    if left:
        raise LinkError(f"{entry.path} is shorter in the cache than it was.")


def _file_header(entry: Entry) -> bytes:
    """What `tarfile` writes: a copy of one of its headers where only these four places differ."""
    name = entry.path.encode("utf-8", "surrogateescape")
    if len(name) > _NAME.stop or not entry.path.isascii() or entry.size >= _LARGEST:
        return _any_header(entry)
    numbers = b"%011o\0%011o\0" % (entry.size, entry.moment)
    between, rest, digits = _template(entry.mode, entry.owner)
    total = digits + sum(name) + sum(numbers)
    return b"%s%s%s%06o\0 %s" % (name.ljust(_NAME.stop, b"\0"), between, numbers, total, rest)


@functools.cache
def _template(mode: int, owner: int) -> tuple[bytes, bytes, int]:
    """Of a header: after the name, after the checksum; and the sum of both, with its blanks."""
    header = _any_header(Entry("", b"", 0, 0, mode, owner=owner))
    between, rest = header[_NAME.stop : _SIZE.start], header[_SUM.stop :]
    return between, rest, sum(between) + sum(rest) + sum(b" " * 8)


def _any_header(entry: Entry) -> bytes:
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
