"""Filter and order types of lists, by strawberry-django, and their limits.

A filter type has the conditions of its fields, and `AND`, `OR` and `NOT` of further filters. An
order type chooses one sort key; lists take several, most significant first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, TypeVar

import strawberry
import strawberry_django
from django.db.models import F, Model, OrderBy, Q, QuerySet
from strawberry import UNSET, Info
from strawberry.types import get_object_definition
from strawberry_django import filters as library_filters
from strawberry_django import ordering as library_ordering

from condastore.errors import InvalidInputError

T = TypeVar("T", bound=type)

#: Maximum nesting of AND, OR and NOT in one filter, and of conditions in all of it.
MAX_DEPTH, MAX_CONDITIONS = 4, 32
_COMBINATIONS = {
    "AND": "Filter that must hold too.",
    "OR": "Filter that may hold instead of the other conditions.",
    "NOT": "Filter that must not hold.",
}


@strawberry.enum(description="Direction of a sort key.")
class Direction(Enum):
    ASC = strawberry.enum_value("ASC", description="Smallest, oldest or alphabetically first.")
    DESC = strawberry.enum_value("DESC", description="Largest, newest or alphabetically last.")


def filter_type(model: type[Model], *, name: str, description: str) -> Callable[[T], T]:
    """Declare a filter of rows of `model` as strawberry-django's `filter_type` does.

    The combinations that the library adds are described, except DISTINCT, which is removed: no
    filter repeats rows, and a list of distinct rows has no cursors.
    """

    def declare(cls: T) -> T:
        found: T = strawberry_django.filter_type(model, name=name, description=description)(cls)
        definition = get_object_definition(found, strict=True)
        definition.fields = [one for one in definition.fields if one.python_name != "DISTINCT"]
        for field in definition.fields:
            if field.python_name in _COMBINATIONS:
                field.description = _COMBINATIONS[field.python_name]
        return found

    return declare


def condition(
    column: str, kind: Any, description: str, *, build: Callable[[str, Any], Q] | None = None
) -> Any:
    """Declare a condition of a filter.

    Args:
        column: lookup that must be the value, such as `namespace__name` or `at__gte`.
        kind: type of the value.
        build: makes the condition of the lookup and the value where it is another one.
    """

    def resolve(value: Any, prefix: str) -> Q:
        lookup = f"{prefix}{column}"
        return build(lookup, value) if build is not None else Q(**{lookup: value})

    resolve.__annotations__ = {"value": kind, "prefix": str, "return": Q}
    return strawberry_django.filter_field(
        resolver=resolve, description=description, resolve_value=True
    )


def sort_key(*columns: str, description: str) -> Any:
    """Declare a sort key of an order type.

    Args:
        columns: never null, so that databases agree on the order; with `-` the other direction.
    """

    def resolve(value: Direction, prefix: str) -> list[OrderBy]:
        return [_ordered(f"{prefix}{column}", value) for column in columns]

    resolve.__annotations__ = {"value": Direction, "prefix": str, "return": list[OrderBy]}
    return strawberry_django.order_field(resolver=resolve, description=description)


def _ordered(column: str, direction: Direction) -> OrderBy:
    return F(column).desc() if direction is Direction.DESC else F(column).asc()


def filtered(rows: QuerySet[Any], filters: Any, info: Info) -> QuerySet[Any]:
    """Return the rows that `filters` leaves; all of them without a filter.

    Raises:
        InvalidInputError: the filter has too many conditions.
    """
    if filters is None:
        return rows
    _check_size(filters)
    found: QuerySet[Any] = library_filters.apply(filters, rows, info)
    return found


def ordered(
    rows: QuerySet[Any], kind: type[Any], order: Sequence[Any] | None, info: Info
) -> QuerySet[Any]:
    """Return the rows in this order; as they are without one.

    Of a key that is given repeatedly the first one counts: a statement does not grow with them.
    """
    keys: dict[str, Any] = {}
    for one in order or ():
        keys.setdefault(_given(one)[0][0], one)
    if not keys:
        return rows
    found: QuerySet[Any] = library_ordering.apply_ordering(kind, list(keys.values()), info, rows)
    return found


def _given(value: Any) -> list[tuple[str, Any]]:
    """Return the names and values of the fields that an input object has."""
    fields = get_object_definition(value, strict=True).fields
    pairs = [(field.python_name, getattr(value, field.python_name)) for field in fields]
    return [(name, one) for name, one in pairs if one is not UNSET and one is not None]


def _check_size(filters: Any) -> None:
    conditions, level = 0, [filters]
    for _ in range(MAX_DEPTH):
        pairs = [pair for one in level for pair in _given(one)]
        conditions += len(pairs)
        level = [value for name, value in pairs if name in _COMBINATIONS]
        if not level:
            break
    if level or conditions > MAX_CONDITIONS:
        raise InvalidInputError(
            f"The filter has more than {MAX_CONDITIONS} conditions or {MAX_DEPTH} levels.",
            where="filters",
            hint="Combine fewer filters, or send several requests.",
        )
