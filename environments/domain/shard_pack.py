"""How are ten thousands of small files one file, of which any is found by its digest?

The parts one after the other, then a table of (key, offset, length), sorted, then its length.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import IO

_ENTRY = struct.Struct(">32sQI")
_END = struct.Struct(">Q8s")
_MAGIC = b"shards-1"

#: Gives so many bytes from a place on.
Read = Callable[[int, int], bytes]


class PackWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self._table: dict[bytes, tuple[int, int]] = {}

    def add(self, content: bytes) -> bytes:
        """The digest under which it is found; the same content twice is there once."""
        digest = hashlib.sha256(content).digest()
        self.put(digest, content)
        return digest

    def put(self, key: bytes, content: bytes) -> None:
        """Under a key of 32 bytes."""
        if key not in self._table:
            self._table[key] = (self._at, len(content))
            self._file.write(content)
            self._at += len(content)

    def finish(self) -> None:
        for key in sorted(self._table):
            self._file.write(_ENTRY.pack(key, *self._table[key]))
        self._file.write(_END.pack(len(self._table), _MAGIC))


def read_table(size: int, read: Read) -> bytes:
    """The table of a pack of `size` bytes: 44 bytes a part, worth keeping.

    Raises:
        ValueError: that is no pack.
    """
    count, magic = _END.unpack(read(max(0, size - _END.size), _END.size).rjust(_END.size))
    start = size - _END.size - count * _ENTRY.size
    if magic != _MAGIC or start < 0:
        raise ValueError("no pack of shards")
    return read(start, count * _ENTRY.size) if count else b""


def find(table: bytes, key: bytes) -> tuple[int, int] | None:
    """Offset and length of what is kept under `key`."""
    low, high = 0, len(table) // _ENTRY.size
    while low < high:
        middle = (low + high) // 2
        found, offset, length = _ENTRY.unpack_from(table, middle * _ENTRY.size)
        if found == key:
            return offset, length
        if found < key:
            low = middle + 1
        else:
            high = middle
    return None
