"""Django's database cache, which raises when the database cannot be written.

Django's own returns False for every error of the database. A limit of attempts takes that for a
limit that is used up, and people read "too many attempts" while SQLite is merely locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.cache.backends import db
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.db import connections, router

from condastore.outages import DATABASE_ERRORS


class DatabaseCache(db.DatabaseCache):
    """Raises the error of the database where Django's methods return False."""

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        with self._errors() as errors:
            super().set(key, value, timeout, version)
        if errors:
            raise errors[-1]

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        with self._errors() as errors:
            added = super().add(key, value, timeout, version)
        if errors and not added:
            raise errors[-1]
        return added

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        with self._errors() as errors:
            touched = super().touch(key, timeout, version)
        if errors and not touched:
            raise errors[-1]
        return touched

    @contextmanager
    def _errors(self) -> Iterator[list[BaseException]]:
        """Collect the errors of the statements of this thread that mean an outage."""
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
            yield outages
        finally:
            wrappers.remove(watched)
