"""Layer archives of container images, with reproducible bytes.

They are compressed while they are written, so that nothing is on the disk twice, and in pieces of
fixed size, since gzip members and zstd frames can be concatenated: the result does not depend on
how the input arrives.
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

#: 2000-01-01, the time of files that no package has. (Zip files made of them start in 1980.)
FIXED_TIME = 946_684_800
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """A finished layer archive; digests are sha256, in hex."""

    path: Path
    sha256: str
    size: int
    diff_id: str  # digest of the uncompressed archive
    unpacked_size: int


def write_layer(
    entries: Iterable[Entry],
    to: Path,
    *,
    compression: Compression,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Write `entries` (paths from the root, without a leading slash) and their parent folders."""
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
    """Write the same archive with another compression; the result equals a direct compression."""
    return compress(unpacked(source, of), to, compression, cancelled=cancelled)


def compress(
    stream: Iterable[bytes | Source],
    to: Path,
    compression: Compression,
    *,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Compress an archive to the new file `to`, and compute its digests."""
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
    """Yield the bytes of the archive in `source`; ValueError if it is damaged."""
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
    """Yield the contents of concatenated gzip streams."""
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
        raise ValueError("damaged gzip: it is truncated")
