"""Forward-only reading of untrusted tar archives, with limits of memory, size and entries."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Protocol

from environments.domain.unpacking import Limits

#: Maximum size in bytes of the headers of one entry; tarfile holds them in memory.
MAX_HEADER_BYTES = 2 << 20
_CHUNK = 1 << 18


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class StopReadingError(Exception):
    """Reading stops here; the message says why."""


class Budget:
    """Remaining bytes and entries that an archive may unpack to."""

    def __init__(self, packed: int, limits: Limits) -> None:
        self._bytes = limits.bytes_for(packed)
        self._packed = packed
        self._limits = limits
        self._entries = limits.entries

    def spend_bytes(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise StopReadingError(self._limits.size_fault(self._packed))

    def spend_entry(self) -> None:
        self._entries -= 1
        if self._entries < 0:
            raise StopReadingError(self._limits.entries_fault())


class ForwardReader:
    """Forward-only file object for tarfile that enforces the limits.

    The limit of an entry's headers is small, because tarfile holds them in memory.
    """

    def __init__(self, source: Readable, budget: Budget) -> None:
        self._source = source
        self._budget = budget
        self._position = 0
        self.header: int | None = MAX_HEADER_BYTES
        self.last = b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if self.header is not None:
            self.header -= size
            if self.header < 0:
                raise StopReadingError("A header of the archive is too long.")
        parts = []
        while size > 0 and (part := self._source.read(min(size, _CHUNK))):
            self._budget.spend_bytes(len(part))
            self._position += len(part)
            size -= len(part)
            parts.append(part)
        self.last = b"".join(parts)
        return self.last

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("it refers to an earlier position")
        before, self.header = self.header, None
        while self._position < position:
            if not self.read(min(position - self._position, _CHUNK)):
                raise tarfile.ReadError("it is truncated")
        self.header = before

    def drain(self, *, zeros_only: bool) -> None:
        """Read the rest after the end of the archive.

        Raises:
            tarfile.ReadError: it contains anything but zeros, and `zeros_only` is set.
        """
        self.header = None
        while part := self.read(_CHUNK):
            if zeros_only and part.strip(b"\0"):
                raise tarfile.ReadError("data follows its end")


def read_entries(
    source: ForwardReader, budget: Budget, *, strict: bool = True
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the entries of an archive, and read it to its end.

    Args:
        strict: refuse an archive without an end marker, or with data after it.
    Raises:
        StopReadingError: a limit is exceeded.
        tarfile.TarError: the archive is malformed.
    """
    with tarfile.TarFile(fileobj=source, mode="r") as archive:  # type: ignore[arg-type]
        while True:
            source.header = MAX_HEADER_BYTES
            entry = archive.next()
            if entry is None:
                break
            source.header = None
            budget.spend_entry()
            yield archive, entry
            vars(archive)["members"].clear()  # tarfile keeps every entry
        # tarfile takes a broken header for the end; the real end is a block of zeros.
        if strict and (len(source.last) != tarfile.BLOCKSIZE or source.last.strip(b"\0")):
            raise tarfile.ReadError("it is truncated or damaged")
        source.drain(zeros_only=strict)
