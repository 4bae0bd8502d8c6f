"""Stamp of a built channel: complete, and built by this kit from these parts.

A channel is built beside its folder and renamed into place, so that a folder either holds a whole
channel or none. The stamp in it names what it was made by; a channel with the same stamp is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

STAMP_FILE = ".complete.json"

Stamp = Mapping[str, str]


class ForeignFolderError(RuntimeError):
    """The folder holds something else than a channel of this kit, which must not be removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is not empty and holds no channel made here; name another.")


@cache
def kit_version() -> str:
    """A digest of the kit's sources, without its tests."""
    folder = Path(__file__).parent
    sources = [*folder.glob("*.py"), *folder.glob("*.toml")]
    digest = hashlib.sha256()
    for path in sorted(path for path in sources if not path.name.startswith("test_")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def read_stamp(channel: Path) -> Stamp | None:
    """The stamp of a complete channel; None where there is none."""
    path = channel / STAMP_FILE
    try:
        stamp: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return stamp


def ensure_channel(channel: Path, stamp: Stamp, build: Callable[[Path], None]) -> bool:
    """Make `channel` with `build`, unless it is there with the same stamp; say if it was made.

    Two processes may ask for the same channel at once: one makes it, the other waits for it.
    """
    if read_stamp(channel) == stamp:
        return False
    channel.parent.mkdir(parents=True, exist_ok=True)
    with _locked(channel.with_name(f".{channel.name}.lock")):
        if read_stamp(channel) == stamp:
            return False
        if channel.exists() and read_stamp(channel) is None and any(channel.iterdir()):
            raise ForeignFolderError(channel)
        partial = channel.with_name(f".{channel.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            (partial / STAMP_FILE).write_text(json.dumps(dict(stamp), indent=1) + "\n")
            shutil.rmtree(channel, ignore_errors=True)
            partial.rename(channel)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
