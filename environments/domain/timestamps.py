"""When were packages made, by their channels' words? A word that is no moment counts as none."""

from __future__ import annotations

from datetime import UTC, datetime

from environments.domain.lock import PlatformLock
from environments.domain.policy.subjects import in_seconds

#: Where no package says when it was made.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def newest(part: PlatformLock) -> datetime:
    """When the newest conda package was made: the same wherever and whenever it is asked."""
    moments = [_moment(p.timestamp) for p in part.conda if p.timestamp is not None]
    return max((moment for moment in moments if moment is not None), default=EARLIEST)


def _moment(timestamp: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(in_seconds(timestamp), UTC)
    except (ValueError, OverflowError, OSError):
        return None
