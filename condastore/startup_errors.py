"""Named errors for what the server's commands need and do not find, with the next step.

A read-only or missing data folder, a database that is not there or lets nobody in, an object store
or a queue that does not answer: each is a sentence, never a traceback.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings

from condastore.cli.errors import CommandError, Status

#: Fault and hint by errno of a folder that cannot be written.
_FOLDER = {
    errno.EROFS: "Mount it writable, or name another folder: CONDASTORE_DATA.",
    errno.EACCES: "Let the account that runs condastore own it (chown), or name another folder: "
    "CONDASTORE_DATA.",
    errno.EPERM: "Let the account that runs condastore own it (chown), or name another folder: "
    "CONDASTORE_DATA.",
    errno.ENOSPC: "Free some space on its file system.",
    errno.EDQUOT: "Raise the disk quota of the account that runs condastore.",
    errno.ENOENT: "Mount it, or name another folder: CONDASTORE_DATA.",
    errno.ENOTDIR: "Name a folder, not a file: CONDASTORE_DATA.",
    errno.EIO: "The disk reports errors: look at `dmesg`.",
}
#: What PostgreSQL and SQLite say: pattern, what is wrong, what to do. `{0}`: the first group, only
#: in the hint, as everybody may read what is wrong (`/readyz`).
_DATABASE = (
    (
        r'database "([^"]+)" does not exist',
        "The database does not exist on its server.",
        "Create it: `createdb --owner ACCOUNT {0}`, or name another one: CONDASTORE_DATABASE_URL.",
    ),
    (
        r'(?:password|\w+) authentication failed for user "([^"]+)"',
        "The database server refuses the account or its password.",
        "Correct the password of {0} in CONDASTORE_DATABASE_URL.",
    ),
    (
        r"no password supplied|fe_sendauth",
        "The database server asks for a password.",
        "Write it into CONDASTORE_DATABASE_URL: postgresql://USER:PASSWORD@HOST/NAME.",
    ),
    (
        r'role "([^"]+)" does not exist',
        "The database server does not know the account.",
        "Create it: `createuser --pwprompt {0}`, or correct CONDASTORE_DATABASE_URL.",
    ),
    (
        r"no pg_hba.conf entry",
        "The database server lets nobody in from this machine.",
        "Add an entry for it to the server's pg_hba.conf.",
    ),
    (
        r"permission denied for (?:schema|table|database) (\S+)",
        "The database account may not use the tables.",
        "Make the account the owner of the database: `ALTER DATABASE NAME OWNER TO ACCOUNT`.",
    ),
    (
        r"could not translate host name|[Nn]ame or service not known|failed to resolve host",
        "The host of the database server has no address.",
        "Correct the host name in CONDASTORE_DATABASE_URL.",
    ),
    (
        r"too many (?:clients|connections)|remaining connection slots",
        "The database server has no connection left.",
        "Raise its max_connections, or run fewer processes.",
    ),
    (
        r"(?i)connect|no such file or dir|timeout|starting up|shutting down|unreachable|no route",
        "The database does not answer.",
        "Start it, or correct the host and the port in CONDASTORE_DATABASE_URL.",
    ),
    (
        r"unable to open database file",
        "The SQLite database cannot be opened.",
        "Let the account that runs condastore own its folder, and the disk have space.",
    ),
    (
        r"readonly database",
        "The SQLite database is read-only.",
        "Let the account that runs condastore own the file and its folder, on a writable mount.",
    ),
    (
        r"database is locked",
        "Another process holds the SQLite database.",
        "End it; a server on PostgreSQL is for many writers.",
    ),
    (
        r"not a database|malformed",
        "The SQLite database is damaged.",
        "Restore a backup (docs/how-to/backup.md).",
    ),
    (
        r"no such table|relation \S+ does not exist",
        "The tables of the database are missing or older than this version.",
        "Run `condastore manage migrate`.",
    ),
)
#: What an object store says, by its code or the name of boto3's exception.
_OBJECT_STORE = {
    "EndpointConnectionError": (
        "The object store does not answer.",
        "Correct `endpoint_url` in CONDASTORE_BLOBS_OPTIONS, or start it.",
    ),
    "ConnectTimeoutError": (
        "The object store does not answer.",
        "Correct `endpoint_url` in CONDASTORE_BLOBS_OPTIONS, or open the way to it.",
    ),
    "NoCredentialsError": (
        "The object store asks for a key.",
        "Set `access_key` and `secret_key` in CONDASTORE_BLOBS_OPTIONS.",
    ),
    "InvalidAccessKeyId": (
        "The object store does not know the access key.",
        "Correct `access_key` in CONDASTORE_BLOBS_OPTIONS.",
    ),
    "SignatureDoesNotMatch": (
        "The object store refuses the secret key.",
        "Correct `secret_key` in CONDASTORE_BLOBS_OPTIONS.",
    ),
    "403": (
        "The object store refuses the keys, or they may not use the bucket.",
        "Correct `access_key` and `secret_key` in CONDASTORE_BLOBS_OPTIONS, or their permissions.",
    ),
    "404": (
        "The bucket of the object store does not exist.",
        "Create it, or correct `bucket_name` in CONDASTORE_BLOBS_OPTIONS.",
    ),
}
_OBJECT_STORE |= {
    "TimeoutError": _OBJECT_STORE["ConnectTimeoutError"],
    "NoSuchBucket": _OBJECT_STORE["404"],
    "AccessDenied": _OBJECT_STORE["403"],
    "ReadTimeoutError": _OBJECT_STORE["ConnectTimeoutError"],
    "SSLError": (
        "The object store's certificate is not accepted.",
        "Correct `endpoint_url`, or name the certificate authority with AWS_CA_BUNDLE.",
    ),
}


def explain(error: BaseException) -> CommandError | None:
    """Return the named error for an exception of a command; None if it is not known."""
    for cause in _chain(error):
        module = type(cause).__module__
        found: CommandError | None = None
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
            found = _of_folder(cause)
        elif module.startswith(("psycopg", "sqlite3")) or _is_djangos(cause):
            found = of_database(cause)
        elif module.startswith(("botocore", "boto3")):
            found = of_object_store(cause)
        elif module.startswith(("redis", "pika", "dramatiq")):
            found = of_queue(cause)
        if found is not None:
            return found
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, the first cause first."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return iter(found)


def _is_djangos(error: BaseException) -> bool:
    from django.db import DatabaseError, InterfaceError

    return isinstance(error, DatabaseError | InterfaceError)


def _of_folder(error: OSError) -> CommandError | None:
    """Explain faults of files below the data folder; others do not depend on settings."""
    if error.errno not in _FOLDER or not isinstance(error.filename, str | os.PathLike):
        return None
    path = Path(os.fspath(error.filename)).absolute()
    if not path.is_relative_to(Path(settings.DATA).absolute()):
        return None
    return CommandError(
        f"The data folder cannot be written: {os.strerror(error.errno)}.",
        status=Status.INVALID,
        code="data-folder-unusable",
        where=str(path),
        hint=_FOLDER[error.errno],
    )


def of_database(error: BaseException) -> CommandError:
    """Return the error for a fault of the database."""
    said = " ".join(str(error).split())
    for pattern, message, hint in _DATABASE:
        if match := re.search(pattern, said):
            groups = match.groups() or ("",)
            return _unavailable(message, _database(), hint.format(*groups))
    hint = f"It said: {said[:300]}. Check CONDASTORE_DATABASE_URL, and that its server runs."
    return _unavailable("The database cannot be used.", _database(), hint)


def _database() -> str:
    """Where the database is, without a password."""
    database = settings.DATABASES["default"]
    if database["ENGINE"].endswith("sqlite3"):
        return str(database["NAME"])
    port = f":{database['PORT']}" if database.get("PORT") else ""
    return f"{database.get('HOST') or 'local socket'}{port}/{database['NAME']}"


def of_object_store(error: BaseException) -> CommandError:
    """Return the error for a fault of the object store of blobs."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code") or type(error).__name__)
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    message, hint = _OBJECT_STORE.get(code) or _OBJECT_STORE.get(status) or ("", "")
    if not message:
        message = "The object store cannot be used."
        said = " ".join(str(error).split())[:300]
        hint = f"It said: {said}. Check CONDASTORE_BLOBS_OPTIONS (docs/how-to/object-store.md)."
    return _unavailable(message, f"CONDASTORE_BLOBS={settings.BLOBS}", hint)


def of_queue(error: BaseException) -> CommandError:
    """Return the error for a fault of the queue."""
    from condastore.broker import broker_url

    url = urlsplit(broker_url())
    where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    said = " ".join(str(error).split())
    if re.search(r"AUTH|NOPERM|WRONGPASS|ACCESS_REFUSED|password", said):
        message = "The queue refuses the password."
        hint = "Correct it in CONDASTORE_BROKER_URL."
    else:
        message = "The queue does not answer."
        hint = "Start it, or correct CONDASTORE_BROKER_URL. Builds wait until it is there."
    return _unavailable(message, where, hint)


def _unavailable(message: str, where: str, hint: str) -> CommandError:
    return CommandError(
        message, status=Status.UNREACHABLE, code="unavailable", where=where, hint=hint
    )
