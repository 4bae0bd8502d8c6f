"""Consistent copies of the database while it is used: SQLite's online backup, pg_dump."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings

from condastore.cli.errors import CommandError, Status

SQLITE, POSTGRESQL = "sqlite", "postgresql"
#: Name of the copy in a snapshot, by the kind of the database.
NAMES = {SQLITE: "db.sqlite3", POSTGRESQL: "database.dump"}
BLOBS = "SELECT sha256, size FROM environments_blob WHERE damaged_at IS NULL ORDER BY sha256"
MIGRATIONS = "SELECT app, name FROM django_migrations ORDER BY app, name"
Rows = Callable[[str], Iterator[Any]]


def kind() -> str:
    return SQLITE if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3") else POSTGRESQL


@contextlib.contextmanager
def copied(to: Path) -> Iterator[Rows]:
    """Copy the database into the folder `to`; yields how to read rows of just that state."""
    with _copied_sqlite(to) if kind() == SQLITE else _copied_postgresql(to) as rows:
        yield rows


def size_bytes() -> int:
    """About how large the copy becomes."""
    from django.db import connection

    if kind() == SQLITE:
        return Path(settings.DATABASES["default"]["NAME"]).stat().st_size
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        (size,) = cursor.fetchone()
    return int(size)


# --- SQLite ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _copied_sqlite(to: Path) -> Iterator[Rows]:
    path = to / NAMES[SQLITE]
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    source = sqlite3.connect(f"file:{settings.DATABASES['default']['NAME']}?mode=ro", uri=True)
    with contextlib.closing(source), contextlib.closing(sqlite3.connect(path)) as copy:
        # In one step: writers go on in the write-ahead log, and do not make it begin again.
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode=DELETE")
        (said,) = copy.execute("PRAGMA quick_check").fetchone()
        if said != "ok":
            raise CommandError(
                f"The copy of the database is damaged: {said}.",
                status=Status.FAILED,
                code="damaged",
                where=str(settings.DATABASES["default"]["NAME"]),
                hint="Run `PRAGMA integrity_check` on the database.",
            )
        yield lambda query: copy.execute(query)


# --- PostgreSQL -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _copied_postgresql(to: Path) -> Iterator[Rows]:
    """pg_dump and our own reads see one snapshot."""
    from django.db import connection, transaction

    path = to / NAMES[POSTGRESQL]
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SELECT pg_export_snapshot()")
            (snapshot,) = cursor.fetchone()
        command = ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
        _run("pg_dump", [*command, f"--file={path}"])
        path.chmod(0o600)

        def rows(query: str) -> Iterator[Any]:
            with connection.cursor() as cursor:
                cursor.execute(query)
                yield from cursor

        yield rows


def load_postgresql(dump: Path, *, replace: bool) -> None:
    """Load a dump in one transaction: all of it, or nothing."""
    clean = ["--clean", "--if-exists"] if replace else []
    database = _connection()["PGDATABASE"]
    options = ["--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error"]
    _run("pg_restore", [*options, *clean, f"--dbname={database}", str(dump)])


def _connection() -> dict[str, str]:
    """How libpq's programs reach the database; never as arguments, which others can see."""
    database: dict[str, Any] = dict(settings.DATABASES["default"])
    names = {"HOST": "PGHOST", "PORT": "PGPORT", "USER": "PGUSER", "PASSWORD": "PGPASSWORD"}
    found = {theirs: str(database[ours]) for ours, theirs in names.items() if database.get(ours)}
    for option, value in (database.get("OPTIONS") or {}).items():
        if option.startswith("ssl") or option == "service":
            found[f"PG{option.upper()}"] = str(value)
    return found | {"PGDATABASE": str(database["NAME"])}


def _run(program: str, arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [find_program(program), *arguments],
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"} | _connection(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise CommandError(
            f"{program} failed: {lines[0]}",
            status=Status.FAILED,
            code="unavailable",
            hint="Check CONDASTORE_DATABASE_URL. The program must be as new as the server.",
        )


def find_program(name: str) -> str:
    """The newest of PostgreSQL's client programs on this machine."""
    found = {Path(path) for path in (shutil.which(name),) if path}
    found |= set(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found:
        raise CommandError(
            f"{name} is not installed.",
            status=Status.USAGE,
            code="not-installed",
            hint="Install PostgreSQL's client programs (`apt install postgresql-client`), as new "
            "as the server.",
        )
    return str(max(found, key=_version))


def _version(program: Path) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"(\d+)[.\d]*\s*(?:\(.*\))?\s*$", said.stdout.strip())
    return int(match.group(1)) if match else 0
