"""Outages of the database: recognise one, answer it, wait until it is over.

Django raises OperationalError where a database is away, busy or full, but SQLite also where a
statement names a table or a column that does not exist. That is a fault of ours, or of an upgrade
without its migrations: it is logged with its traceback, and no client is asked to try again.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from typing import TypeVar

import structlog
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import Error, InterfaceError, OperationalError, ProgrammingError, connection
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from condastore.errors import StoreError, UnavailableError, UnexpectedError

logger = structlog.get_logger(__name__)
T = TypeVar("T")
#: What Django raises in an outage; `is_outage` and `unavailable` say whether it was one.
DATABASE_ERRORS = (OperationalError, InterfaceError)
#: Seconds after which a client may try again: `Retry-After` of each 503.
RETRY_AFTER = 10


class _Kind(Enum):
    """Cause of an outage of the database; the values are sentences for clients.

    AWAY and BUSY end by themselves; the others need an operator.
    """

    AWAY = "The database does not answer."
    BUSY = "The database is busy: more is being changed than it can write."
    FULL = "The disk of the database is full."
    READ_ONLY = "The database is read-only."
    UNUSABLE = "The database cannot be used."


#: Classes of SQLSTATE: connection failures; insufficient resources; an operator's intervention;
#: system errors. And states that are apart from their class.
_STATE_CLASSES = {"08": _Kind.AWAY, "40": _Kind.BUSY, "53": _Kind.UNUSABLE, "58": _Kind.UNUSABLE}
_STATES = {
    **dict.fromkeys(("57P01", "57P02", "57P03", "53300"), _Kind.AWAY),
    **dict.fromkeys(("55P03", "57014"), _Kind.BUSY),
    "53100": _Kind.FULL,
}
#: Primary result codes of SQLite.
_SQLITE_CODES = {
    sqlite3.SQLITE_BUSY: _Kind.BUSY,
    sqlite3.SQLITE_LOCKED: _Kind.BUSY,
    sqlite3.SQLITE_PROTOCOL: _Kind.BUSY,
    sqlite3.SQLITE_FULL: _Kind.FULL,
    sqlite3.SQLITE_READONLY: _Kind.READ_ONLY,
    sqlite3.SQLITE_IOERR: _Kind.UNUSABLE,
    sqlite3.SQLITE_CANTOPEN: _Kind.UNUSABLE,
    sqlite3.SQLITE_NOMEM: _Kind.UNUSABLE,
}
#: What our own queue of SQLite's writers raises, which has no code.
_WORDS = {
    "locked": _Kind.BUSY,
    "readonly": _Kind.READ_ONLY,
    "unable to open": _Kind.UNUSABLE,
}
#: What PostgreSQL and SQLite say of a table or column that does not exist.
_MISSING_STATES = frozenset({"42P01", "42703"})
_MISSING_WORDS = ("no such table", "no such column", "has no column named")


def _kind_of(error: BaseException) -> _Kind | None:
    """Return the cause of an outage; None if the database refused a faulty statement."""
    if not isinstance(error, DATABASE_ERRORS):
        return None
    cause = error.__cause__
    if cause is not None and hasattr(cause, "sqlstate"):
        return _kind_of_state(cause.sqlstate)
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)
        return None if code is None else _SQLITE_CODES.get(code & 0xFF)
    if isinstance(error, InterfaceError):
        return _Kind.AWAY  # Django's own: the connection is closed already
    said = str(error)
    found = (kind for words, kind in _WORDS.items() if words in said)
    return next(found, None if _names_what_is_missing(said) else _Kind.AWAY)


def _kind_of_state(state: str | None) -> _Kind | None:
    if state is None:
        return _Kind.AWAY  # the connection broke, or there never was one
    return _STATES.get(state) or _STATE_CLASSES.get(state[:2])


def is_outage(error: BaseException) -> bool:
    """Return True where the database was away or busy: not where it refused (a full disk)."""
    return _kind_of(error) in (_Kind.AWAY, _Kind.BUSY)


def unavailable(error: BaseException) -> UnavailableError | None:
    """Return the error (503) for an exception of the database; None if it is a bug."""
    kind = _kind_of(error)
    if kind is None:
        return None
    details = {"retry_after": RETRY_AFTER}
    if kind is _Kind.BUSY:
        hint = f"Try again in {RETRY_AFTER} seconds."
    elif kind is _Kind.AWAY:
        hint = "Try again in a while."
    else:
        hint = "Tell the administrators; try again when they have mended it."
    return UnavailableError(kind.value, hint=hint, details=details)


def failure(error: Exception, *, what: str) -> StoreError:
    """Return the error of an attempt that failed with `error`, not an outage; log bugs.

    Args:
        what: begins a sentence: "Build 7".
    """
    if (refused := unavailable(error)) is not None:
        logger.warning("database unusable", attempt=what, error=str(error).strip())
        return refused
    logger.error(f"{what} stopped unexpectedly", hint=migration_hint(error), exc_info=error)
    return UnexpectedError(f"{what} stopped unexpectedly.")


class PendingMigrations:
    """Whether migrations were not run. Reading the graph takes long, so the answer is reused."""

    REUSED = 5.0  # seconds

    def __init__(self) -> None:
        self._found, self._read_at = False, -math.inf
        self._guard = threading.Lock()

    def exist(self) -> bool:
        """Return whether the database is behind this version.

        Raises:
            Error: the database does not answer, or the transaction has failed.
            SynchronousOnlyOperation: this is the event loop.
        """
        from django.db.migrations.executor import MigrationExecutor

        with self._guard:
            if time.monotonic() - self._read_at >= self.REUSED:
                executor = MigrationExecutor(connection)
                self._found = bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
                self._read_at = time.monotonic()
            return self._found


_pending = PendingMigrations()


def migration_hint(error: BaseException) -> str:
    """Return what to do where a table or column is missing because migrations were not run.

    For logs: clients are not told what the installation lacks. Empty where it is something else.
    """
    if not isinstance(error, OperationalError | ProgrammingError):
        return ""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None)
    if state not in _MISSING_STATES and not _names_what_is_missing(str(error)):
        return ""
    try:
        behind = _pending.exist()
    except (Error, SynchronousOnlyOperation):
        return ""
    if not behind:
        return ""
    return (
        "The tables of the database are older than this version: an administrator has to run "
        "`condastore manage migrate`."
    )


def _names_what_is_missing(said: str) -> bool:
    return any(words in said for words in _MISSING_WORDS)


def persist(write: Callable[[], T], *, patience: timedelta | None = None) -> T:
    """Do `write`, again while the database cannot be used, for as long as a build may take.

    A worker with a finished result waits for the database: a result that is
    thrown away would count as a lost worker.
    """
    for attempt in Retrying(
        retry=retry_if_exception(lambda error: _kind_of(error) is not None),
        stop=stop_after_delay((patience or settings.BUILD_TIME_LIMIT).total_seconds()),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            try:
                return write()
            except DATABASE_ERRORS:
                if not connection.in_atomic_block:
                    connection.close()
                raise
    raise AssertionError("unreachable")
