"""A SQLite database with all tables and no rows: made once for the code as it is, then copied.

Migrating an empty database takes ten seconds of a processor, for each run of the tests and each
system that one starts; `tests/condastore/test_up.py` starts from nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
KEPT = PROJECT / ".cache" / "databases"


def put_database(data: Path) -> None:
    """Give the new data folder `data` a migrated database."""
    data.mkdir(parents=True, exist_ok=True)
    copy_database(data / "db.sqlite3")


def copy_database(path: Path) -> None:
    shutil.copyfile(_migrated(), path)


def _migrated() -> Path:
    path = KEPT / f"{_digest()}.sqlite3"
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two that want it at once, one makes it
        if path.exists():
            return path
        with tempfile.TemporaryDirectory() as folder:
            environ = {k: v for k, v in os.environ.items() if not k.startswith("CONDASTORE_")}
            subprocess.run(
                [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
                env=environ | {"CONDASTORE_DATA": folder},
                cwd=PROJECT,
                check=True,
            )
            partial = Path(shutil.copy(Path(folder) / "db.sqlite3", KEPT / f".{os.getpid()}"))
        partial.replace(path)
    return path


def _digest() -> str:
    """Of what makes the tables."""
    files = sorted(PROJECT.glob("*/migrations/*.py"))
    known = [path.read_bytes() for path in files]
    known += [version(name).encode() for name in ("django", "django-allauth", "django-guardian")]
    # The list of applications says which other migrations there are.
    settings = (PROJECT / "condastore" / "settings.py").read_text()
    known.append(settings.partition("INSTALLED_APPS = [")[2].partition("]")[0].encode())
    return hashlib.sha256(b"\0".join(known)).hexdigest()[:16]
