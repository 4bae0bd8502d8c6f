"""Hash chain of the audit log: the digest of each event covers it and the previous digest.

The digests are keyed (HMAC): somebody who can write to the database but does not have the key
cannot compute the digests of a changed log. Removed newest events are detected by the head, which
is stored separately; an older copy of events and head together only by an external checkpoint.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

#: Fields covered by a digest, in this order, after the previous digest.
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
    """Return the digest of an event: HMAC-SHA256 over the JSON list of `before` and `covered`."""
    text = _encode([before, *covered])
    return hmac.digest(key, text.encode(), "sha256").hex()


def _is_seal(digest: str, key: bytes, before: str, covered: Iterable[Any]) -> bool:
    return hmac.compare_digest(seal(key, before, covered), digest)


def written(moment: datetime) -> str:
    """Return the form of a timestamp that digests cover."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def plain(value: Any) -> Any:
    """Return `value` as every database stores it: no fractions, no refused characters."""
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
    """One end of a chain: position and digest of an event."""

    position: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """First position at which the log was changed."""

    position: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Result of a verification; `checked` is the number of unchanged events from the start."""

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
    """Verify the chain after `start` up to `head`.

    Args:
        events: (fields of COVERED, digest) of all events after `start`, by position.
        former_keys: accepted for the oldest events, up to the first one that `key` signed. That
            event covers them all and must exist, so that a former key alone can change nothing.
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
            return at_fault(f"Event {expected} is missing; event {covered[0]} is in its place.")
        if expected > head.position:
            return at_fault(f"Event {expected} was added: the log ends at {head.position}.")
        # The key in use first, then newer keys: never back to an older one.
        allowed = range(len(keys)) if used is None else (used, *range(used))
        used = next((n for n in allowed if _is_seal(digest, keys[n], before, covered)), None)
        if used is None:
            return at_fault(f"Event {expected} was changed.")
        before = digest
    if expected < head.position:
        expected += 1
        return at_fault(f"Event {expected} and all later events are missing.")
    if before != head.digest:
        return at_fault(f"The head of the log is not that of event {expected}.")
    if used:
        return at_fault(f"Event {expected} was signed with a former key, and no event follows it.")
    return Verified(checked=expected - start.position, start=start, head=head)
