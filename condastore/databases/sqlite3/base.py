"""Django's SQLite backend, whose writers queue (condastore.databases.writers).

Every statement that is not known to only read runs in a turn: changes outside of transactions,
schema changes, VACUUM, checkpoints. A transaction holds its turn from BEGIN IMMEDIATE (or, where it
began deferred, from its first change) until it has ended, and a statement outside of transactions
until its change is committed: the rows of `... RETURNING` are fetched at once, because SQLite
commits after the last of them. A statement that gets no turn in time raises OperationalError, and
nothing is written. Automatic checkpoints are part of a commit. The checkpoint of the last
connection that is closed runs under SQLite's own exclusive lock of the file, which no connection
gets while others are open.

So two connections of this installation never commit or checkpoint at the same moment. That is what
the WAL-reset race of SQLite before 3.51.3 needs to corrupt a database. A program that writes to the
file by itself, such as the `sqlite3` shell, does not queue.
"""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import ProgrammingError
from typing import Any
from urllib.parse import unquote, urlsplit

from django.db.backends.sqlite3 import base, operations
from django.db.utils import OperationalError

from condastore.databases.writers import WriteQueue, WriteQueueTimeoutError, patience_of

#: Statements that write nothing; all others wait for a turn.
_READS = re.compile(
    r"""\s*(?:
        SELECT | VALUES | EXPLAIN | SAVEPOINT | RELEASE | ROLLBACK | COMMIT | END
      | BEGIN (?! \s+ (?:IMMEDIATE|EXCLUSIVE) \b)
      | WITH \b (?! .*\b(?:INSERT|UPDATE|DELETE|REPLACE)\b)
      | PRAGMA \s+ (?:
            (?:table|index|foreign_key)_(?:list|info|xinfo|check) | table_list | foreign_keys
          | busy_timeout | cache_size | legacy_alter_table | integrity_check | quick_check
        )
    )\b""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
#: Seconds that a writer waits where the options do not say so: SQLite's own default.
_DEFAULT_TIMEOUT = 5.0
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

_queues: dict[str, WriteQueue] = {}
os.register_at_fork(after_in_child=_queues.clear)  # its parent's writers are not its own


def queue_of(name: str) -> WriteQueue:
    """The queue of this process for the database in this file."""
    if name not in _queues:
        # setdefault: two queues of one process would not exclude each other.
        _queues.setdefault(name, WriteQueue(_queue_path(name)))
    return _queues[name]


class DatabaseOperations(operations.DatabaseOperations):
    def convert_datetimefield_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Make a moment aware of its time zone; rows have several each, nearly always in UTC."""
        if type(value) is datetime and value.tzinfo is None and connection.timezone is UTC:
            return value.replace(tzinfo=UTC)
        return super().convert_datetimefield_value(value, expression, connection)


def _queue_path(name: str) -> Path | None:
    """The file whose lock the processes share; None for a database in memory."""
    if ":memory:" in name or "mode=memory" in name:
        return None
    path = Path(unquote(urlsplit(name).path) if name.startswith("file:") else name).resolve()
    return path.with_name(f"{path.name}-writers")


class Cursor(base.SQLiteCursorWrapper):
    """A cursor whose rows can be fetched ahead of those who ask for them."""

    _rows: deque[Any] | None = None

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self._rows = None
        return super().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        self._rows = None
        return super().executemany(*args, **kwargs)

    def complete(self) -> None:
        """Run the statement to its end, which is where SQLite commits it."""
        if self.description is not None:
            self._rows = deque(super().fetchall())

    def fetchone(self) -> Any:
        if self._rows is None:
            return super().fetchone()
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        if self._rows is None:
            return super().fetchmany(self.arraysize if size is None else size)
        count = min(len(self._rows), self.arraysize if size is None else size)
        return [self._rows.popleft() for _ in range(count)]

    def fetchall(self) -> list[Any]:
        if self._rows is None:
            return super().fetchall()
        rows = list(self._rows)
        self._rows.clear()
        return rows

    def __next__(self) -> Any:
        if self._rows is None:
            return super().__next__()
        if not self._rows:
            raise StopIteration
        return self._rows.popleft()


class DatabaseWrapper(base.DatabaseWrapper):
    ops_class = DatabaseOperations

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute_wrappers.append(self._in_turn)
        self._writing: WriteQueue | None = None
        self._hurried = False

    def create_cursor(self, name: str | None = None) -> Cursor:
        cursor: Cursor = self.connection.cursor(factory=Cursor)
        return cursor

    @property
    def _timeout(self) -> float:
        return float(self.settings_dict["OPTIONS"].get("timeout", _DEFAULT_TIMEOUT))

    def _in_transaction(self) -> bool | None:
        """Whether a transaction is open; None where there is no connection."""
        if self.connection is None:
            return None
        try:
            return bool(self.connection.in_transaction)
        except ProgrammingError:  # closed, in an atomic block
            return None

    def _in_turn(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        """Run a statement that may write when it is this thread's turn."""
        if self._writing is None:
            if _READS.match(sql):
                return execute(sql, params, many, context)
            self._take_turn()
        try:
            found = execute(sql, params, many, context)
            if not self._in_transaction():
                context["cursor"].cursor.complete()
        finally:
            self._give_turn()
        return found

    def _take_turn(self) -> None:
        name = str(self.settings_dict["NAME"])
        queue = queue_of(name)
        try:
            left = queue.acquire(patience_of(self._timeout))
        except WriteQueueTimeoutError:
            raise OperationalError("database is locked: others are writing") from None
        except OSError as error:  # in the words of SQLite, which condastore.startup_errors reads
            said = "unable to open database file"
            if error.errno in _READ_ONLY:
                said = "attempt to write a readonly database"
            raise OperationalError(f"{said}: {error.strerror}: {error.filename}") from error
        self._writing = queue
        # Others than ours may write, too: for them SQLite waits as long as is left.
        if self._timeout - left > 0.01:
            self._hurried = True
            self._set_busy_timeout(left)

    def _give_turn(self) -> None:
        """End the turn, unless its transaction continues."""
        if self._writing is None or self._in_transaction():
            return
        queue, self._writing = self._writing, None
        queue.release()
        if self._hurried:
            self._hurried = False
            self._set_busy_timeout(self._timeout)

    def _set_busy_timeout(self, seconds: float) -> None:
        if self._in_transaction() is not None:
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
