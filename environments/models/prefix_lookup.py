"""Which text begins so? `name__begins`, answered from an index by every database."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.lookups import StartsWith

#: After all that begins alike.
_LAST = "\U0010ffff"


class Begins(StartsWith):
    """As `startswith`; SQLite's LIKE leaves indexes alone, because it does not look at case.

    On PostgreSQL a column needs an index of `varchar_pattern_ops`: other indexes are sorted as
    people of some language sort.
    """

    def as_sqlite(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        column, params = self.process_lhs(compiler, connection)
        given = str(self.rhs)
        return f"({column} >= %s AND {column} < %s)", [*params, given, *params, given + _LAST]


models.CharField.register_lookup(Begins, lookup_name="begins")
