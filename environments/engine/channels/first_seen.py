"""When did we first see each package of a channel? A clock that no publisher can set.

One file for each (channel, subdir), sorted by digest, so that the solver's processes find a
package by bisection in a mapped file: 12 bytes a package, some ten million for conda-forge's
largest subdir. An entry is never changed and never dropped: a package that a channel takes away
and brings back is as old as it was.
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
_HEAD = struct.Struct(">16sQ")  # magic; minute of the first look: the baseline
_KEY = 8  # bytes of a sha256: enough to tell a million packages apart
_ENTRY = struct.Struct(">8sI")  # digest's start; minutes since the epoch


def path_of(folder: Path, channel: str, subdir: str) -> Path:
    name = hashlib.sha256(f"{channel}\0{subdir}".encode()).hexdigest()[:24]
    return folder / f"{name}.seen"


class Look:
    """What one look at a channel finds; `keep` joins it to what was seen before.

    Eight bytes a package while it looks, forty while it joins.
    """

    def __init__(self, folder: Path, channel: str) -> None:
        self._folder = folder
        self._channel = channel
        self._keys: dict[str, array[int]] = {}

    def add(self, subdir: str, sha256: bytes | None) -> None:
        keys = self._keys.setdefault(subdir, array("Q"))
        if sha256:
            keys.append(int.from_bytes(sha256[:_KEY], "big"))

    def keep(self, *, now: float) -> int:
        """How many packages were new. `now`: seconds since the epoch.

        Two who look at once: the later one wins; what only the other saw is seen the next time.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        return sum(
            _join(path_of(self._folder, self._channel, subdir), sorted(keys), int(now // 60))
            for subdir, keys in self._keys.items()
        )


def _join(path: Path, fresh: Iterable[int], minute: int) -> int:
    """Write the old entries and the new ones to a new file, in one pass over both."""
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
    """Reads what looks have kept; files are mapped when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[tuple[str, str], _File | None] = {}

    def sighting(self, channel: str, subdir: str, sha256: str) -> Sighting | None:
        """None for what was not there when we last looked, and for channels nobody looks at."""
        if not sha256:
            return None
        key = (channel, subdir)
        if key not in self._files:
            baseline, size, content = _read(path_of(self._folder, channel, subdir))
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
    """The baseline (None where there is no such file), and the bytes."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size >= _HEAD.size:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            magic, baseline = _HEAD.unpack(content[: _HEAD.size])
            if magic == _MAGIC:
                return int(baseline), size - (size - _HEAD.size) % _ENTRY.size, content
            content.close()
    return None, 0, b""
