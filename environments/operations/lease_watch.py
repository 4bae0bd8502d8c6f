"""Detection of lost workers by the scheduler's own monotonic clock.

A lease that is over by the wall clock does not prove that its worker is gone: the clock may have
been set, or the database may have been away, so that nobody could renew. A worker is lost where its
lease is over *and* the scheduler has seen it unchanged for longer than a living worker ever leaves
it. As a scheduler watches all leases all the time, this delays nothing in normal operation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime, timedelta
from typing import Any

#: (token, end) of a lease: a renewal changes the end, another attempt the token.
Seen = tuple[int, datetime]


class LeaseWatch:
    """How long each lease has stayed unchanged while the scheduler was looking."""

    def __init__(
        self,
        *,
        lease: timedelta,
        interval: timedelta,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lease`: life of a lease, renewed after a third of it; `interval`: between two rounds."""
        self._enough = 2 / 3 * lease.total_seconds()
        # Time in which nobody looked hardly counts: the database may have been away for all.
        self._most = max(lease.total_seconds() / 4, 1.5 * interval.total_seconds())
        self._clock = clock
        self._last: dict[str, float] = {}
        self._known: dict[str, dict[Hashable, tuple[Seen, float]]] = {}

    def observe(self, kind: str, leases: Mapping[Any, Seen]) -> None:
        """Take note of all leases of one kind of row, by key."""
        now = self._clock()
        passed = min(now - self._last.get(kind, now), self._most)
        before = self._known.get(kind, {})
        self._last[kind] = now
        self._known[kind] = {
            key: (lease, before[key][1] + passed)
            if key in before and before[key][0] == lease
            else (lease, 0.0)
            for key, lease in leases.items()
        }

    def is_silent(self, kind: str, key: Hashable) -> bool:
        """Return True for a lease that a living worker would have renewed by now."""
        known = self._known.get(kind, {}).get(key)
        return known is not None and known[1] >= self._enough

    def forget(self) -> None:
        """Begin anew: the database was away, and workers have had no chance to renew."""
        self._known.clear()
        self._last.clear()
