"""What must be so before `condastore up` starts anything: folder, address, database, account."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from sqlite3 import OperationalError
from typing import IO, Any

import django
import psutil
import structlog
from django.conf import settings

from condastore import object_store, private_files, startup_errors
from condastore.cli.errors import CommandError, Status

logger = structlog.get_logger(__name__)
#: Seconds that children of an `up` that was killed have to end by themselves: longer than the
#: longest grace, as each of them got its signal when their parent died.
ORPHANS_END = 20.0


#: In the data folder while `condastore restore` has not finished.
UNFINISHED_RESTORE = "restore.json"


def prepare_folder(data: Path, *, restoring: bool = False) -> None:
    """Create missing parts of the data folder, and close it to other local users.

    Args:
        restoring: by `condastore restore`, which brings the database itself.
    Raises:
        CommandError: it cannot be created, something of it stays open, or it was restored in part.
    """
    if not restoring and (data / UNFINISHED_RESTORE).exists():
        raise CommandError(
            "A backup was restored into this data folder in part.",
            status=Status.INVALID,
            code="conflict",
            where=str(data),
            hint="Finish it: run `condastore restore` with the same backup again.",
        )
    database = None if restoring else database_file()
    try:
        left = private_files.close(data, database=database, blobs_group=blobs_group())
    except OSError as error:
        if database is not None and str(error.filename) == str(database):
            raise startup_errors.of_database(
                OperationalError("unable to open database file")
            ) from error
        if found := startup_errors.explain(error):
            raise found from error
        raise CommandError(
            f"The data folder cannot be created: {error.strerror}.",
            status=Status.INVALID,
            code="data-folder-unusable",
            where=str(data),
            hint="Mount its file system, or name another folder: CONDASTORE_DATA.",
        ) from error
    if left:
        raise CommandError(
            f"Other accounts of this machine reach what is the service's: "
            f"{', '.join(map(str, left))}.",
            status=Status.INVALID,
            code="invalid-input",
            where=str(data),
            hint="Let the account that runs condastore own it (chown), and nobody else read it "
            "(chmod go-rwx); the file system must have Unix permissions.",
        )


def database_file() -> Path | None:
    """The SQLite file; None where the database is a server, or in memory."""
    if not settings.DATABASE_URL:
        return Path(settings.DATA) / private_files.DATABASE
    database = settings.DATABASES["default"]
    if not database["ENGINE"].endswith("sqlite3") or ":memory:" in str(database["NAME"]):
        return None
    return Path(database["NAME"]).absolute()


def blobs_group() -> int | None:
    """The numeric id of CONDASTORE_BLOBS_GROUP; None where it is not set.

    Raises:
        CommandError: there is no such group.
    """
    if not settings.BLOBS_GROUP:
        return None
    found = private_files.group_id(settings.BLOBS_GROUP)
    if found is None:
        raise CommandError(
            f"There is no Unix group {settings.BLOBS_GROUP!r}.",
            status=Status.INVALID,
            code="invalid-input",
            where="CONDASTORE_BLOBS_GROUP",
            hint="Name the group that nginx runs as.",
        )
    return found


class Lock:
    """The file that says who serves a data folder; held as long as its process lives."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, holder: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump(holder, self._file)
        self._file.flush()


@contextlib.contextmanager
def only_one(data: Path) -> Iterator[Lock]:
    """Hold the data folder; CommandError with the other's address where somebody does already."""
    with (data / "run" / "up.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            file.seek(0)
            try:
                holder = json.loads(file.read())
                running = f"at {holder['url']} (process {holder['pid']})"
            except (ValueError, KeyError):
                running = "and has just been started"
            raise CommandError(
                f"condastore runs on this data folder already, {running}.",
                status=Status.INVALID,
                code="conflict",
                where=str(data),
                hint="Use that one, or name another folder: CONDASTORE_DATA.",
            ) from None
        yield Lock(file)


def end_orphans(state: Path) -> None:
    """Wait for the children of an `up` that was killed, which still hold its port and its files."""
    try:
        known = json.loads(state.read_text())
        written = datetime.fromisoformat(known["written_at"]).timestamp()
        pids = [pid for pid in known["children"].values() if pid]
    except (OSError, ValueError, KeyError):
        return
    orphans = [found for pid in pids if (found := _ours(pid, started_before=written))]
    _, stubborn = psutil.wait_procs(orphans, timeout=ORPHANS_END)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)


def _ours(pid: int, *, started_before: float) -> psutil.Process | None:
    """The process, unless its number went to another one meanwhile."""
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline())
        # The clock of the start has a resolution of 10 ms, and may be set meanwhile.
        if process.create_time() > started_before + 1:
            return None
    except psutil.Error:
        return None
    return process if "condastore" in words or "valkey" in words else None


