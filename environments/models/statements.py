"""Subqueries whose SQL text is compiled once per process.

Django compiles a queryset anew for each request, and for conditions of rights that takes many times
longer than the database needs to answer them. The text of such a condition depends on the kind of
right only; what differs between requests are its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.db.models.expressions import RawSQL

#: Stand-ins in the querysets that are compiled; no row has such a key or name.
_KEY, _WORD = -(2**62), "\x01{}"
#: Statements that are remembered: one per kind of right, and per number of names of a token.
_MOST = 512

_compiled: dict[tuple[Hashable, ...], tuple[str, tuple[Any, ...]]] = {}


def subquery(
    kind: tuple[Hashable, ...],
    build: Callable[[Any, Sequence[str] | None], QuerySet[Any, Any]],
    *,
    key: int,
    words: Sequence[str] | None = None,
) -> RawSQL:
    """Return the subquery that `build` describes, with `key` and `words` as its parameters.

    Args:
        kind: what its text depends on, beside the number of `words`.
        build: makes the queryset for a key and words; called once for each kind.
    """
    known = (kind, connection.vendor, None if words is None else len(words))
    found = _compiled.get(known)
    if found is None:
        marks = None if words is None else [_WORD.format(number) for number in range(len(words))]
        sql, parameters = build(_KEY, marks).query.sql_with_params()
        if len(_compiled) >= _MOST:
            _compiled.clear()
        found = _compiled[known] = (sql, tuple(parameters))
    sql, parameters = found
    values: Mapping[Any, Any] = {
        _KEY: key,
        **{_WORD.format(number): word for number, word in enumerate(words or ())},
    }
    return RawSQL(sql, [values.get(one, one) for one in parameters])  # noqa: S611 - Django's text
