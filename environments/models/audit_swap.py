"""Append an audit event with one statement: compare-and-swap of the head, and insert.

Nothing changes if the head is not the expected one. One statement is one transaction and one round
trip, so the head is never locked while this process computes.

On PostgreSQL it is an update and an insert in one `WITH`. On SQLite it is an insert into a
temporary view of the connection, whose trigger does both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from django.apps import apps
from django.db import IntegrityError, OperationalError, connections
from django.db.models import Model

from environments.domain.audit_checkpoints import HeadState

VIEW = "condastore_audit_append"
#: What the trigger says where the head has moved.
_MOVED = "audit head has moved"
_HEAD = ("counter", "position", "digest", "cut_position", "cut_digest", "seal")


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedHead:
    """The head of the log, and its seal."""

    state: HeadState
    seal: str

    @property
    def values(self) -> tuple[int | str, ...]:
        """In the order of `_HEAD`."""
        return (*self.state.covered, self.seal)


def swap(before: SealedHead, after: SealedHead, event: Model, *, using: str) -> bool:
    """Append `event` if the head is still `before`, and make `after` the head; False if not."""
    connection: Any = connections[using]
    fields = event._meta.concrete_fields
    values = [
        field.get_db_prep_save(field.pre_save(event, True), connection)
        for field in fields
        if not field.primary_key
    ]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(_with_update(), [*after.values, *before.values, *values])
            return bool(cursor.rowcount == 1)
        try:
            _insert(cursor, [*before.values, *after.values, *values])
        except IntegrityError as error:
            if _MOVED in str(error):
                return False
            raise
        return True


def forget(*, using: str = "default", **kwargs: Any) -> None:
    """Drop what a connection to SQLite has for `swap`: a migration may replace the tables."""
    connection = connections[using]
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            cursor.execute(f"DROP VIEW IF EXISTS temp.{VIEW}")


def _insert(cursor: Any, values: list[Any]) -> None:
    names = [*(f"of_{name}" for name in _HEAD), *(f"to_{name}" for name in _HEAD), *_columns()]
    marks = ", ".join(["%s"] * len(names))
    insert = f"INSERT INTO {VIEW} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608  # nosec B608
    try:
        cursor.execute(insert, values)
    except OperationalError as error:
        if f"no such table: {VIEW}" not in str(error):
            raise
        for statement in _view_and_trigger(names):
            cursor.execute(statement)
        cursor.execute(insert, values)


def _tables() -> tuple[str, str]:
    event, head = (apps.get_model("environments", name) for name in ("AuditEvent", "AuditHead"))
    return head._meta.db_table, event._meta.db_table


@cache
def _columns() -> tuple[str, ...]:
    fields = apps.get_model("environments", "AuditEvent")._meta.concrete_fields
    return tuple(f'"{field.column}"' for field in fields if not field.primary_key)


@cache
def _with_update() -> str:
    # The names are the models'; values are parameters.
    head, events = _tables()
    moved = ", ".join(f"{name} = %s" for name in _HEAD)
    same = " AND ".join(f"{name} = %s" for name in _HEAD)
    columns = ", ".join(_columns())
    marks = ", ".join(["%s"] * len(_columns()))
    return (
        f"WITH moved AS (UPDATE {head} SET {moved} WHERE id = 1 AND {same} RETURNING 1) "  # noqa: S608  # nosec B608
        f"INSERT INTO {events} ({columns}) SELECT {marks} FROM moved"
    )


def _view_and_trigger(names: list[str]) -> tuple[str, str]:
    head, events = _tables()
    nothing = ", ".join(f"NULL AS {name}" for name in names)
    moved = ", ".join(f"{name} = NEW.to_{name}" for name in _HEAD)
    same = " AND ".join(f"{name} = NEW.of_{name}" for name in _HEAD)
    columns = ", ".join(_columns())
    new = ", ".join(f"NEW.{name}" for name in _columns())
    trigger = (
        f"CREATE TEMP TRIGGER {VIEW} INSTEAD OF INSERT ON {VIEW} BEGIN "  # noqa: S608  # nosec B608
        f"UPDATE {head} SET {moved} WHERE id = 1 AND {same}; "
        f"SELECT RAISE(ABORT, '{_MOVED}') WHERE changes() = 0; "
        f"INSERT INTO {events} ({columns}) VALUES ({new}); END"
    )
    return f"CREATE TEMP VIEW {VIEW} AS SELECT {nothing}", trigger