@contextlib.contextmanager
def listen(host: str, port: int, *, number: int = 1) -> Iterator[list[socket.socket]]:
    """Take the address now: it is known before the web server starts, and outlives its restarts.

    Yields `number` sockets of the same address, among which the kernel distributes connections. Of
    a process that is started again, they wait in its socket.
    """
    with contextlib.ExitStack() as stack:
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = _bound(family, address)
            listeners = [stack.enter_context(listener)]
            if number > 1:
                # The first has found that nobody else is there: several of one address would share
                # it with another condastore of this account.
                address = listener.getsockname()
                listener.close()
                listeners = [
                    stack.enter_context(_bound(family, address, shared=True)) for _ in range(number)
                ]
            for listener in listeners:
                listener.listen(2048)
        except OSError as error:
            hint = "Choose another: `condastore up --port 0` takes a free one."
            raise CommandError(
                f"Cannot listen on {host} port {port}: {error.strerror}.",
                status=Status.INVALID,
                code="conflict",
                hint=hint,
            ) from error
        yield listeners


def _bound(family: int, address: Any, *, shared: bool = False) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def public_url(listener: socket.socket) -> str:
    """The address that people on this machine type."""
    if settings.PUBLIC_URL:
        return str(settings.PUBLIC_URL).rstrip("/")
    return local_url(listener)


def local_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Administrator:
    """The account to sign in with; `password` only where it was generated just now."""

    username: str
    password: str = ""


def prepare_database(*, ask: bool) -> Administrator | None:
    """Bring the tables up to date; make the first administrator where there is none.

    Answers the administrator that was made, None where there was one.
    """
    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command
    from django.db import Error, connections

    from condastore.empty_database import create_tables
    from environments.services import folder_access

    try:
        # To ask is quick; the command takes seconds, also to do nothing.
        if _tables_are_behind() and not create_tables():
            call_command("migrate", interactive=False, verbosity=0)
        require_data_folder()
        require_keys()
        folder_access.apply()
        users = get_user_model()._default_manager
        if users.filter(is_superuser=True, is_active=True).exists():
            return None
        username = settings.ADMIN_USERNAME
        password, generated = first_password(username, ask=ask)
        account, _ = users.get_or_create(username=username)
        account.is_superuser = account.is_staff = account.is_active = True
        account.set_password(password)
        account.save()
    except Error as error:
        raise startup_errors.of_database(error) from error
    finally:
        connections.close_all()
    return Administrator(username=username, password=password if generated else "")


def require_keys() -> None:
    """Refuse to run with keys that are not the installation's: it would sign and encrypt apart."""
    from environments.services import key_rotation

    if fault := key_rotation.fault():
        raise CommandError(
            fault, status=Status.INVALID, code="invalid-input", where=str(settings.DATA)
        )


def require_data_folder() -> None:
    """Refuse to run on the mount point of a data folder that is not mounted."""
    from environments.services import data_folder_marker

    if fault := data_folder_marker.fault():
        message, _, hint = fault.partition(". ")
        raise CommandError(
            f"{message}.",
            status=Status.INVALID,
            code="data-folder-unusable",
            where=str(settings.DATA),
            hint=hint,
        )


def prepare_process(*, links_folders: bool = False) -> None:
    """Compare keys and close folders at the start of a process that others do not prepare.

    Args:
        links_folders: it links folders of builds, so the data folder must be the installation's.

    While the database is away, or has no tables yet, nothing can be compared: the upkeep closes
    what was left open.
    """
    from django.db import Error, connections

    from environments.services import folder_access

    for found in services_away():
        _warn(found)

    try:
        if links_folders:
            require_data_folder()
        require_keys()
        folder_access.apply()
    except Error as error:
        _warn(startup_errors.of_database(error))
        return
    finally:
        connections.close_all()


def services_away() -> list[CommandError]:
    """Return faults of the queue and the object store, for which a running system waits."""
    found = [queue_fault(), object_store.fault()]
    return [fault for fault in found if fault is not None]


def queue_fault() -> CommandError | None:
    """Return the fault of the queue of CONDASTORE_BROKER_URL; None for that of `up`."""
    import dramatiq

    from environments import tasks  # noqa: F401 - makes the broker
    from environments.operations.queueing import DOWN

    if not settings.BROKER_URL:
        return None
    broker = dramatiq.get_broker()
    try:
        if client := getattr(broker, "client", None):
            client.ping()
        elif hasattr(broker, "channel"):
            assert broker.channel.is_open
            broker.close()  # this thread sends nothing soon
    except (*DOWN, AssertionError) as error:
        return startup_errors.of_queue(error)
    return None


def _warn(found: CommandError) -> None:
    logger.warning(str(found), where=found.where, hint=found.hint)


def _tables_are_behind() -> bool:
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def first_password(username: str, *, ask: bool) -> tuple[str, bool]:
    """The administrator's password, and whether it was generated."""
    import getpass
    import secrets

    if settings.ADMIN_PASSWORD:
        return settings.ADMIN_PASSWORD, False
    while ask:
        try:
            first = getpass.getpass(
                f"Password for the administrator {username!r} (empty: make one): "
            )
            if not first:
                break
            if getpass.getpass("Once more: ") == first:
                return first, False
        except EOFError:
            break
        sys.stderr.write("These are not the same.\n")
    return secrets.token_urlsafe(12), True
