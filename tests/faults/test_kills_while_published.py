"""SIGKILL between the naming of a build's folder and READY: no other end keeps the folder."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

import psutil
import pytest

from tests.channels.server import ChannelServer
from tests.faults.conftest import Start
from tests.faults.watching import can_write, state_of
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


def _worker(system: System) -> Worker:
    alive = [worker for worker in system.added if worker.poll() is None]
    return alive[0] if alive else system.add_worker()


def _stopped_when_named(system: System, rows: sqlite3.Connection) -> str:
    """A build whose worker is stopped in the moment after it named the folder."""
    worker = _worker(system)
    for _ in range(60):
        build = system.submit("kill/env", TEXT)
        if _stop_when_named(system.data / "db.sqlite3", rows, worker, build):
            return build
    raise AssertionError("never caught")


def _stop_when_named(database: Path, rows: sqlite3.Connection, worker: Worker, build: str) -> bool:
    """False where the build was faster."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        named = rows.execute(NAMED, (build,)).fetchall()
        if named and named[0][0] is not None:
            worker.send_signal(signal.SIGSTOP)
            until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, pause=0)
            # Not inside of a transaction: nobody else could write while it is stopped.
            if rows.execute(NAMED, (build,)).fetchall() and can_write(database, patience=0.01):
                return True
            worker.send_signal(signal.SIGCONT)
        if state_of(rows, build) in FINISHED:
            return False
        os.sched_yield()
    raise AssertionError(f"build {build} did not end")


def _folder(rows: sqlite3.Connection, build: str) -> str:
    query = """SELECT path FROM environments_prefix JOIN environments_build b
               ON b.prefix_id = environments_prefix.id WHERE b.id = ?"""
    [(path,)] = rows.execute(query, (build,)).fetchall()
    return str(path).rsplit("/", 1)[-1]
