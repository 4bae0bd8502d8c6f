"""A SQLite database with all tables and no rows: made once for the code as it is, then copied.

Migrating an empty database takes seconds of a processor, for each system that a test starts;
`tests/condastore/test_up.py` starts from nothing.
"""

from __future__ import annotations

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
    shutil.copyfile(_migrated(), data / "db.sqlite3")


def _migrated() -> Path:
    path = KEPT / f"{_digest()}.sqlite3"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
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
    known = [*(path.read_bytes() for path in files), version("django").encode()]
    # The list of applications says which other migrations there are.
    known.append((PROJECT / "condastore" / "settings.py").read_bytes())
    return hashlib.sha256(b"\0".join(known)).hexdigest()[:16]
