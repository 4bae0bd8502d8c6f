"""Workers die by SIGKILL, in every state and at any moment: no build is lost, none is half made."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.channels.server import ChannelServer, Fault
from tests.faults.conftest import Start
from tests.faults.watching import Watch, kill_in, owner_of, settle, state_of
from tests.system import FINISHED, System, Worker

KILLS = 30
SEED = 20260101
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
                package = {"FETCHING": "mathkernel", "CANCELLING": "licence-gpl"}[state]
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


def test_thirty_kills_at_random_moments_lose_no_build(system: System) -> None:
    chance = random.Random(SEED)
    references = [f"killed-loop/env-{number}" for number in range(4)]
    for reference in references:
        system.create(reference)
    texts = (
        f"dependencies: [python, hello-noarch]{WITH_TESTS}",
        f"dependencies: [python, hello-noarch 1.*, activating]{WITH_TESTS}",
        "dependencies: [demo-stack 2025.*, large-data]",
    )
    wrong = "dependencies: [conflict-left, conflict-right]"
    workers = [_only_worker(system), system.add_worker(), system.add_worker()]
    for text in texts:  # what is solved and fetched once: later builds get beyond that
        system.build(references[0], text)
    builds: dict[str, str] = {}  # id: what it must become
    unfinished: list[str] = []
    killed: list[str] = []  # the states in which it happened
    end = time.monotonic() + 400
    with system.rows() as rows, Watch(system.data) as watch:
        while len(killed) < KILLS:
            assert time.monotonic() < end, f"{killed}\n{system.log()[-3000:]}"
            unfinished = [build for build in unfinished if state_of(rows, build) not in FINISHED]
            while len(unfinished) < 5:
                fails = chance.random() < 0.1
                text = wrong if fails else chance.choice(texts)
                build = system.submit(chance.choice(references), text, force=chance.random() < 0.2)
                builds[build] = "FAILED" if fails else "READY"
                unfinished.append(build)
            killed += _kill_one_that_builds(rows, workers, unfinished, chance)
            for index, worker in enumerate(workers):
                if worker.poll() is not None:
                    workers[index] = system.add_worker()
        for build, outcome in builds.items():
            done = system.wait(build, seconds=60)
            assert done["state"] == outcome, done
            states = [event["state"] for event in done["events"]]
            assert sum(state in FINISHED for state in states) == 1, states
            if outcome == "FAILED":
                assert done["failure"]["code"] == "unsatisfiable"
        assert len(watch.seen) > 4
        assert len(set(killed)) > 2, killed
    settle(system, references)
    ours = [os.getpid(), *(worker.pid for worker in workers), system.supervisor.pid]
    orphans = [process for process in system.everything() if process.ppid() not in ours]
    known = {pid for worker in workers for pid in _tree(worker.pid)}
    known |= set(_tree(system.supervisor.pid))
    assert {process.pid for process in orphans} <= known, [p.cmdline() for p in orphans]


def _only_worker(system: System) -> Worker:
    """The worker that an earlier test left, or a new one."""
    alive = [worker for worker in system.added if worker.poll() is None]
    for worker in alive[1:]:
        worker.kill()
        worker.wait()
    return alive[0] if alive else system.add_worker()


def _kill_one_that_builds(
    rows: sqlite3.Connection,
    workers: list[Worker],
    builds: list[str],
    chance: random.Random,
) -> list[str]:
    """At a random moment kill a worker that runs a build; in which state of it, if any."""
    _let_happen(rows, builds, chance.randrange(8))
    time.sleep(chance.random() * 0.4)
    pids = {worker.pid: worker for worker in workers if worker.poll() is None}
    running = [(owner_of(rows, build), state_of(rows, build)) for build in builds]
    busy = [(pids[owner], state) for owner, state in running if owner in pids]
    # One that works stays: else a machine that starts workers slowly sees them die at their first
    # step only.
    names = [name for (name,) in rows.execute("SELECT name FROM environments_worker")]
    started = [pid for pid in pids if any(name.endswith(f"-{pid}") for name in names)]
    if not busy or len(started) < 2:
        return []
    victim, state = chance.choice(busy)
    victim.kill()
    victim.wait()
    return [state]


def _let_happen(rows: sqlite3.Connection, builds: list[str], number: int) -> None:
    """Wait for so many moves of builds: a slow machine takes longer, and gets as far."""
    count = "SELECT count(*) FROM environments_buildevent"
    [(before,)] = rows.execute(count).fetchall()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        [(now,)] = rows.execute(count).fetchall()
        if now - before >= number or all(state_of(rows, build) in FINISHED for build in builds):
            return
        time.sleep(0.01)


def _tree(pid: int) -> list[int]:
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []
