"""Malformed and hostile conda packages: any entry and any index, in both formats."""

from __future__ import annotations

import bz2
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

STEM = "tool-1.0-0"
INDEX = {
    "name": "tool",
    "version": "1.0",
    "build": "0",
    "build_number": 0,
    "subdir": "noarch",
    "noarch": "generic",
    "depends": [],
    "license": "MIT",
    "timestamp": 1_700_000_000_000,
}
Entry = tuple[tarfile.TarInfo, bytes]


def entry(path: str, content: bytes = b"x", **changes: Any) -> Entry:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    for name, value in changes.items():
        setattr(info, name, value)
    return info, content


def info_entries(
    payload: Sequence[Entry] = (), *, index: Mapping[str, Any] | bytes = INDEX
) -> list[Entry]:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    paths = [
        {"_path": info.name, "path_type": "hardlink", "size_in_bytes": info.size}
        for info, _ in payload
    ]
    listed = json.dumps({"paths": paths, "paths_version": 1}).encode()
    return [entry("info/index.json", text), entry("info/paths.json", listed)]


def tar(entries: Sequence[Entry], *, end: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
        length = out.tell()
    return out.getvalue() if end else out.getvalue()[:length]


def conda(
    payload: Sequence[Entry] | bytes = (),
    *,
    info: Sequence[Entry] | bytes | None = None,
    stem: str = STEM,
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] = {},
) -> bytes:
    """Bytes are those of a tar as it is."""
    if info is None:
        info = info_entries(() if isinstance(payload, bytes) else payload)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
        for kind, part in (("pkg", payload), ("info", info)):
            content = part if isinstance(part, bytes) else tar(part)
            archive.writestr(f"{kind}-{stem}.tar.zst", zstandard.compress(content))
        for name, content in more.items():
            archive.writestr(name, content)
    return out.getvalue()


def tar_bz2(payload: Sequence[Entry] = (), *, info: Sequence[Entry] | None = None) -> bytes:
    return bz2.compress(tar([*(info_entries(payload) if info is None else info), *payload]))


def named(version: str, *, name: str = "tool", **index: Any) -> tuple[str, bytes]:
    """A good package and its file name."""
    stem = f"{name}-{version}-0"
    payload = [entry(f"share/{name}.txt", version.encode())]
    content = {**INDEX, "name": name, "version": version, **index}
    return f"{stem}.conda", conda(payload, info=info_entries(payload, index=content), stem=stem)
