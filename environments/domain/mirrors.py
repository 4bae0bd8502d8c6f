"""History of the records of a remote channel, with the minutes in which each was listed.

A changed record (channels correct dependencies later) is a new entry; the old one ends in the
minute in which the new one was seen. Entries are never changed otherwise or removed, so the
snapshot of a day is always the same.
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
    """Update the entries of one name with the records `now` (by file name), in a fixed order."""
    retained: list[Entry] = []
    here: set[str] = set()
    for entry in old:
        if entry.gone is None:
            if now.get(entry.file_name) == entry.record:
                here.add(entry.file_name)
            else:
                entry = replace(entry, gone=minute)
        retained.append(entry)
    retained += [
        Entry(name=name, file_name=file_name, seen=minute, gone=None, record=record)
        for file_name, record in now.items()
        if file_name not in here
    ]
    yield from sorted(retained, key=lambda entry: (entry.file_name, entry.seen))


def shown(entries: Iterable[Entry], *, end: int | None, baseline: int) -> dict[str, Entry]:
    """Return the entries listed just before the minute `end` (None: now), by file name.

    It is unknown since when entries of the first read (`baseline`) were listed; before that read
    only the channel's own clock counts (`indexed_timestamp`), which publishers cannot set.
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
    """Parse a day such as `2026-11-01` that has begun.

    Raises:
        InvalidInputError: it is not a day, or is in the future.
    """
    try:
        day = date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None:
        raise InvalidInputError(
            "The date of a snapshot is not a day.",
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
