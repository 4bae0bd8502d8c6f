"""SQLite's backend: every change waits for its turn, is written in it, and else not at all."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, transaction
from pytest_django import DjangoDbBlocker

from condastore.databases.sqlite3.base import DatabaseWrapper, queue_of
from condastore.databases.writers import WriteQueueTimeoutError

PROCESSES, CHANGES = 3, 150
HOLD = """
import pathlib, sys
from condastore.databases.writers import WriteQueue
WriteQueue(pathlib.Path(sys.argv[1])).acquire(30)
print("held", flush=True)
sys.stdin.readline()
"""
#: Changes in every way; each statement and each commit of SQLite claims a file for itself alone.
CHANGE = """
import contextlib, os, pathlib, sys
import django
django.setup()
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from tests.condastore.test_sqlite_turns import connected

name, count = sys.argv[1], int(sys.argv[2])
alone = pathlib.Path(name + "-alone")

@contextlib.contextmanager
def claimed():
    os.close(os.open(alone, os.O_CREAT | os.O_EXCL))
    try:
        yield
    finally:
        alone.unlink()

def claiming(run, when):
    def method(self, *args):
        if not when(*args):
            return run(self, *args)
        with claimed():
            return run(self, *args)
    return method

changes = lambda sql, *_: "rows" in sql and not sql.startswith("SELECT")
BaseDatabaseWrapper.commit = claiming(BaseDatabaseWrapper.commit, lambda: True)
SQLiteCursorWrapper.execute = claiming(SQLiteCursorWrapper.execute, changes)
SQLiteCursorWrapper.executemany = claiming(SQLiteCursorWrapper.executemany, changes)
print("ready", flush=True)
sys.stdin.readline()
with connected(pathlib.Path(name)) as rows, rows.cursor() as cursor:
    for number in range(count):
        cursor.execute("INSERT INTO rows (number) VALUES (%s) RETURNING id", [number])
        cursor.fetchone()
        cursor.executemany("INSERT INTO rows (number) VALUES (%s)", [[number], [number]])
        cursor.execute("WITH one AS (SELECT 1) INSERT INTO rows SELECT NULL, 1 FROM one")
        with transaction.atomic(using=rows.alias):
            cursor.execute("UPDATE rows SET number = number + 1 WHERE id = 1")
        cursor.execute("SELECT count(*) FROM rows")
        cursor.fetchone()
