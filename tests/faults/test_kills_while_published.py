"""SIGKILL between naming a build's folder and READY: other final states keep no folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import psutil
import pytest

from tests.channels.server import ChannelServer
from tests.faults.conftest import Start
from tests.faults.watching import state_of
from tests.system import FINISHED, System, Worker, until

TEXT = "dependencies: [hello-noarch]"
NAMED = "SELECT prefix_id FROM environments_build WHERE id = ? AND state = 'PUBLISHING'"


@pytest.mark.parametrize("end", ["CANCELLED", "FAILED", "QUEUED, then CANCELLED"])
def test_a_build_that_is_killed_when_its_folder_is_named_keeps_none(
    start: Start, channel: ChannelServer, end: str
) -> None:
    again = end.startswith("QUEUED")
    attempts = {"BUILD_ATTEMPTS": "5" if again else "1", "BACKOFF": "60"}
    with start(workers=0, **attempts) as system, system.rows() as rows:
        system.create("kill/env")
        build = _stopped_when_named(system, rows)
        folder = system.data / "prefixes" / "kill" / _folder(rows, build)
        assert folder.is_dir()
        if end == "CANCELLED":
            system.change("cancelBuild", id=build)
        _worker(system).kill()
        if again:
            until(lambda: state_of(rows, build) == "QUEUED")
            assert system.show(build)["prefixPath"] == ""
            system.change("cancelBuild", id=build)
        done = system.wait(build)
        assert done["state"] == end.split()[-1]
        assert done["prefixPath"] == ""
        assert done["apparentSize"] is None
        refused = system.run("run", done["ref"], "--", "true", check=False)
        assert refused.returncode != 0
        assert "has no folder" in refused.stderr
        system.add_worker()  # which does the upkeep
        until(lambda: not folder.exists(), say=system.log)


def test_a_worker_that_is_stopped_while_publishing_finishes_first(start: Start) -> None:
    """`envs/` leads to the folder before the build is READY: users may have it open already."""
    with start(workers=0) as system, system.rows() as rows:
        system.create("kill/env")
        links = system.data / "run" / "links"
        links.mkdir(parents=True, exist_ok=True)
        worker = system.add_worker()
        with (links / "kill~env").open("w") as lock:  # the switch of `envs/kill/env` waits for it
            fcntl.flock(lock, fcntl.LOCK_EX)
            build = system.submit("kill/env", TEXT)
            until(lambda: rows.execute(NAMED, (build,)).fetchall() not in ([], [(None,)]))
            folder = system.data / "prefixes" / "kill" / _folder(rows, build)
            before = folder.stat().st_ino
            until(lambda: _waits_for(lock, worker))
            worker.terminate()
            time.sleep(1)  # its threads receive the stop soon
        worker.wait(60)
        assert state_of(rows, build) == "READY"
        assert folder.stat().st_ino == before
        assert system.folder("kill/env").samefile(folder)


def _waits_for(lock: IO[str], worker: Worker) -> bool:
    """Return True if the process waits for a lock of another; the kernel shows it as `->`."""
    inode = f":{os.fstat(lock.fileno()).st_ino} "
    return any(
        "->" in line and f" {worker.pid} " in line and inode in line
        for line in Path("/proc/locks").read_text().splitlines()
    )


def _worker(system: System) -> Worker:
    alive = [worker for worker in system.added if worker.poll() is None]
    return alive[0] if alive else system.add_worker()


def _stopped_when_named(system: System, rows: sqlite3.Connection) -> str:
    """Return a build whose worker is stopped right after it named the folder."""
    worker = _worker(system)
    with _TurnToWrite(system.data / "db.sqlite3") as turn:
        for _ in range(60):
            build = system.submit("kill/env", TEXT)
            if _stop_when_named(rows, worker, build, turn):
                return build
    raise AssertionError("never caught")


def _stop_when_named(
    rows: sqlite3.Connection, worker: Worker, build: str, turn: _TurnToWrite
) -> bool:
    """False where the build was faster.

    From PUBLISHING on, this process asks for the next turn while the worker has one: it gets it
    between the write that names the folder and the one that makes the build READY. The stopped
    worker then holds no turn, so others can write.
    """
    until(lambda: state_of(rows, build) in {"PUBLISHING", *FINISHED}, pause=0)
    while state_of(rows, build) not in FINISHED:
        with turn.next():
            named = rows.execute(NAMED, (build,)).fetchall()
            if named and named[0][0] is not None:
                worker.send_signal(signal.SIGSTOP)
                until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, pause=0)
                return True
    return False


class _TurnToWrite:
    """The write queue of a SQLite database, used like the processes of the system use it."""

    #: Seconds without any writer after which the turn is taken all the same.
    PATIENCE = 0.05
    #: `struct flock`: type, whence, start, length, process.
    LOCK = struct.Struct("hhqqi4x")

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(f"{database.name}-writers")

    def __enter__(self) -> Self:
        self._file = self._path.open("r+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @contextlib.contextmanager
    def next(self) -> Iterator[None]:
        """Wait for a writer, and take the next turn after it."""
        end = time.monotonic() + self.PATIENCE
        while not self._taken() and time.monotonic() < end:
            pass
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _taken(self) -> bool:
        requested = self.LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_ = self.LOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, requested))
        return bool(kind != fcntl.F_UNLCK)


def _folder(rows: sqlite3.Connection, build: str) -> str:
    query = """SELECT path FROM environments_prefix JOIN environments_build b
               ON b.prefix_id = environments_prefix.id WHERE b.id = ?"""
    [(path,)] = rows.execute(query, (build,)).fetchall()
    return str(path).rsplit("/", 1)[-1]
