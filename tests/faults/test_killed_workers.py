"""SIGKILL of workers in every build state: no build is lost or half done.

`test_soak.py` kills them, and everything else, at any moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from tests.channels.server import ChannelServer, Fault
from tests.faults.conftest import Start
from tests.faults.watching import Watch, kill_in, settle, stop_without_a_lock
from tests.system import System, Worker, until

WITH_TESTS = "\ncondastore: {tests: {commands: ['sleep 0.2']}}\n"


@pytest.fixture(scope="module")
def system(start: Start) -> Iterator[System]:
    """No workers but those that a test adds; attempts enough to survive every kill."""
    with start(workers=0, BUILD_ATTEMPTS="60", BACKOFF="0.01") as running:
        yield running


@pytest.mark.parametrize(
    "state", ["SOLVING", "FETCHING", "LINKING", "CHECKING", "PUBLISHING", "CANCELLING"]
)
def test_a_build_outlives_its_worker_in_every_state(
    system: System, channel: ChannelServer, state: str
) -> None:
    reference = f"killed-{state.lower()}/env"
    system.create(reference)
    worker = _only_worker(system)
    # A cache that has the package already has nothing to fetch.
    text = f"dependencies: [hello-noarch, large-data]{WITH_TESTS}"
    with system.rows() as rows, Watch(system.data):
        for _ in range(5):
            if state in ("FETCHING", "CANCELLING"):
                package = {"FETCHING": "mathkernel", "CANCELLING": "license-gpl"}[state]
                text = f"dependencies: [python, {package}]{WITH_TESTS}"
                channel.faults.add(Fault(f"*/{package}-*", hang=30, times=1))
            build = system.submit(reference, text, force=True)
            if state == "CANCELLING":
                system.wait(build, ["FETCHING"])
                system.change("cancelBuild", id=build)
            killed = kill_in(rows, worker, build, state)
            if killed:
                break
        channel.faults.clear()
        assert killed, f"never caught in {state}"
        system.add_worker()
        done = system.wait(build)
    if state == "CANCELLING":
        assert done["state"] == "CANCELLED"
    else:
        assert done["state"] == "READY", done
        assert done["attempt"] >= 2
        assert [event["state"] for event in done["events"]].count("READY") == 1
    settle(system, [reference])


def test_a_build_goes_on_with_the_solve_of_a_worker_that_was_killed(
    system: System, channel: ChannelServer
) -> None:
    """Of two workers that want the same solve, one begins it and is killed, the other waits."""
    text = "dependencies: [python, {pip: [tinyname]}]"
    one, two = "killed-solve/one", "killed-solve/two"
    for reference in (one, two):
        system.create(reference)
    worker = _only_worker(system)
    with system.rows() as rows:
        channel.faults.add(Fault("pypi/*", hang=60))  # the solve does not end
        first = system.submit(one, text)
        until(lambda: _unfinished_solves(rows) == 1)
        stop_without_a_lock(system, worker.pid)  # so that it does not take the second build too
        system.add_worker()
        second = system.submit(two, text)
        system.wait(second, ["SOLVING"])
        worker.kill()
        worker.wait()
        assert _unfinished_solves(rows) == 1
        channel.faults.clear()
        done = system.wait(second)
        assert (done["state"], done["attempt"]) == ("READY", 1)
        assert system.wait(first)["state"] == "READY"
        assert _unfinished_solves(rows) == 0
    settle(system, [one, two])


def _unfinished_solves(rows: sqlite3.Connection) -> int:
    found = rows.execute("SELECT COUNT(*) FROM environments_solverow WHERE lock_id IS NULL")
    return int(found.fetchone()[0])


def _only_worker(system: System) -> Worker:
    """The worker that an earlier test left, or a new one."""
    alive = [worker for worker in system.added if worker.poll() is None]
    for worker in alive[1:]:
        worker.kill()
        worker.wait()
    return alive[0] if alive else system.add_worker()
