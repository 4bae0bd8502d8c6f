"""Intersection of conda version requirements: whether two can hold for one version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rattler import Version
from rattler.exceptions import InvalidVersionError

# Above all versions that start with 3, below all that start with 4: `3post` and the largest number
# that rattler reads. (A post release is the largest thing that can follow a number.)
_LAST = f"post{2**64 - 1}"
#: Number of alternatives above which a requirement counts as undecidable.
_MAX_RANGES = 64
_ATOM = re.compile(r"\s*(==|!=|~=|>=|<=|=|>|<)?\s*([0-9A-Za-z_.!+-]+?)(\.?\*)?\s*")
_NUMBER_LAST = re.compile(r"(.*?)(\d+)([^0-9.!]*)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Versions between two bounds, in conda's order; None means unbounded."""

    low: Version | None = None
    high: Version | None = None
    low_in: bool = True
    high_in: bool = True

    def meets(self, other: Range) -> Range:
        """Return the intersection, which may be empty."""
        low, low_in = self.low, self.low_in
        if other.low is not None and (low is None or other.low >= low):
            low_in = other.low_in and (low_in or low is None or other.low > low)
            low = other.low
        high, high_in = self.high, self.high_in
        if other.high is not None and (high is None or other.high <= high):
            high_in = other.high_in and (high_in or high is None or other.high < high)
            high = other.high
        return Range(low=low, high=high, low_in=low_in, high_in=high_in)

    @property
    def empty(self) -> bool:
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (
            self.low == self.high and not (self.low_in and self.high_in)
        )


_ALL = (Range(),)


def disjoint(first: str, second: str) -> bool:
    """True only if no version satisfies both; False also if it cannot be decided."""
    return not any(
        not a.meets(b).empty for a in possible_ranges(first) for b in possible_ranges(second)
    )


def impossible(requirement: str) -> bool:
    """True only if no version satisfies `requirement`."""
    return not possible_ranges(requirement)


@lru_cache(maxsize=4096)
def possible_ranges(requirement: str) -> tuple[Range, ...]:
    """Return ranges that include every version that satisfies `requirement`, and maybe more."""
    try:
        tokens = list(_tokens(requirement))
        ranges, rest = _alternatives(tokens)
    except (ValueError, InvalidVersionError):
        return _ALL
    return _ALL if rest or len(ranges) > _MAX_RANGES else ranges


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        if text[position] in "(),|":
            yield text[position]
            position += 1
        elif text[position].isspace():
            position += 1
        elif atom := re.compile(r"[^(),|]+").match(text, position):
            yield atom[0].strip()
            position = atom.end()


def _alternatives(tokens: list[str]) -> tuple[tuple[Range, ...], list[str]]:
    """`a,b|c`: the comma binds more tightly than the bar."""
    ranges, rest = _conjunction(tokens)
    while rest and rest[0] == "|":
        more, rest = _conjunction(rest[1:])
        ranges += more
    return ranges, rest


def _conjunction(tokens: list[str]) -> tuple[tuple[Range, ...], list[str]]:
    ranges, rest = _operand(tokens)
    while rest and rest[0] == ",":
        more, rest = _operand(rest[1:])
        met = (a.meets(b) for a in ranges for b in more)
        ranges = tuple(part for part in met if not part.empty)
        if len(ranges) > _MAX_RANGES:
            raise ValueError(tokens)
    return ranges, rest


def _operand(tokens: list[str]) -> tuple[tuple[Range, ...], list[str]]:
    if not tokens:
        raise ValueError(tokens)
    if tokens[0] == "(":
        ranges, rest = _alternatives(tokens[1:])
        if not rest or rest[0] != ")":
            raise ValueError(tokens)
        return ranges, rest[1:]
    return (_atom(tokens[0]),), tokens[1:]


def _atom(text: str) -> Range:
    match = _ATOM.fullmatch(text)
    if match is None:
        return Range()  # a glob, a regular expression, or unknown: any version is possible
    operator, written, star = match.groups()
    if operator == "!=":
        return Range()
    if operator == "~=":
        low = Version(written)
        return _prefix(written.rpartition(".")[0]).meets(Range(low=low))
    if operator == "=" or (star and operator in (None, "==")):
        return _prefix(written)
    version = Version(written)
    if operator in (None, "=="):
        return Range(low=version, high=version)
    if operator.startswith(">"):
        return Range(low=version, low_in=operator == ">=")
    return Range(high=version, high_in=operator == "<=")


def _prefix(written: str) -> Range:
    """Return the range of versions that start with `written`: `1.24`, `1.24.3`, not `1.240`."""
    if "+" in written or "-" in written or "_" in written:
        return Range()
    epoch, mark, release = written.rpartition("!")
    match = _NUMBER_LAST.fullmatch(release)
    if match is None:
        return Range()
    before, number, _ = match.groups()
    if before and not re.fullmatch(r"(?:\d+\.)+", before):
        return Range()  # letters in the middle: 1.0rc1.*
    parts = [int(part) for part in before.split(".") if part] + [int(number)]
    start = f"{epoch}{mark}"
    high = Version(start + ".".join(map(str, parts)) + _LAST)
    while parts and parts[-1] == 0:
        parts.pop()  # 1.0.* holds 1 too
    if not parts:
        return Range(high=high)
    parts[-1] -= 1
    return Range(low=Version(start + ".".join(map(str, parts)) + _LAST), high=high, low_in=False)
