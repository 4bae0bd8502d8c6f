"""Django's database cache, which raises when the database cannot be written.

Django's own returns False for every error of the database. A limit of attempts takes that for a
limit that is used up, and people read "too many attempts" while SQLite is merely locked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.cache.backends import db
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.db import connections, router

from condastore.outages import DATABASE_ERRORS


class DatabaseCache(db.DatabaseCache):
    def _base_set(self, mode: str, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT) -> Any:
        outages: list[BaseException] = []

        def watched(execute: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return execute(*arguments)
            except DATABASE_ERRORS as error:
                outages.append(error)
                raise

        wrappers = connections[router.db_for_write(self.cache_model_class)].execute_wrappers
        wrappers.insert(0, watched)  # outermost: around the queue of SQLite's writers
        try:
            done = super()._base_set(mode, key, value, timeout)  # type: ignore[misc]
        finally:
            wrappers.remove(watched)
        if outages and done is False:
            raise outages[-1]
        return done