"""
WRITES = {
    "insert": "INSERT INTO rows (number) VALUES (2)",
    "returning": "INSERT INTO rows (number) VALUES (2) RETURNING id",
    "with": "WITH two AS (SELECT 2 AS n) INSERT INTO rows SELECT NULL, n FROM two",
    "comment": "/* of a tool */ DELETE FROM rows",
    "update": "\n  UPDATE rows SET number = 2",
    "replace": "REPLACE INTO rows VALUES (1, 2)",
    "delete": "DELETE FROM rows",
    "schema": "CREATE INDEX number ON rows (number)",
    "vacuum": "VACUUM",
    "checkpoint": "PRAGMA wal_checkpoint(TRUNCATE)",
    "analyze": "ANALYZE",
    "exclusive": "BEGIN EXCLUSIVE",
}
READS = (
    "SELECT number FROM rows",
    "WITH one AS (SELECT number FROM rows) SELECT * FROM one",
    "PRAGMA table_info(rows)",
    "EXPLAIN DELETE FROM rows",
)


@contextmanager
def connected(path: Path, *, timeout: float = 60) -> Iterator[DatabaseWrapper]:
    """A connection of its own, as the settings configure it."""
    from django.db import connections

    from condastore.settings import SQLITE_OPTIONS

    alias = f"turns-{threading.get_ident()}"
    settings = connections["default"].settings_dict | {
        "ENGINE": "condastore.databases.sqlite3",
        "NAME": str(path),
        "OPTIONS": SQLITE_OPTIONS | {"timeout": timeout},
    }
    wrapper = DatabaseWrapper(settings, alias)
    connections[alias] = wrapper
    try:
        yield wrapper
    finally:
        wrapper.close()
        del connections[alias]


@pytest.fixture
def path(tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[Path]:
    path = tmp_path / "db.sqlite3"
    with django_db_blocker.unblock():  # the tests' database is not that of these tests
        with connected(path) as rows, rows.cursor() as cursor:
            cursor.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, number INTEGER)")
            cursor.execute("INSERT INTO rows (number) VALUES (1)")
        yield path


@contextmanager
def _running(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), process.communicate()[1].decode()
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def held(path: Path) -> Iterator[None]:
    """Another process has the turn, and does nothing with it."""
    with _running(HOLD, f"{path}-writers"):
        yield


def _numbers(path: Path) -> list[Any]:
    """What is committed, seen without our backend."""
    with closing(sqlite3.connect(path)) as rows:
        return rows.execute("SELECT number FROM rows").fetchall()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("write", WRITES)
def test_without_a_turn_nothing_is_written(path: Path, write: str) -> None:
    with connected(path, timeout=0.05) as rows, rows.cursor() as cursor:
        with pytest.raises(OperationalError, match="database is locked: others are writing"):
            cursor.execute(WRITES[write])
        assert not rows.connection.in_transaction
    assert _numbers(path) == [(1,)]


@pytest.mark.usefixtures("held")
def test_transactions_and_batches_wait_for_a_turn_too(path: Path) -> None:
    with connected(path, timeout=0.05) as rows, rows.cursor() as cursor:
        with pytest.raises(OperationalError, match="others are writing"):
            cursor.executemany("INSERT INTO rows (number) VALUES (%s)", [[2], [3]])
        with (
            pytest.raises(OperationalError, match="others are writing"),
            transaction.atomic(using=rows.alias),
        ):
            raise AssertionError("it began")
        cursor.execute("BEGIN")  # deferred: its first change waits
        with pytest.raises(OperationalError, match="others are writing"):
            cursor.execute("INSERT INTO rows (number) VALUES (2)")
        cursor.execute("COMMIT")
        rows.set_autocommit(False)
        with pytest.raises(OperationalError, match="others are writing"):
            cursor.execute("INSERT INTO rows (number) VALUES (2)")
        rows.rollback()
        rows.set_autocommit(True)
    assert _numbers(path) == [(1,)]


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("read", READS)
def test_reading_waits_for_nobody(path: Path, read: str) -> None:
    with connected(path, timeout=0.05) as rows, rows.cursor() as cursor:
        cursor.execute(read)
        assert cursor.fetchall()


@pytest.mark.parametrize("write", sorted(set(WRITES) - {"exclusive"}))
def test_when_the_turn_ends_the_change_is_committed(path: Path, write: str) -> None:
    with connected(path) as rows, rows.cursor() as cursor:
        before = _numbers(path)
        cursor.execute(WRITES[write])
        changed = _numbers(path) != before
        assert changed == (write not in {"schema", "vacuum", "checkpoint", "analyze"})
        assert not rows.connection.in_transaction
        _free(path)


def test_rows_of_a_change_are_all_there_in_their_order(path: Path) -> None:
    with connected(path) as rows, rows.cursor() as cursor:
        cursor.execute("INSERT INTO rows (number) VALUES (2), (3), (4), (5), (6) RETURNING number")
        assert cursor.fetchone() == (2,)
        assert cursor.fetchmany(2) == [(3,), (4,)]
        assert [*cursor] == [(5,), (6,)]
        assert cursor.fetchone() is None
        cursor.execute("UPDATE rows SET number = number WHERE number > 4 RETURNING number")
        assert cursor.fetchall() == [(5,), (6,)]
        assert cursor.fetchall() == cursor.fetchmany() == []
        cursor.execute("SELECT number FROM rows WHERE number > 4")
        assert [*cursor] == [(5,), (6,)]


def test_a_transaction_holds_its_turn_to_its_end(path: Path) -> None:
    with connected(path) as rows, rows.cursor() as cursor:
        with transaction.atomic(using=rows.alias):
            _taken(path)
            with transaction.atomic(using=rows.alias):
                cursor.execute("INSERT INTO rows (number) VALUES (2)")
            _taken(path)
        _free(path)
        cursor.execute("BEGIN")
        cursor.execute("SELECT number FROM rows")
        _free(path)
        cursor.execute("INSERT INTO rows (number) VALUES (3)")
        cursor.execute("SELECT number FROM rows")
        _taken(path)
        cursor.execute("COMMIT")
        _free(path)
        cursor.execute("SAVEPOINT one")
        cursor.execute("INSERT INTO rows (number) VALUES (4)")
        _taken(path)
        cursor.execute("RELEASE one")
        _free(path)
        rows.set_autocommit(False)
        cursor.execute("INSERT INTO rows (number) VALUES (5)")
        _taken(path)
        rows.commit()
        _free(path)
        rows.set_autocommit(True)
        with pytest.raises(ZeroDivisionError), transaction.atomic(using=rows.alias):
            1 / 0  # noqa: B018
        _free(path)
        with transaction.atomic(using=rows.alias):
            rows.close()
            _free(path)
    assert _numbers(path) == [(number,) for number in range(1, 6)]


def test_processes_never_commit_at_the_same_moment(path: Path) -> None:
    with (
        _running(CHANGE, str(path), str(CHANGES)) as one,
        _running(CHANGE, str(path), str(CHANGES)) as two,
        _running(CHANGE, str(path), str(CHANGES)) as three,
    ):
        for process in (one, two, three):
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in (one, two, three):
            _, said = process.communicate()
            assert process.returncode == 0, said.decode()
    assert len(_numbers(path)) == 1 + PROCESSES * CHANGES * 4
    with closing(sqlite3.connect(path)) as rows:
        assert rows.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_who_is_interrupted_while_it_waits_hands_its_turn_on(path: Path) -> None:
    """Dramatiq raises time limits and shutdowns in the thread."""
    import ctypes

    queue, ended = queue_of(str(path)), threading.Event()
    queue.acquire(30)

    def wait() -> None:
        try:
            queue.acquire(30)
        except KeyboardInterrupt:
            ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not queue.waiting:
        pass
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
    )
    queue.release()
    thread.join()
    assert ended.is_set()
    queue.acquire(0.05)
    queue.release()


def test_a_queue_that_cannot_be_opened_lets_nobody_write(path: Path) -> None:
    Path(f"{path}-writers").unlink()
    Path(f"{path}-writers").mkdir()
    other = path.with_name("link.sqlite3")
    other.symlink_to(path)
    with connected(other) as rows, rows.cursor() as cursor:
        with pytest.raises(OperationalError, match="unable to open database file"):
            cursor.execute("DELETE FROM rows")
        cursor.execute("SELECT number FROM rows")
        assert cursor.fetchall() == [(1,)]


def _free(path: Path) -> None:
    with _running(HOLD, f"{path}-writers"):
        pass
    own = queue_of(str(path))
    own.acquire(0.05)
    own.release()


def _taken(path: Path) -> None:
    with pytest.raises(WriteQueueTimeoutError):
        queue_of(str(path)).acquire(0.05)
