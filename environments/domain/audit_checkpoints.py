"""Checkpoints of the audit log: signed statements of its head, to be stored outside the database.

The chain of digests and the sealed head show what was changed since they were written. A
database that is rolled back as a whole, or a head that is replaced by an older copy, is consistent
in itself, but contradicts a checkpoint that was stored outside.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

from condastore.errors import InvalidInputError
from environments.domain.audit_chain import seal

# Digests of events begin with the digest before: empty, or 64 hexadecimal digits.
_HEAD, _CHECKPOINT = "head", "checkpoint"
_NUMBERS = frozenset({"counter", "position", "cut_position"})
#: Number of checkpoints whose events are queried at once.
BATCH = 500
#: Longest line of a file of checkpoints, in characters.
MAX_LINE = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadState:
    """Fields covered by the seal of the head; `counter` increases with each change."""

    counter: int = 0
    position: int = 0
    digest: str = ""
    cut_position: int = 0
    cut_digest: str = ""

    @property
    def is_new(self) -> bool:
        """Whether the log has no events yet, so that its head has no seal."""
        return self == HeadState()

    @property
    def covered(self) -> tuple[int | str, ...]:
        """The fields in the order in which seals cover them."""
        return (self.counter, self.position, self.digest, self.cut_position, self.cut_digest)


def seal_head(key: bytes, head: HeadState) -> str:
    """HMAC-SHA256 over the JSON list of `"head"` and the fields of `head`."""
    return seal(key, _HEAD, head.covered)


def is_seal_of(key: bytes, head: HeadState, value: str) -> bool:
    return hmac.compare_digest(seal_head(key, head), value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of the log at one moment, signed with the audit key."""

    at: str  # UTC, ISO 8601
    counter: int
    position: int
    digest: str
    cut_position: int
    cut_digest: str
    seal: str

    @classmethod
    def of(cls, key: bytes, head: HeadState, *, at: str) -> Checkpoint:
        return cls(at=at, **asdict(head), seal=_sign(key, head, at))

    @property
    def head(self) -> HeadState:
        return HeadState(**{one.name: getattr(self, one.name) for one in fields(HeadState)})

    def is_signed_by(self, keys: Iterable[bytes]) -> bool:
        return any(hmac.compare_digest(_sign(key, self.head, self.at), self.seal) for key in keys)

    def line(self) -> str:
        """One line of JSON, without a line break."""
        return json.dumps({"audit_checkpoint": asdict(self)}, separators=(",", ":"))


def _sign(key: bytes, head: HeadState, at: str) -> str:
    return seal(key, _CHECKPOINT, [at, *head.covered])


def parse_checkpoint(line: str) -> Checkpoint:
    """Parse a `Checkpoint.line`; a prefix added by a log collector is skipped.

    Raises:
        InvalidInputError: it is not a checkpoint.
    """
    start = line.find('{"audit_checkpoint"')
    try:
        if start < 0 or len(line) > MAX_LINE:
            raise ValueError
        found, _ = json.JSONDecoder().raw_decode(line, start)
        values: dict[str, Any] = found["audit_checkpoint"]
        if set(values) != {one.name for one in fields(Checkpoint)}:
            raise ValueError
        for name, value in values.items():
            number = type(value) is int and 0 <= value < 1 << 62
            if not (number if name in _NUMBERS else isinstance(value, str)):
                raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInputError(
            "The line is not a checkpoint of the audit log.", where="anchor"
        ) from None
    return Checkpoint(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFault:
    """The first line that contradicts the log, the lines before it, or its own signature."""

    line: int  # from 1
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCheckpoints:
    checked: int  # lines that agree with the log
    newest: Checkpoint | None  # the last of them
    fault: CheckpointFault | None = None


def check_checkpoints(
    lines: Iterable[str],
    *,
    keys: Sequence[bytes],
    head: HeadState,
    digests: Callable[[Sequence[int]], Mapping[int, str]],
) -> CheckedCheckpoints:
    """Compare checkpoints, in the order in which they were stored, with the log as it is now.

    Args:
        lines: of a file of checkpoints. Empty lines are skipped.
        keys: the audit key and the former ones.
        head: of the log now, read after its events were verified.
        digests: the digests of the events at some positions.
    """
    checked, previous = 0, None
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    while batch := list(islice(numbered, BATCH)):
        parsed: list[tuple[int, Checkpoint]] = []
        fault: CheckpointFault | None = None
        for number, line in batch:
            try:
                parsed.append((number, parse_checkpoint(line)))
            except InvalidInputError as error:
                fault = CheckpointFault(line=number, message=error.message)
                break
        found = digests([one.position for _, one in parsed])
        for number, one in parsed:
            if message := _objection(one, previous, keys=keys, head=head, found=found):
                fault = CheckpointFault(line=number, message=message)
                break
            checked, previous = checked + 1, one
        if fault is not None:
            return CheckedCheckpoints(checked=checked, newest=previous, fault=fault)
    return CheckedCheckpoints(checked=checked, newest=previous)


def _objection(
    one: Checkpoint,
    previous: Checkpoint | None,
    *,
    keys: Sequence[bytes],
    head: HeadState,
    found: Mapping[int, str],
) -> str:
    """Return how this checkpoint contradicts the log; empty if it does not."""
    if not one.is_signed_by(keys):
        return "It was not signed by this installation."
    if previous is not None:
        back = one.counter < previous.counter or one.position < previous.position
        forked = one.counter == previous.counter and one.head != previous.head
        if back or forked:
            return (
                f"The log was rolled back between {previous.at} (event {previous.position}) and "
                f"{one.at} (event {one.position})."
            )
    if one.position > head.position:
        return (
            f"The log ends at event {head.position}; at {one.at} it had {one.position}: its newest "
            "events were removed, or the database was rolled back."
        )
    if one.counter > head.counter:
        return f"The head of the log is older than at {one.at}: the database was rolled back."
    if one.position > head.cut_position:
        digest = found.get(one.position, "")
    elif one.position == head.cut_position:
        digest = head.cut_digest
    else:
        return ""  # pruned since
    if not hmac.compare_digest(digest, one.digest):
        return f"Event {one.position} is not the one of {one.at}: the log was rolled back."
    return ""
