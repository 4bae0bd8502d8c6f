"""What counts as an outage of the database: a worker waits for its end, and no attempt is spent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from django.db import OperationalError
from django.db.utils import ConnectionHandler

from condastore.databases.sqlite3.base import DatabaseWrapper, queue_of
from condastore.outages import is_outage, unavailable

pytestmark = pytest.mark.django_db  # a database of its own: access has to be allowed


@pytest.fixture
def database(tmp_path: Path) -> Iterator[DatabaseWrapper]:
    """A connection with one table, that waits for a moment only."""
    settings = {
        "ENGINE": "condastore.databases.sqlite3",
        "NAME": str(tmp_path / "db.sqlite3"),
        "OPTIONS": {"timeout": 0.05, "transaction_mode": "IMMEDIATE"},
    }
    connection = ConnectionHandler({"default": settings})["default"]
    assert isinstance(connection, DatabaseWrapper)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE words (word TEXT)")
    yield connection
    connection.close()


def _write(database: DatabaseWrapper) -> None:
    with database.cursor() as cursor:
        cursor.execute("INSERT INTO words VALUES ('one')")


def test_a_lock_that_another_program_holds_is_an_outage(database: DatabaseWrapper) -> None:
    with closing(sqlite3.connect(database.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError) as locked:
            _write(database)
        assert is_outage(locked.value)
    _write(database)


def test_a_queue_of_writers_that_takes_too_long_is_an_outage(database: DatabaseWrapper) -> None:
    queue = queue_of(str(database.settings_dict["NAME"]))
    queue.acquire(1)
    with pytest.raises(OperationalError) as locked:
        _write(database)
    queue.release()
    assert is_outage(locked.value)
    _write(database)


def test_a_statement_that_is_refused_is_no_outage(database: DatabaseWrapper) -> None:
    with pytest.raises(OperationalError) as refused, database.cursor() as cursor:
        cursor.execute("INSERT INTO missing VALUES (1)")
    assert not is_outage(refused.value)
    assert unavailable(refused.value) is None


def test_a_full_disk_is_no_outage_and_is_named(database: DatabaseWrapper) -> None:
    with database.cursor() as cursor:
        cursor.execute("PRAGMA max_page_count = 2")
        with pytest.raises(OperationalError) as full:
            cursor.execute("INSERT INTO words VALUES (hex(zeroblob(1000000)))")
    assert not is_outage(full.value)
    answer = unavailable(full.value)
    assert answer is not None
    assert str(answer) == "The disk of the database is full."
