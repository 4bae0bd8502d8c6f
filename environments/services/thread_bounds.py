"""Limits on the worker threads that work other than builds may hold at the same time.

A slow server holds a thread for as long as the timeouts allow. Previews take at most half of a
worker's threads; channel indexing, mirrors and image pushes a quarter each; all together leave one
thread to builds. A worker with a single thread does one of these at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import StrEnum

from django.conf import settings


class Kind(StrEnum):
    PREVIEW = "preview"
    INDEXING = "indexing"
    MIRRORING = "mirroring"
    PUSHING = "pushing"


#: A kind may hold one in this many threads.
_SHARES = {Kind.PREVIEW: 2, Kind.INDEXING: 4, Kind.MIRRORING: 4, Kind.PUSHING: 4}


class ThreadBounds:
    """The limits of one worker."""

    def __init__(self, threads: int) -> None:
        self._together = threading.BoundedSemaphore(max(1, threads - 1))
        self._kinds = {
            kind: threading.BoundedSemaphore(max(1, threads // share))
            for kind, share in _SHARES.items()
        }

    @contextmanager
    def hold(self, kind: Kind) -> Iterator[bool]:
        """Hold a thread for work of this kind; yields False if its limit is reached."""
        with ExitStack() as taken:
            for bound in (self._kinds[kind], self._together):
                if not bound.acquire(blocking=False):
                    yield False
                    return
                taken.callback(bound.release)
            yield True

    def is_reached(self, kind: Kind) -> bool:
        """Return whether the limit of this kind is reached."""
        with self.hold(kind) as free:
            return not free


_bounds = ThreadBounds(settings.WORKER_THREADS)


def set_threads(threads: int) -> None:
    """Set the number of this worker's threads, before they start."""
    global _bounds
    _bounds = ThreadBounds(threads)


def hold(kind: Kind) -> AbstractContextManager[bool]:
    """Hold a thread of this worker; see `ThreadBounds.hold`."""
    return _bounds.hold(kind)


def is_reached(kind: Kind) -> bool:
    """Return whether this worker's limit for this kind is reached."""
    return _bounds.is_reached(kind)
