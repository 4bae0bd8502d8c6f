"""Private names of Django's querysets that have no public counterpart.

The only module of rows, and of what reads them, that uses such names, each with the reason.
`tests/environments/models/test_private.py` fails when a release changes one of them, and says what
to do.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Model, QuerySet


def is_loaded(rows: QuerySet[Any]) -> bool:
    """Return True if the rows were read or prefetched, so that iterating runs no statement."""
    return rows._result_cache is not None


def has_prefetches(rows: QuerySet[Any]) -> bool:
    """Return True if reading the rows runs statements for `prefetch_related` too."""
    return bool(rows._prefetch_related_lookups)  # type: ignore[attr-defined]


def prefetched(row: Model, name: str) -> Any:
    """Return the prefetched rows of the relation `name`; None if it was not prefetched."""
    return getattr(row, "_prefetched_objects_cache", {}).get(name)


def has_prefetched(row: Model) -> bool:
    """Return True if any relation of the row was prefetched."""
    return bool(getattr(row, "_prefetched_objects_cache", None))
