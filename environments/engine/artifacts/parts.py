"""Compressed parts of archives, cached by package and shared between archives.

zstd frames and gzip members can be concatenated: the decompressed result is the concatenation of
their contents. So each package's archive members are compressed separately and cached; the next
archive with the package copies them.

    <folder>/<key of the part>-<name of the compression>     sha256 of the rest (32 bytes), the rest

The bytes do not depend on the number of threads: a stream is cut at fixed positions, and each piece
is compressed separately.
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

#: Bytes that are compressed at once; each thread uses a few times as much memory.
PIECE = 8 << 20
Packed = bytes | bytearray
_DIGEST = 32  # bytes of a sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """A compression; `name` contains the library's version, so that versions never mix."""

    name: str
    compress: Callable[[memoryview], Packed]


def _zstd(piece: memoryview) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(piece)


def _gzip(piece: memoryview) -> Packed:
    """Compress with libdeflate: twice as fast as zlib, and no name or time in the header."""
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
        """Yield (name, last use) of every entry."""
        for path in self.folder.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                yield path.name, datetime.fromtimestamp(path.stat().st_mtime).astimezone()

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove old temporary files of killed workers."""
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
    """Write `parts`, compressed, to `out`, in their order.

    Args:
        threads: number of compressing threads; 0 means one per processor.
    Raises:
        LeaseLostError: `cancelled` returned True.
    """
    threads = threads or len(os.sched_getaffinity(0))
    kept.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(threads) as pool, contextlib.ExitStack() as cleanup:
        writer = _OrderedWriter(out, pool=pool, most=2 * threads)
        cleanup.callback(pool.shutdown, cancel_futures=True)
        for number, part in enumerate(parts):
            obey(cancelled)
            progress(Progress(stage="packing", done=number, total=len(parts), current=part.name))
            path = kept.path(part, compression) if part.key else None
            if path is not None and writer.copy(path):
                continue
            copy = cleanup.enter_context(_NewEntry(path)) if path is not None else None
            for piece in chunks(part.stream(), PIECE):
                obey(cancelled)
                writer.add(piece, compression.compress, copy)
            writer.end(copy)
        writer.finish()
    progress(Progress(stage="packing", done=len(parts), total=len(parts)))


class _NewEntry:
    """A new entry of the folder, which becomes visible when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._work = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        self._file = self._work.open("xb")
        self._file.write(bytes(_DIGEST))
        self._hasher = hashlib.sha256()

    def __enter__(self) -> _NewEntry:
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


class _OrderedWriter:
    """Ordered writer of concurrently compressed pieces, with a limited number in memory."""

    def __init__(self, out: BinaryIO, *, pool: ThreadPoolExecutor, most: int) -> None:
        self._out, self._pool, self._most = out, pool, most
        self._waiting: deque[Callable[[], None]] = deque()

    def add(
        self, piece: memoryview, compress: Callable[[memoryview], Packed], copy: _NewEntry | None
    ) -> None:
        done = self._pool.submit(compress, piece)
        self._enqueue(lambda: self._write(done, copy))

    def _write(self, done: Future[Packed], copy: _NewEntry | None) -> None:
        data = done.result()
        self._out.write(data)
        if copy is not None:
            copy.write(data)

    def end(self, copy: _NewEntry | None) -> None:
        if copy is not None:
            self._enqueue(copy.finish)

    def copy(self, path: Path) -> bool:
        """Queue an existing, undamaged part; return False if there is none."""
        if (file := _open_whole(path)) is None:
            return False
        self._enqueue(lambda: self._write_file(file))
        return True

    def _write_file(self, file: BinaryIO) -> None:
        with file:
            file.seek(_DIGEST)
            shutil.copyfileobj(file, self._out, 1 << 20)

    def finish(self) -> None:
        while self._waiting:
            self._waiting.popleft()()

    def _enqueue(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        while len(self._waiting) > self._most:
            self._waiting.popleft()()


def _open_whole(path: Path) -> BinaryIO | None:
    """Open a part if it exists and its digest is right; remove a damaged one."""
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
