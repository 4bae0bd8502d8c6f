"""Parsing of `exclude-newer`: an ISO date or time, or an age such as `P7D`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from condastore.errors import InvalidInputError
from environments.domain.names import (
    printable,
)

_AGE = re.compile(r"(\d+)\s*(hours?|h|days?|d|weeks?|w|months?|years?|y)", re.IGNORECASE)
_DURATION = re.compile(r"P(?:(\d+)W|(?=\d|T\d)(?:(\d+)D)?(?:T(\d+)H)?)", re.IGNORECASE)
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "m": 30 * 24, "y": 365 * 24}
_MAX_AGE = timedelta(days=100 * 365)


def parse_exclude_newer(text: str) -> str:
    """Return "", an ISO date or time in UTC, or an age such as `P7D` or `PT12H`.

    Raises:
        InvalidInputError: `text` is neither a date, a time nor an age.
    """
    text = text.strip()
    if not text:
        return ""
    age = _AGE.fullmatch(text)
    duration = _DURATION.fullmatch(text)
    if age:
        hours = int(age[1]) * _HOURS[age[2][0].lower()]
    elif duration:
        weeks, days, rest = (int(part or 0) for part in duration.groups())
        hours = (weeks * 7 + days) * 24 + rest
    else:
        return _iso(text)
    if timedelta(hours=1) * hours > _MAX_AGE:
        raise InvalidInputError(f"The age {printable(text)} is more than 100 years.")
    return f"P{hours // 24}D" if hours % 24 == 0 else f"PT{hours}H"


def _iso(text: str) -> str:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return date.fromisoformat(text).isoformat()
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{printable(text)} is neither a date nor an age.",
            hint="Write it like 2025-01-31, 2025-01-31T12:00:00Z, '7 days' or P7D.",
        ) from error


def newest_allowed(exclude_newer: str, now: datetime) -> datetime | None:
    """Resolve the result of `parse_exclude_newer` at `now`; a date includes its whole day."""
    if not exclude_newer:
        return None
    if match := re.fullmatch(r"P(\d+)D|PT(\d+)H", exclude_newer):
        return now - timedelta(days=int(match[1] or 0), hours=int(match[2] or 0))
    moment = datetime.fromisoformat(exclude_newer)
    if len(exclude_newer) == len("2025-01-31"):
        return moment.replace(tzinfo=UTC) + timedelta(days=1)
    return moment
