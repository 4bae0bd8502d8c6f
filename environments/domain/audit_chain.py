"""Was the audit log changed afterwards? Each event's digest covers it and the digest before.

The digests are keyed: who can write to the database, but does not know the key, cannot make the
digests of a changed log. What was cut off at the end is found against the head, which is kept
apart; an older copy of events and head together is found only against a digest kept elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

#: What a digest covers, in this order; the digest before comes first.
COVERED = (
    "position",
    "at",
    "user_id",
    "username",
    "token_id",
    "address",
    "namespace_id",
    "action",
    "target",
    "changes",
    "refused",
)
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def chain_key(secret: str) -> bytes:
    return hashlib.sha256(b"condastore audit chain\0" + secret.encode()).digest()


def seal(key: bytes, before: str, covered: Iterable[Any]) -> str:
    """The digest of an event: HMAC-SHA256 over the JSON list of `before` and `covered`."""
    text = _encode([before, *covered])
    return hmac.digest(key, text.encode(), "sha256").hex()


def _is_seal(digest: str, key: bytes, before: str, covered: Iterable[Any]) -> bool:
    return hmac.compare_digest(seal(key, before, covered), digest)


def written(moment: datetime) -> str:
    """A moment as digests cover it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def plain(value: Any) -> Any:
    """`value` as every database gives it back: no fractions, no characters that it refuses."""
    if isinstance(value, Mapping):
        return {str(plain(str(key))): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in (sorted(value) if isinstance(value, set) else value)]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, datetime):
        return written(value)
    return str(value).replace("\0", "").encode(errors="replace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Where a chain begins or ends: the position of an event, and its digest."""

    position: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The first place at which the log is not as it was written."""

    position: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """`checked`: events that are as they were written, from the start on."""

    checked: int
    start: Anchor
    head: Anchor
    fault: Fault | None = None


def check(
    events: Iterable[tuple[tuple[Any, ...], str]],
    *,
    key: bytes,
    former_keys: Sequence[bytes] = (),
    start: Anchor,
    head: Anchor,
) -> Verified:
    """Walk the chain from `start` (not part of it any more) to `head`.

    Args:
        events: (what COVERED names, digest), by position, all those after `start`.
        former_keys: accepted for the oldest events, up to the first one that `key` signed. That
            one covers them all by the digest before it, and one must follow: who has a former key
            only can change nothing.
    """
    expected, before = start.position, start.digest
    keys = (key, *former_keys)
    used: int | None = None

    def at_fault(message: str) -> Verified:
        return Verified(
            checked=expected - start.position - 1,
            start=start,
            head=head,
            fault=Fault(position=expected, message=message),
        )

    for covered, digest in events:
        expected += 1
        if covered[0] != expected:
            return at_fault(f"Event {expected} is missing; event {covered[0]} comes in its place.")
        if expected > head.position:
            return at_fault(f"Event {expected} was added: the log ends at {head.position}.")
        # The key in use first, then newer ones: never an older one again.
        allowed = range(len(keys)) if used is None else (used, *range(used))
        used = next((n for n in allowed if _is_seal(digest, keys[n], before, covered)), None)
        if used is None:
            return at_fault(f"Event {expected} is not as it was written.")
        before = digest
    if expected < head.position:
        expected += 1
        return at_fault(f"Event {expected} is missing, and all that came after it.")
    if before != head.digest:
        return at_fault(f"The head of the log is not that of event {expected}.")
    if used:
        return at_fault(f"Event {expected} was signed with a former key, and none came after it.")
    return Verified(checked=expected - start.position, start=start, head=head)
