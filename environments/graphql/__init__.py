"""GraphQL interface: types, queries, mutations and subscriptions."""

from __future__ import annotations

import ctypes.util

from environments.domain.optional_packages import without_packages

# For its geographic types, which we have none of, strawberry_django looks for GDAL under two dozen
# names, with a compiler and a linker for each: half a second before the server starts.
_find_library = ctypes.util.find_library
ctypes.util.find_library = lambda name: None
try:
    # PostgreSQL's arrays, which no model has, bring psycopg also where the database is SQLite.
    with without_packages("django.contrib.postgres.fields"):
        import strawberry_django as strawberry_django
finally:
    ctypes.util.find_library = _find_library
