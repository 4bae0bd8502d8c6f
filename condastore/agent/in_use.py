"""Folders that running processes use, read from /proc for the processes of the same user."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

#: Of a process: what it has mapped, its arguments and its variables (CONDA_PREFIX, PATH).
_TEXTS = ("maps", "cmdline", "environ")
_LINKS = ("exe", "cwd", "root")


def in_use(folders: Collection[Path], *, proc: Path = Path("/proc")) -> set[Path]:
    """Those in which a process runs or works, or of which it has a file open.

    Processes of others are seen only by root; where the system tells nothing, the answer is empty.
    """
    if not folders:
        return set()
    names = b"|".join(sorted((re.escape(os.fsencode(one)) for one in folders), reverse=True))
    pattern = re.compile(rb"(" + names + rb")(?=[/\0\n: ]|$)")
    found: set[bytes] = set()
    for process in proc.glob("[0-9]*"):
        for text in _told(process):
            found.update(pattern.findall(text))
    return {one for one in folders if os.fsencode(one) in found}


def _told(process: Path) -> Iterator[bytes]:
    """Return the paths that a process uses; it may end meanwhile, or be unreadable to this user."""
    for name in _TEXTS:
        with contextlib.suppress(OSError):
            yield (process / name).read_bytes()
    for name in _LINKS:
        with contextlib.suppress(OSError):
            yield os.fsencode((process / name).readlink())
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.fsencode(descriptor.readlink())
