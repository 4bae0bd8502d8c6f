"""How is what many archives have in common compressed once?

zstd frames and gzip members may follow each other: a stream of them is the concatenation of what
is in them, and every tool that reads one reads the other. So each package's members of the archive
are compressed alone, and kept; the next archive with the package copies them.

    <folder>/<key of the part>-<name of the compression>     sha256 of the rest (32 bytes), the rest

The bytes are the same however many threads work: a stream is cut at fixed places, and each piece is
compressed by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import deflate
import zstandard

from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.engine.artifacts.tar import chunks
from environments.engine.artifacts.tree import Part

#: Bytes that are compressed at once; memory is a few times that for each thread.
PIECE = 8 << 20
Packed = bytes | bytearray
_DIGEST = 32  # bytes of a sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """`name` says with what, so that parts of another library's version are never mixed in."""

    name: str
    compress: Callable[[memoryview], Packed]


def _zstd(piece: memoryview) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(piece)


def _gzip(piece: memoryview) -> Packed:
    """libdeflate is more than twice as fast as zlib; its header has no name and no time."""
    return deflate.gzip_compress(piece, 3)


ZSTD = Compression(name="zst-" + ".".join(map(str, zstandard.ZSTD_VERSION)), compress=_zstd)
GZIP = Compression(name=f"gz-{version('deflate')}", compress=_gzip)


class PartFolder:
    """Compressed parts of archives below one folder; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, part: Part, compression: Compression) -> Path:
        return self.folder / f"{part.key}-{compression.name}"

    def entries(self) -> Iterator[tuple[str, datetime]]:
        """(name, last use) of every entry."""
        for path in self.folder.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                yield path.name, datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove what killed workers left half done."""
        limit = time.time() - older_than.total_seconds()
        for path in self.folder.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()


def write_parts(
    parts: Sequence[Part],
    out: BinaryIO,
    *,
    compression: Compression,
    kept: PartFolder,
    threads: int = 0,
    progress: Report = ignore,
    cancelled: Cancelled = never,
) -> None:
    """Write `parts`, compressed, one after the other to `out`.

    Args:
        threads: how many compress; as many as there are processors if 0.
    Raises:
        LeaseLostError: `cancelled` said so.
    """
    threads = threads or len(os.sched_getaffinity(0))
    kept.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as cleanup:
        line = _Line(out, pool=pool, most=2 * threads)
        cleanup.callback(pool.shutdown, cancel_futures=True)
        for number, part in enumerate(parts):
            obey(cancelled)
            progress(Progress(stage="packing", done=number, total=len(parts), current=part.name))
            path = kept.path(part, compression) if part.key else None
            if path is not None and line.copy(path):
                continue
            copy = cleanup.enter_context(_Copy(path)) if path is not None else None
            for piece in chunks(part.stream(), PIECE):
                obey(cancelled)
                line.add(piece, compression.compress, copy)
            line.end(copy)
        line.finish()
    progress(Progress(stage="packing", done=len(parts), total=len(parts)))


class _Copy:
    """A part on its way into the folder: it appears there when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._work = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        self._file = self._work.open("xb")
        self._file.write(bytes(_DIGEST))
        self._hasher = hashlib.sha256()

    def __enter__(self) -> _Copy:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._work.unlink(missing_ok=True)

    def write(self, data: Packed) -> None:
        self._hasher.update(data)
        self._file.write(data)

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._hasher.digest())
        self._file.close()
        self._work.replace(self._path)


class _Line:
    """What is compressed at the same time and written in order, only so much of it at once."""

    def __init__(self, out: BinaryIO, *, pool: ThreadPoolExecutor, most: int) -> None:
        self._out, self._pool, self._most = out, pool, most
        self._waiting: deque[Callable[[], None]] = deque()

    def add(
        self, piece: memoryview, compress: Callable[[memoryview], Packed], copy: _Copy | None
    ) -> None:
        done = self._pool.submit(compress, piece)
        self._later(lambda: self._write(done, copy))

    def _write(self, done: Future[Packed], copy: _Copy | None) -> None:
        data = done.result()
        self._out.write(data)
        if copy is not None:
            copy.write(data)

    def end(self, copy: _Copy | None) -> None:
        if copy is not None:
            self._later(copy.finish)

    def copy(self, path: Path) -> bool:
        """Whether there is such a part, whole; then it comes next."""
        if (file := _open_whole(path)) is None:
            return False
        self._later(lambda: self._take(file))
        return True

    def _take(self, file: BinaryIO) -> None:
        with file:
            file.seek(_DIGEST)
            shutil.copyfileobj(file, self._out, 1 << 20)

    def finish(self) -> None:
        while self._waiting:
            self._waiting.popleft()()

    def _later(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        while len(self._waiting) > self._most:
            self._waiting.popleft()()


def _open_whole(path: Path) -> BinaryIO | None:
    """The part, if it is there with its own bytes; one that is not is removed."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    digest = file.read(_DIGEST)
    if hashlib.file_digest(file, "sha256").digest() == digest:
        os.utime(file.fileno())
        return file
    file.close()
    path.unlink(missing_ok=True)
    return None
