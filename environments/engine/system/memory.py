"""Memory of processes: how much one uses, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path


def private_bytes(pid: int) -> int:
    """Return the bytes of private memory of `pid`, without mapped files; 0 if unknown."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def release_free_memory() -> None:
    """Return freed memory to the system.

    glibc keeps what many threads freed: 50 MB more after each solve of a large channel.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
