"""Lost queue messages, and errors before a build is claimed: no build waits forever."""

from __future__ import annotations

import contextlib
import sqlite3

import redis

from tests.faults.conftest import Start
from tests.services import valkey
from tests.system import System

TEXT = "dependencies: [license-mit]"
#: Only workers themselves can help: the scheduler looks once, at its start.
NO_SWEEP = {"SWEEP_INTERVAL": "3600", "LEASE": "3600"}
TICKETS = "dramatiq:builds"


def test_builds_whose_messages_were_lost_follow_the_one_whose_was_not(start: Start) -> None:
    with valkey() as queue, start(workers=0, BROKER_URL=queue.url, **NO_SWEEP) as system:
        system.create("messages/lost")
        builds = [system.submit("messages/lost", TEXT) for _ in range(5)]
        with contextlib.closing(redis.Redis.from_url(queue.url)) as client:
            assert client.llen(TICKETS) == 5
            client.ltrim(TICKETS, 0, 0)
        system.add_worker()
        for build in builds:
            done = system.wait(build)
            assert (done["state"], done["attempt"]) == ("READY", 1), done


def test_a_message_is_delivered_again_when_the_database_fails_before_a_build_is_claimed(
    start: Start,
) -> None:
    with start(workers=0, **NO_SWEEP) as system:
        system.create("messages/failed")
        _change(
            system,
            "CREATE TRIGGER broken BEFORE UPDATE OF served_at ON environments_namespace "
            "BEGIN SELECT RAISE(ABORT, 'the database is broken'); END",
        )
        build = system.submit("messages/failed", TEXT)
        system.add_worker()
        system.until_logged("the database is broken")
        assert system.show(build)["state"] == "QUEUED"
        _change(system, "DROP TRIGGER broken")
        done = system.wait(build)
        assert (done["state"], done["attempt"]) == ("READY", 1), done


def test_a_message_is_sent_again_soon_while_a_worker_is_idle(start: Start) -> None:
    # Six intervals, after which it would be sent again in any case, are longer than the wait.
    with valkey() as queue, start(BROKER_URL=queue.url, SWEEP_INTERVAL="10") as system:
        system.create("messages/idle")
        worker = system.processes("worker")[0]
        worker.suspend()
        build = system.submit("messages/idle", TEXT)
        with contextlib.closing(redis.Redis.from_url(queue.url)) as client:
            client.delete(TICKETS)
        worker.resume()
        assert system.wait(build, seconds=50)["state"] == "READY"


def _change(system: System, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(system.data / "db.sqlite3", timeout=20)) as rows:
        rows.execute(statement)
        rows.commit()
