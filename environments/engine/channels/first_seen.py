"""Database of when this installation first saw each package; publishers cannot influence it.

One file per (channel, subdir), sorted by digest, so that solver processes find a package by
bisection in a memory-mapped file: 12 bytes per package, about 10 MB for conda-forge's largest
subdir. Entries are never changed or removed: a package that a channel removes and adds again keeps
its first date.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import threading
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from environments.domain.policy import Sighting

_MAGIC = b"condastore seen1"
_HEAD = struct.Struct(">16sQ")  # magic; minute of the first scan, which is the baseline
_KEY = 8  # leading bytes of a sha256: enough to distinguish millions of packages
_ENTRY = struct.Struct(">8sI")  # leading bytes of the digest; minutes since the epoch


def database_path(folder: Path, channel: str, subdir: str) -> Path:
    name = hashlib.sha256(f"{channel}\0{subdir}".encode()).hexdigest()[:24]
    return folder / f"{name}.seen"


class Scan:
    """Packages found by one scan of a channel; `save` merges them into the database.

    Uses 8 bytes per package during the scan, and 40 during the merge.
    """

    def __init__(self, folder: Path, channel: str) -> None:
        self._folder = folder
        self._channel = channel
        self._keys: dict[str, array[int]] = {}

    def add(self, subdir: str, sha256: bytes | None) -> None:
        keys = self._keys.setdefault(subdir, array("Q"))
        if sha256:
            keys.append(int.from_bytes(sha256[:_KEY], "big"))

    def save(self, *, now: float) -> int:
        """Merge the scan into the files; return the number of new packages.

        Of two concurrent merges the later one wins; packages that only the other saw are added by
        the next scan.

        Args:
            now: seconds since the epoch.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        return sum(
            _join(database_path(self._folder, self._channel, subdir), sorted(keys), int(now // 60))
            for subdir, keys in self._keys.items()
        )


def _join(path: Path, fresh: Iterable[int], minute: int) -> int:
    """Merge old and new entries into a new file in one pass."""
    baseline, end, old = _read(path)
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    new, last = 0, b""
    try:
        with temporary.open("wb") as out:
            out.write(_HEAD.pack(_MAGIC, minute if baseline is None else baseline))
            position = _HEAD.size
            for number in fresh:
                key = number.to_bytes(_KEY, "big")
                start = position
                while position < end and old[position : position + _KEY] < key:
                    position += _ENTRY.size
                out.write(old[start:position])
                known = position < end and old[position : position + _KEY] == key
                if not known and key != last:
                    out.write(_ENTRY.pack(key, minute))
                    new += 1
                last = key
            out.write(old[position:end])
            out.flush()
            os.fsync(out.fileno())
        if new or baseline is None:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        if isinstance(old, mmap.mmap):
            old.close()
    return new


@dataclass(slots=True)
class _File:
    content: mmap.mmap | bytes
    size: int
    baseline: int


class FirstSeen:
    """Reader of the database; maps each file at first use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[str, str], _File | None] = {}

    def sighting(self, channel: str, subdir: str, sha256: str) -> Sighting | None:
        """Return the first sighting; None if the last scan did not see the package."""
        if not sha256:
            return None
        key = (channel, subdir)
        if key not in self._files:
            baseline, size, content = _read(database_path(self._folder, channel, subdir))
            self._files[key] = (
                None if baseline is None else _File(content=content, size=size, baseline=baseline)
            )
        file = self._files[key]
        if file is None:
            return None
        minute = _find(file, bytes.fromhex(sha256[: 2 * _KEY]))
        if minute is None:
            return None
        return Sighting(at=minute * 60.0, baseline=minute <= file.baseline)


def _find(file: _File, key: bytes) -> int | None:
    content = file.content
    low, high = 0, (file.size - _HEAD.size) // _ENTRY.size
    while low < high:
        middle = (low + high) // 2
        at = _HEAD.size + middle * _ENTRY.size
        found = content[at : at + _KEY]
        if found == key:
            return int(_ENTRY.unpack(content[at : at + _ENTRY.size])[1])
        if found < key:
            low = middle + 1
        else:
            high = middle
    return None


def _read(path: Path) -> tuple[int | None, int, mmap.mmap | bytes]:
    """Return the baseline (None if there is no valid file), the end of the entries, the bytes."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= _HEAD.size:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            magic, baseline = _HEAD.unpack(content[: _HEAD.size])
            if magic == _MAGIC:
                return int(baseline), size - (size - _HEAD.size) % _ENTRY.size, content
            content.close()
    return None, 0, b""
