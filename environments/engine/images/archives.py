"""How do files become the archive of a layer, with the same bytes wherever it is written?

Compressed as it is written, so that nothing is on the disk twice, and in pieces of one size, as
members of gzip and frames of zstd may follow each other: however the archive comes here, it becomes
the same bytes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

import zstandard

from environments.domain.images import Compression
from environments.domain.progress import Cancelled, never, obey
from environments.engine.artifacts.parts import GZIP, PIECE, ZSTD
from environments.engine.artifacts.tar import END, Entry, Source, chunks, tar_stream, with_folders

#: 2000-01-01: of what no package brings. (Zip files, which some make of such files, begin in 1980.)
FIXED_TIME = 946_684_800
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """A finished archive; digests are sha256, hex."""

    path: Path
    sha256: str
    size: int
    diff_id: str  # of what is compressed
    unpacked_size: int


def write_layer(
    entries: Iterable[Entry],
    to: Path,
    *,
    compression: Compression,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Write `entries` (paths from the root, no slash in front) and the folders they are in."""
    stream = chain(tar_stream(with_folders(entries, FIXED_TIME)), [END])
    return compress(stream, to, compression, cancelled=cancelled)


def recompress(
    source: Path,
    of: Compression,
    to: Path,
    compression: Compression,
    *,
    cancelled: Cancelled = never,
) -> LayerFile:
    """The same archive, compressed in another way: as if it had been so at once."""
    return compress(unpacked(source, of), to, compression, cancelled=cancelled)


def compress(
    stream: Iterable[bytes | Source],
    to: Path,
    compression: Compression,
    *,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Write an archive to the new file `to`, compressed and digested on the way."""
    pack = (ZSTD if compression == "zstd" else GZIP).compress
    outer, inner = hashlib.sha256(), hashlib.sha256()
    size = unpacked_size = 0
    with to.open("xb", buffering=0) as file:
        for piece in chunks(stream, PIECE, reuse=True):
            obey(cancelled)
            inner.update(piece)
            packed = pack(piece)
            outer.update(packed)
            file.write(packed)
            size, unpacked_size = size + len(packed), unpacked_size + len(piece)
    return LayerFile(
        path=to,
        sha256=outer.hexdigest(),
        size=size,
        diff_id=inner.hexdigest(),
        unpacked_size=unpacked_size,
    )


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
