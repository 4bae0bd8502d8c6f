"""Writer of Apptainer images (SIF) with reproducible bytes.

A SIF is a header, a table of descriptors and the described objects: the root file system, its
labels, and what `apptainer inspect` shows without starting the image. Its id is derived from its
content, and its times from the lock. (`siftool` makes both random, and is rarely installed.)

Source: github.com/sylabs/sif, pkg/sif (format version 1): all numbers are little-endian, and only
the objects are aligned.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

#: conda's platform -> code of Go's architecture in a SIF.
ARCHITECTURES: Mapping[str, bytes] = {
    "linux-64": b"02\0",
    "linux-aarch64": b"04\0",
    "linux-armv7l": b"03\0",
    "linux-ppc64le": b"06\0",
    "linux-riscv64": b"12\0",
    "linux-s390x": b"11\0",
}
_LAUNCH = b"#!/usr/bin/env run-singularity\n"
#: launch script, magic, version, architecture, id, created, modified, then of the descriptors:
#: free, total, offset, size; of the data: offset, size.
_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
#: type, used, id, group, link, offset, size, size with padding, created, modified, user, group,
#: name, type-specific data.
_DESCRIPTOR = struct.Struct("<iBIIIqqqqqqq128s384s")
#: Data of a partition: file system, kind, architecture.
_PARTITION = struct.Struct("<ii3s")
_DESCRIPTORS, _DESCRIPTORS_AT, DATA_AT = 48, 4096, 32768
_ALIGNMENT = 4096
_TYPE_LABELS, _TYPE_JSON = 0x4003, 0x4006
_TYPE_PARTITION, _SQUASHFS, _PRIMARY_SYSTEM = 0x4004, 1, 2
_FIRST_GROUP = 0xF0000001


def write_sif(
    path: Path,
    system: Path,
    *,
    platform: str,
    moment: datetime,
    labels: Mapping[str, str],
    run_script: str,
) -> None:
    """Write an image with the squashfs in the file `system` to the new file at `path`.

    Args:
        labels, run_script: the same as in the file system; `apptainer inspect` reads these copies.
    """
    size, when = system.stat().st_size, int(moment.timestamp())
    architecture = ARCHITECTURES[platform]
    attributes = {"labels": dict(labels), "runscript": run_script}
    documents = [
        (_TYPE_LABELS, b"labels.json", _json(labels)),
        (
            _TYPE_JSON,
            b"inspect-metadata.json",
            _json({"data": {"attributes": attributes}, "type": "container"}),
        ),
    ]
    locations: list[int] = []
    end = DATA_AT + size
    for _, _, content in documents:
        locations.append(_aligned(end))
        end = locations[-1] + len(content)
    with system.open("rb") as file, path.open("xb") as out:
        digest = hashlib.file_digest(file, "sha256").digest()
        out.write(
            _HEADER.pack(
                *(_LAUNCH, b"SIF_MAGIC", b"01", architecture),
                uuid.UUID(bytes=digest[:16], version=5).bytes,
                *(when, when, _DESCRIPTORS - 1 - len(documents), _DESCRIPTORS),
                *(_DESCRIPTORS_AT, _DESCRIPTORS * _DESCRIPTOR.size, DATA_AT, end - DATA_AT),
            )
        )
        out.seek(_DESCRIPTORS_AT)
        out.write(
            _DESCRIPTOR.pack(
                *(_TYPE_PARTITION, 1, 1, _FIRST_GROUP, 0),
                *(DATA_AT, size, size, when, when, 0, 0),
                b"root.squashfs",
                _PARTITION.pack(_SQUASHFS, _PRIMARY_SYSTEM, architecture),
            )
        )
        before = DATA_AT + size
        for number, (kind, name, content) in enumerate(documents):
            location, length = locations[number], len(content)
            padded = location + length - before
            out.write(
                _DESCRIPTOR.pack(
                    *(kind, 1, 2 + number, _FIRST_GROUP, 0),
                    *(location, length, padded, when, when, 0, 0),
                    *(name, b""),
                )
            )
            before = location + length
        out.seek(DATA_AT)
        file.seek(0)
        shutil.copyfileobj(file, out, 1 << 20)
        for location, (_, _, content) in zip(locations, documents, strict=True):
            out.seek(location)
            out.write(content)


def _json(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
