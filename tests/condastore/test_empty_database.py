"""An empty database gets its tables at once, and they are those of the migrations."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.migrated import PROJECT, copy_database

PREPARE = """
import django
django.setup()
from condastore.empty_database import create_tables
print(create_tables())
"""


def prepare(folder: Path) -> str:
    retained = {
        key: value for key, value in os.environ.items() if not key.startswith("CONDASTORE_")
    }
    environ = {"DJANGO_SETTINGS_MODULE": "condastore.settings", "CONDASTORE_DATA": str(folder)}
    said = subprocess.run(
        [sys.executable, "-c", PREPARE],
        env=retained | environ,
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    return said.stdout.strip()


def schema(path: Path) -> dict[str, list[str]]:
    """{table or index: its parts, sorted}: the order of columns is that of their migrations."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: sorted(_parts(sql)) for name, sql in rows}


def _parts(sql: str) -> list[str]:
    """Split at the commas that stand in the outermost parentheses only."""
    head, _, body = sql.partition("(")
    parts, depth, start = [head], 0, 0
    for found in re.finditer(r"'[^']*'|[(),]", body):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if found[0] == "," and not depth:
            parts.append(body[start : found.start()].strip())
            start = found.end()
    return [*parts, body[start:].strip().removesuffix(")")] if "TABLE" in head else [sql]


#: What `migrate` leaves in the rows, without the numbers that they happen to have.
ROWS = {
    "django_migrations": "app, name",
    "django_content_type": "app_label, model",
    "auth_permission": "codename, name, (SELECT model FROM django_content_type c"
    " WHERE c.id = content_type_id)",
}


def rows(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: sorted(
                database.execute(f'SELECT {ROWS.get(name, "*")} FROM "{name}"').fetchall()  # noqa: S608
            )
            for (name,) in names
            if name != "sqlite_sequence"
        }


@pytest.fixture
def created(tmp_path: Path) -> Path:
    assert prepare(tmp_path) == "True"
    return tmp_path / "db.sqlite3"


def test_the_tables_and_rows_are_those_of_the_migrations(created: Path, tmp_path: Path) -> None:
    """Fails where a migration does what the final state of the models does not show."""
    migrated = tmp_path / "migrated.sqlite3"
    copy_database(migrated)
    assert schema(created) == schema(migrated)
    assert rows(created) == rows(migrated)


def test_a_database_with_tables_is_left_to_the_migrations(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db.sqlite3")) as database:
        database.execute("CREATE TABLE mine (id integer)")
    assert prepare(tmp_path) == "False"
    assert schema(tmp_path / "db.sqlite3").keys() == {"mine"}
