"""Bounds on the threads of a worker that other work than builds holds at once.

Servers that dribble hold a thread for as long as their limits allow. Previews take at most half of
a worker's threads; reading channels for search, mirrors, and pushes to other registries a quarter
each; all together leave one to builds. A worker with a single thread does one of all these at a
time.
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


#: Of how many threads a kind may hold one.
_SHARES = {Kind.PREVIEW: 2, Kind.INDEXING: 4, Kind.MIRRORING: 4, Kind.PUSHING: 4}


class ThreadBounds:
    """The bounds of one worker."""

    def __init__(self, threads: int) -> None:
        self._together = threading.BoundedSemaphore(max(1, threads - 1))
        self._kinds = {
            kind: threading.BoundedSemaphore(max(1, threads // share))
            for kind, share in _SHARES.items()
        }

    @contextmanager
    def hold(self, kind: Kind) -> Iterator[bool]:
        """Take a thread for work of this kind; yields False where its bound is reached."""
        with ExitStack() as taken:
            for bound in (self._kinds[kind], self._together):
                if not bound.acquire(blocking=False):
                    yield False
                    return
                taken.callback(bound.release)
            yield True

    def is_reached(self, kind: Kind) -> bool:
        """Return whether no more threads may be held for work of this kind now."""
        with self.hold(kind) as free:
            return not free


_bounds = ThreadBounds(settings.WORKER_THREADS)


def set_threads(threads: int) -> None:
    """Set the number of this worker's threads, before they start."""
    global _bounds
    _bounds = ThreadBounds(threads)


def hold(kind: Kind) -> AbstractContextManager[bool]:
    """Take a thread of this worker; see `ThreadBounds.hold`."""
    return _bounds.hold(kind)


def is_reached(kind: Kind) -> bool:
    """Return whether this worker may hold no more threads for work of this kind now."""
    return _bounds.is_reached(kind)
