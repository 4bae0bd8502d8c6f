"""Pack of many small files in one file, each found by its digest.

Format: the parts, then a sorted table of (key, offset, length), then the length of the table.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import IO

_ENTRY = struct.Struct(">32sQI")
_END = struct.Struct(">Q8s")
_MAGIC = b"shards-1"

#: Reads `length` bytes at `offset`.
Read = Callable[[int, int], bytes]


class PackWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self._table: dict[bytes, tuple[int, int]] = {}

    def add(self, content: bytes) -> bytes:
        """Add a part and return its digest; equal contents are stored once."""
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
    """Read the table of a pack of `size` bytes: 44 bytes per part, worth caching.

    Raises:
        ValueError: it is not a pack.
    """
    count, magic = _END.unpack(read(max(0, size - _END.size), _END.size).rjust(_END.size))
    start = size - _END.size - count * _ENTRY.size
    if magic != _MAGIC or start < 0:
        raise ValueError("not a pack of shards")
    return read(start, count * _ENTRY.size) if count else b""


def find(table: bytes, key: bytes) -> tuple[int, int] | None:
    """Return offset and length of the part with `key`."""
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
