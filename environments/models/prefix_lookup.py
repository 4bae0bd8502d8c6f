"""Lookup `name__begins`: prefix search that uses an index on every database."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.lookups import StartsWith

#: Sorts after every string with the same prefix.
_LAST = "\U0010ffff"


class Begins(StartsWith):
    """Like `startswith`; SQLite's LIKE ignores case and therefore cannot use an index.

    On PostgreSQL the column needs an index with `varchar_pattern_ops`, as other indexes are sorted
    by the rules of a language.
    """

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        column, params = self.process_lhs(compiler, connection)
        given = str(self.rhs)
        return f"({column} >= %s AND {column} < %s)", [*params, given, *params, given + _LAST]


models.CharField.register_lookup(Begins, lookup_name="begins")
