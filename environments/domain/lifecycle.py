"""The states of a build, and the moves between them."""

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
#: QUEUED: another attempt. ARCHIVED: the end of a restore that did not work.
_GIVE_UP = frozenset({_S.FAILED, _S.CANCELLING, _S.QUEUED, _S.ARCHIVED})

MOVES: Mapping[BuildState, frozenset[BuildState]] = {
    _S.QUEUED: frozenset({_S.SOLVING, _S.FETCHING, _S.FAILED, _S.CANCELLED, _S.ARCHIVED}),
    _S.SOLVING: frozenset({_S.HELD, _S.FETCHING}) | _GIVE_UP,
    _S.HELD: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED, _S.ARCHIVED}),
    # What was decided may have changed since the solve; and some rules look into the packages.
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
#: Nothing happens to the build any more unless a person asks for it.
FINISHED = frozenset({_S.READY, _S.FAILED, _S.CANCELLED, _S.ARCHIVED})
#: A worker holds a lease in these.
RUNNING = frozenset(
    {_S.SOLVING, _S.FETCHING, _S.LINKING, _S.CHECKING, _S.PUBLISHING, _S.CANCELLING}
)
#: A build may have a prefix in these only: named while it is published, READY, or stopped between.
WITH_PREFIX = frozenset({_S.PUBLISHING, _S.READY, _S.CANCELLING})
#: Judged, approved and published once: what it holds may be given away.
SERVED = frozenset({_S.READY, _S.ARCHIVED})
CANCELLABLE = frozenset(MOVES) - FINISHED - {_S.CANCELLING}


def sources(target: BuildState) -> frozenset[BuildState]:
    """The states from which a build may come to `target`."""
    return frozenset(state for state, moves in MOVES.items() if target in moves)
