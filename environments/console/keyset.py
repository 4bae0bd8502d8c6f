"""Keyset pagination of lists: pages neither skip nor repeat rows while rows are added."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import F, Model, Q, QuerySet

from condastore.errors import InvalidInputError

#: Longest cursor that is read.
MAX_CURSOR = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of an order; the last column of an order is unique.

    Attributes:
        field: lookup path of the field, such as `namespace__name`.
        kind: type of its values: `str`, `int` or `datetime`.
        descending: largest first.
        nullable: rows without a value come last.
    """

    field: str
    kind: type
    descending: bool = False
    nullable: bool = False

    def ordering(self, *, backwards: bool) -> Any:
        field = F(self.field)
        if self.descending is not backwards:
            return field.desc(nulls_first=backwards or None, nulls_last=not backwards or None)
        if not self.nullable:
            return field.asc()
        return field.asc(nulls_first=backwards or None, nulls_last=not backwards or None)

    def value(self, row: Model) -> Any:
        found: Any = row
        for name in self.field.split("__"):
            found = getattr(found, name)
        return found

    def beyond(self, value: Any, *, backwards: bool) -> Q:
        """Return the rows that follow the value, or precede it."""
        if value is None:  # nothing follows a missing value; all values precede it
            return Q(**{f"{self.field}__isnull": False}) if backwards else Q(pk__in=[])
        comparison = "lt" if self.descending is not backwards else "gt"
        found = Q(**{f"{self.field}__{comparison}": value})
        if self.nullable and not backwards:
            found |= Q(**{f"{self.field}__isnull": True})
        return found

    def equals(self, value: Any) -> Q:
        return Q(**{f"{self.field}__isnull": True} if value is None else {self.field: value})


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows of one page, with the cursors of its neighbours; "" where there is none."""

    rows: Sequence[Any]
    previous: str
    next: str


def read_page(
    rows: QuerySet[Any],
    columns: Sequence[Column],
    *,
    size: int,
    after: str = "",
    before: str = "",
) -> Page:
    """Read the page that follows the cursor `after`, or precedes the cursor `before`.

    Raises:
        InvalidInputError: a cursor is not one of this order.
    """
    backwards = bool(before) and not after
    cursor = before if backwards else after
    rows = rows.order_by(*(one.ordering(backwards=backwards) for one in columns))
    if cursor:
        rows = rows.filter(_beyond(columns, _decode(cursor, columns), backwards=backwards))
    found = list(rows[: size + 1])
    more = len(found) > size
    found = found[:size]
    if backwards:
        found.reverse()
    first, last = (_encode(columns, row) for row in (found[0], found[-1])) if found else ("", "")
    return Page(
        rows=found,
        previous=first if (more if backwards else bool(cursor)) else "",
        next=last if (backwards or more) else "",
    )


def _beyond(columns: Sequence[Column], values: Sequence[Any], *, backwards: bool) -> Q:
    found, same = Q(), Q()
    for column, value in zip(columns, values, strict=True):
        found |= same & column.beyond(value, backwards=backwards)
        same &= column.equals(value)
    return found


def _encode(columns: Sequence[Column], row: Model) -> str:
    values = [column.value(row) for column in columns]
    shown = [one.isoformat() if isinstance(one, datetime) else one for one in values]
    text = json.dumps(shown, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str, columns: Sequence[Column]) -> list[Any]:
    try:
        if len(cursor) > MAX_CURSOR:
            raise ValueError
        padded = cursor + "=" * (-len(cursor) % 4)
        values = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
        if not isinstance(values, list) or len(values) != len(columns):
            raise ValueError
        return [_typed(value, one) for value, one in zip(values, columns, strict=True)]
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            "The position in the list is not valid.",
            where="page",
            hint="Start again on the first page.",
        ) from error


def _typed(value: object, column: Column) -> Any:
    if value is None and column.nullable:
        return None
    if column.kind is datetime and isinstance(value, str):
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError(value)
        return at
    if type(value) is not column.kind or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError(value)
    if isinstance(value, str) and "\0" in value:
        raise ValueError(value)
    return value
