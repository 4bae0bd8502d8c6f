"""What did a remote channel list on which day? Its records with the minutes in which we saw them.

A record that changes (channels correct dependencies later) is another entry: the old one was gone
in the minute in which the new one was seen. No entry is ever changed otherwise, or dropped, so what
a day's end looked like is the same whenever it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from condastore.errors import InvalidInputError
from environments.domain.policy.subjects import in_seconds

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record of a channel; `seen` and `gone` are minutes since the epoch."""

    name: str
    file_name: str
    seen: int
    gone: int | None
    record: Record

    @classmethod
    def of_line(cls, line: list[Any]) -> Self:
        name, file_name, seen, gone, record = line
        return cls(name=name, file_name=file_name, seen=seen, gone=gone, record=record)

    def line(self) -> list[Any]:
        return [self.name, self.file_name, self.seen, self.gone, self.record]


def join(
    name: str, old: Iterable[Entry], now: Mapping[str, Record], *, minute: int
) -> Iterator[Entry]:
    """The entries of one name after a look that found `now` (by file name), in a fixed order."""
    kept: list[Entry] = []
    here: set[str] = set()
    for entry in old:
        if entry.gone is None:
            if now.get(entry.file_name) == entry.record:
                here.add(entry.file_name)
            else:
                entry = replace(entry, gone=minute)
        kept.append(entry)
    kept += [
        Entry(name=name, file_name=file_name, seen=minute, gone=None, record=record)
        for file_name, record in now.items()
        if file_name not in here
    ]
    yield from sorted(kept, key=lambda entry: (entry.file_name, entry.seen))


def shown(entries: Iterable[Entry], *, end: int | None, baseline: int) -> dict[str, Entry]:
    """Those that were listed just before the minute `end` (None: that are listed now), by file.

    Of what was there at the first look (`baseline`) it is not known since when; before that look
    only the channel's own clock counts (`indexed_timestamp`), which no publisher sets.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        if end is None:
            listed = entry.gone is None
        else:
            listed = _since(entry, baseline) < end and (entry.gone is None or entry.gone >= end)
        if listed:
            found[entry.file_name] = entry
    return dict(sorted(found.items()))


def _since(entry: Entry, baseline: int) -> float:
    indexed = entry.record.get("indexed_timestamp")
    if entry.seen > baseline or not isinstance(indexed, int | float):
        return entry.seen
    return min(entry.seen, in_seconds(indexed) / 60)


def parse_day(text: str, *, now: datetime) -> date:
    """`2026-11-01`: a day that has begun.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        day = date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None:
        raise InvalidInputError(
            "The moment of a snapshot is no day.",
            where="snapshot",
            hint="Write it like 2026-11-01; the end of that day in UTC is meant.",
        )
    if day > now.astimezone(UTC).date():
        raise InvalidInputError(
            f"{day} has not begun yet.", where="snapshot", hint="Choose a day that is over."
        )
    return day


def end_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
