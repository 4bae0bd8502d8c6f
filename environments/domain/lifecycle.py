"""States of a build and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class BuildState(StrEnum):
    QUEUED = "QUEUED"
    SOLVING = "SOLVING"
    HELD = "HELD"  # waits for people, not for a worker
    FETCHING = "FETCHING"
    LINKING = "LINKING"
    CHECKING = "CHECKING"
    PUBLISHING = "PUBLISHING"
    READY = "READY"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    ARCHIVED = "ARCHIVED"  # keeps everything but the bytes


_S = BuildState
#: QUEUED: another attempt. ARCHIVED: a restore failed.
_GIVE_UP = frozenset({_S.FAILED, _S.CANCELLING, _S.QUEUED, _S.ARCHIVED})

MOVES: Mapping[BuildState, frozenset[BuildState]] = {
    _S.QUEUED: frozenset({_S.SOLVING, _S.FETCHING, _S.FAILED, _S.CANCELLED, _S.ARCHIVED}),
    _S.SOLVING: frozenset({_S.HELD, _S.FETCHING}) | _GIVE_UP,
    _S.HELD: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED, _S.ARCHIVED}),
    # Decisions may have changed since the solve, and some rules judge package contents.
    _S.FETCHING: frozenset({_S.HELD, _S.LINKING}) | _GIVE_UP,
    _S.LINKING: frozenset({_S.CHECKING}) | _GIVE_UP,
    _S.CHECKING: frozenset({_S.PUBLISHING}) | _GIVE_UP,
    _S.PUBLISHING: frozenset({_S.READY}) | _GIVE_UP,
    _S.READY: frozenset({_S.ARCHIVED}),
    _S.FAILED: frozenset(),
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.ARCHIVED}),
    _S.CANCELLED: frozenset(),
    _S.ARCHIVED: frozenset({_S.QUEUED}),  # restore: the same lock is linked again
}
#: Final states: the build changes only on request of a person.
FINISHED = frozenset({_S.READY, _S.FAILED, _S.CANCELLED, _S.ARCHIVED})
#: States in which a worker holds a lease.
RUNNING = frozenset(
    {_S.SOLVING, _S.FETCHING, _S.LINKING, _S.CHECKING, _S.PUBLISHING, _S.CANCELLING}
)
#: Only states in which a build may have a prefix: published, READY, or stopped in between.
WITH_PREFIX = frozenset({_S.PUBLISHING, _S.READY, _S.CANCELLING})
#: Judged, approved and published once: its contents may be served.
SERVED = frozenset({_S.READY, _S.ARCHIVED})
CANCELLABLE = frozenset(MOVES) - FINISHED - {_S.CANCELLING}


def sources(target: BuildState) -> frozenset[BuildState]:
    """Return the states from which a build may move to `target`."""
    return frozenset(state for state, moves in MOVES.items() if target in moves)
