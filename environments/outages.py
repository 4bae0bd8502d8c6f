"""Outages of the database: recognise one, wait until it is over, write what must not be lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from condastore.outages import AWAY

T = TypeVar("T")
#: What a database that is down or restarting raises.
DATABASE_DOWN = AWAY
#: PostgreSQL: connection failures; shut down by an administrator, a crash or a start; too many
#: connections.
_CONNECTION, _SHUTDOWNS = "08", frozenset({"57P01", "57P02", "57P03", "53300"})


def is_outage(error: BaseException) -> bool:
    """Return True where the database was away: not where it refused a statement (a full disk)."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return False
    cause = error.__cause__
    if cause is None or not hasattr(cause, "sqlstate"):
        return "locked" in str(error)  # SQLite: another process holds it
    state: str | None = cause.sqlstate
    return state is None or state.startswith(_CONNECTION) or state in _SHUTDOWNS


def persist(write: Callable[[], T], *, patience: timedelta | None = None) -> T:
    """Do `write`, again where the database cannot be reached, for as long as a build may take.

    Whoever has nothing left to do but to write this down waits for the database: a result that is
    thrown away would count as a lost worker.
    """
    for attempt in Retrying(
        retry=retry_if_exception_type(DATABASE_DOWN),
        stop=stop_after_delay((patience or settings.BUILD_TIME_LIMIT).total_seconds()),
        wait=wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            try:
                return write()
            except DATABASE_DOWN:
                if not connection.in_atomic_block:
                    connection.close()
                raise
    raise AssertionError("unreachable")
