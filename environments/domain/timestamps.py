"""Timestamps of packages; invalid values count as missing."""

from __future__ import annotations

from datetime import UTC, datetime

from environments.domain.lock import PlatformLock
from environments.domain.policy.subjects import in_seconds

#: Used if no package has a timestamp.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def newest(part: PlatformLock) -> datetime:
    """Return the timestamp of the newest conda package, which depends on the lock only."""
    moments = [_moment(p.timestamp) for p in part.conda if p.timestamp is not None]
    return max((moment for moment in moments if moment is not None), default=EARLIEST)


def _moment(timestamp: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(in_seconds(timestamp), UTC)
    except (ValueError, OverflowError, OSError):
        return None
