"""How do files become the archive of a layer, with the same bytes wherever it is written?

Sorted, owned by root, with no time of today; compressed as it is written, so that nothing is on the
disk twice, and piece by piece: members of gzip and frames of zstd may follow each other. Times are
those of the packages' own archives: compiled Python that a package brings names its source's time.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from environments.domain.errors import LinkError
from environments.domain.images import Compression
from environments.domain.progress import Cancelled, never, obey
from environments.engine.artifacts.parts import GZIP, PIECE, ZSTD

#: 2000-01-01: of what no package brings. (Zip files, which some make of such files, begin in 1980.)
FIXED_TIME = 946_684_800
CHUNK = 1 << 20  # bytes
_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path of an archive: a file's content or where it is, a link's target, or a folder."""

    content: bytes | Path | None = None
    link: str = ""
    mode: int = 0o644
    time: int = FIXED_TIME
    owner: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """A finished archive; digests are sha256, hex."""

    path: Path
    sha256: str
    size: int
    diff_id: str  # of what is compressed
    unpacked_size: int


class LayerWriter:
    """Takes an archive's bytes; compresses and digests them on the way to `path`."""

    def __init__(self, path: Path, compression: Compression) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("xb")
        self._compress = (ZSTD if compression == "zstd" else GZIP).compress
        self._outer, self._inner = hashlib.sha256(), hashlib.sha256()
        self._size = self._unpacked = 0
        self._waiting: list[bytes] = []  # headers are small: each alone would cost a call
        self._waiting_size = 0

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._unpacked += len(data)
        self._waiting.append(data)
        self._waiting_size += len(data)
        if self._waiting_size >= PIECE:
            self._pass_on()

    def _pass_on(self) -> None:
        data = b"".join(self._waiting)
        self._waiting, self._waiting_size = [], 0
        self._inner.update(data)
        packed = self._compress(data)
        self._outer.update(packed)
        self._size += len(packed)
        self._file.write(packed)

    def finish(self) -> LayerFile:
        if self._waiting or not self._size:
            self._pass_on()
        self._file.close()
        return LayerFile(
            path=self._path,
            sha256=self._outer.hexdigest(),
            size=self._size,
            diff_id=self._inner.hexdigest(),
            unpacked_size=self._unpacked,
        )


def write_layer(
    entries: Mapping[str, Entry],
    to: Path,
    *,
    compression: Compression,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Write `entries` (path from the root, no slash in front) and the folders they are in."""
    everything = dict(entries)
    for path in entries:
        folder = posixpath.dirname(path)
        while folder and folder not in everything:
            everything[folder] = Entry(mode=0o755)
            folder = posixpath.dirname(folder)
    with LayerWriter(to, compression) as out:
        for path in sorted(everything):
            obey(cancelled)
            _add(out, path, everything[path])
        out.write(_END)
        return out.finish()


def _add(out: LayerWriter, path: str, entry: Entry) -> None:
    info = tarfile.TarInfo(path)
    info.mode, info.mtime = entry.mode, entry.time
    info.uid = info.gid = entry.owner
    if isinstance(entry.content, Path):
        with entry.content.open("rb", buffering=0) as file:
            info.size = left = os.fstat(file.fileno()).st_size
            out.write(_header(info))
            while left and (data := file.read(min(left, CHUNK))):
                left -= len(data)
                out.write(data)
        if left:
            raise LinkError(f"{path} was cut while it was read.")
    else:
        content = entry.content or b""
        info.size = len(content)
        if entry.link:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        elif entry.content is None:
            info.type = tarfile.DIRTYPE
        out.write(_header(info))
        out.write(content)
    out.write(bytes(-info.size % tarfile.BLOCKSIZE))


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def recompress(
    source: Path,
    of: Compression,
    to: Path,
    compression: Compression,
    *,
    cancelled: Cancelled = never,
) -> LayerFile:
    """The same archive, compressed in another way."""
    with LayerWriter(to, compression) as out:
        for part in unpacked(source, of):
            obey(cancelled)
            out.write(part)
        return out.finish()


def unpacked(source: Path, compression: Compression | None) -> Iterator[bytes]:
    """The bytes of the archive in `source`; ValueError where it is damaged."""
    with source.open("rb") as file:
        if compression is None:
            while part := file.read(CHUNK):
                yield part
        elif compression == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as read:
                while part := read.read(CHUNK):
                    yield part
        else:
            yield from _gunzipped(file)


def _gunzipped(file: IO[bytes]) -> Iterator[bytes]:
    """Of one gzip stream after another, as far as there are any."""
    stream = zlib.decompressobj(31)
    try:
        while part := file.read(CHUNK):
            while part:
                if stream.eof:
                    stream = zlib.decompressobj(31)
                data = stream.decompress(part, CHUNK)
                if data:
                    yield data
                part = stream.unused_data if stream.eof else stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"damaged gzip: {error}") from error
    if not stream.eof:
        raise ValueError("damaged gzip: it ends too early")
