"""Django's SQLite backend, whose writers queue (condastore.databases.writers)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db.backends.sqlite3 import base, operations
from django.db.utils import OperationalError

from condastore.databases.writers import WriteQueue, WriteQueueTimeoutError, patience_of

_WRITES = re.compile(r"\s*(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_BEGINS = re.compile(r"BEGIN\s+(?:IMMEDIATE|EXCLUSIVE)\b", re.IGNORECASE)
#: Seconds that a writer waits where the options do not say so: SQLite's own default.
_DEFAULT_TIMEOUT = 5.0

_queues: dict[str, WriteQueue] = {}
os.register_at_fork(after_in_child=_queues.clear)  # its parent's writers are not its own


def queue_of(name: str) -> WriteQueue:
    """The queue of this process for the database in this file."""
    if name not in _queues:
        shared = not (name == ":memory:" or name.startswith("file:"))
        path = Path(name).with_name(f"{Path(name).name}-writers") if shared else None
        _queues[name] = WriteQueue(path)
    return _queues[name]


class DatabaseOperations(operations.DatabaseOperations):
    def convert_datetimefield_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Make a moment aware of its time zone; rows have several each, nearly always in UTC."""
        if type(value) is datetime and value.tzinfo is None and connection.timezone is UTC:
            return value.replace(tzinfo=UTC)
        return super().convert_datetimefield_value(value, expression, connection)


class DatabaseWrapper(base.DatabaseWrapper):
    ops_class = DatabaseOperations

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute_wrappers.append(self._in_turn)
        self._writing: WriteQueue | None = None
        self._hurried = False

    @property
    def _timeout(self) -> float:
        return float(self.settings_dict["OPTIONS"].get("timeout", _DEFAULT_TIMEOUT))

    def _in_turn(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        """Run a statement that needs the write lock when it is this thread's turn."""
        if self._writing is not None:
            return execute(sql, params, many, context)
        begins = _BEGINS.match(sql) is not None
        if not begins and (self.in_atomic_block or not _WRITES.match(sql)):
            return execute(sql, params, many, context)
        self._take_turn()
        try:
            found = execute(sql, params, many, context)
        except BaseException:
            self._give_turn()
            raise
        if not begins:
            self._give_turn()
        return found

    def _take_turn(self) -> None:
        queue = queue_of(str(self.settings_dict["NAME"]))
        patience = patience_of(self._timeout)
        try:
            left = queue.acquire(patience)
        except WriteQueueTimeoutError:
            raise OperationalError("database is locked: others are writing") from None
        self._writing = queue
        # Others than ours may write, too: for them SQLite waits as long as is left.
        if self._timeout - left > 0.01:
            self._hurried = True
            self._set_busy_timeout(left)

    def _give_turn(self) -> None:
        if (queue := self._writing) is not None:
            self._writing = None
            queue.release()
            if self._hurried:
                self._hurried = False
                self._set_busy_timeout(self._timeout)

    def _set_busy_timeout(self, seconds: float) -> None:
        if self.connection is not None:
            self.connection.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")

    def commit(self) -> None:
        try:
            super().commit()
        finally:
            self._give_turn()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self._give_turn()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._give_turn()
