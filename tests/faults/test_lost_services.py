"""Outages of queue, database and workers: no build is lost."""

from __future__ import annotations

import signal
import time

import psycopg
import redis

from tests.channels.server import ChannelServer, Fault
from tests.faults.conftest import Start
from tests.faults.watching import Watch, owner_of, settle, stop_without_a_lock
from tests.migrated import migrated_postgres
from tests.services import Service, rabbitmq, valkey
from tests.services.processes import ServiceFailedError
from tests.system import System, until

HELLO = "dependencies: [license-mit]"
TESTED = "dependencies: [python]\ncondastore: {tests: {commands: ['sleep 1']}}\n"


def test_a_queue_that_is_killed_and_restarted_loses_no_build(
    start: Start, channel: ChannelServer
) -> None:
    with valkey() as queue, start(BROKER_URL=queue.url, WORKER_THREADS="1") as system:
        system.create("lost/queue")
        with Watch(system.data):
            running = system.submit("lost/queue", TESTED)
            waiting = [system.submit("lost/queue", HELLO) for _ in range(2)]
            system.wait(running, ["CHECKING"])
            before = len(system.log().splitlines())
            queue.kill()
            # The row is the truth: a queue that is away keeps nobody from asking.
            meanwhile = [system.submit("lost/queue", HELLO) for _ in range(3)]
            assert system.show(meanwhile[-1])["state"] == "QUEUED"
            assert system.wait(running)["state"] == "READY"
            time.sleep(8)
            _start_again(queue)
            for build in (*waiting, *meanwhile):
                done = system.wait(build)
                assert (done["state"], done["attempt"]) == ("READY", 1), done
        _assert_some_lines(system, before)
        settle(system, ["lost/queue"])


def test_builds_are_sent_again_after_the_queue_was_emptied(start: Start) -> None:
    with valkey() as queue, start(BROKER_URL=queue.url, workers=0) as system:
        system.create("lost/emptied")
        builds = [system.submit("lost/emptied", HELLO) for _ in range(3)]
        client = redis.Redis.from_url(queue.url)
        assert client.dbsize()
        client.flushall()
        system.add_worker()
        for build in builds:
            assert system.wait(build)["state"] == "READY"
        client.close()


def test_a_database_that_is_killed_and_restarted_loses_no_build(start: Start) -> None:
    with migrated_postgres() as database, start(DATABASE_URL=database.url) as system:
        system.create("lost/database")
        with Watch(system.data):
            builds = [system.submit("lost/database", TESTED) for _ in range(3)]
            system.wait(builds[0], ["CHECKING"])
            database.kill()
            answer = system.http.get("/readyz")
            assert answer.status_code == 503
            wrong = {name: check["wrong"] for name, check in answer.json()["checks"].items()}
            assert wrong["database"] == "The database does not answer."
            assert wrong["workers"] == "Not known: the database does not answer."
            database.start()
            for build in builds:
                done = system.wait(build, through_outage=True)
                assert done["state"] == "READY", done
                states = [event["state"] for event in done["events"]]
                assert states.count("READY") == 1
        settle(system, ["lost/database"])


def test_a_rabbitmq_that_is_away_for_seconds_is_some_lines_of_the_log(start: Start) -> None:
    """As a Valkey is, in the first test."""
    with rabbitmq() as queue, start(BROKER_URL=queue.url) as system:
        system.create("lost/lines")
        before = len(system.log().splitlines())
        queue.kill()
        builds = [system.submit("lost/lines", HELLO) for _ in range(3)]
        time.sleep(8)
        _start_again(queue)
        for build in builds:
            assert system.wait(build)["state"] == "READY"
        _assert_some_lines(system, before)


def _assert_some_lines(system: System, before: int) -> None:
    lines = system.log().splitlines()[before:]
    assert len(lines) < 150, lines
    assert not [line for line in lines if "Traceback" in line]


def test_lost_connections_and_an_outage_longer_than_a_lease_cost_no_attempt(start: Start) -> None:
    with (
        migrated_postgres() as database,
        start(DATABASE_URL=database.url, BUILD_ATTEMPTS="1") as system,
    ):
        system.create("lost/connections")
        builds = [system.submit("lost/connections", TESTED) for _ in range(4)]
        # Nobody else is let in meanwhile: each of the twenty meets a moment of some build.
        for _ in range(20):
            _end_connections(database.url)
            time.sleep(0.3)
        for build in builds:
            done = system.wait(build, through_outage=True)
            assert (done["state"], done["attempt"]) == ("READY", 1), done
        before = len(system.log())
        for state in ("CHECKING", "FETCHING", "SOLVING"):
            builds = [system.submit("lost/connections", TESTED) for _ in range(2)]
            system.wait(builds[0], [state, *later_states(state)])
            database.stop()
            time.sleep(5)  # the lease is 3 s
            database.start()
            for build in builds:
                done = system.wait(build, through_outage=True)
                assert (done["state"], done["attempt"]) == ("READY", 1), done
        assert "worker lost" not in system.log()
        assert "Traceback" not in system.log()[before:]
        settle(system, ["lost/connections"])


def later_states(state: str) -> list[str]:
    """Return the later states, for a build that is faster than the polling."""
    states = ["SOLVING", "FETCHING", "LINKING", "CHECKING", "PUBLISHING", "READY"]
    return states[states.index(state) + 1 :]


def _start_again(queue: Service) -> None:
    """Restart the service on its ports; retry if another program holds one for a moment."""
    for _ in range(10):
        try:
            queue.start()
        except ServiceFailedError:
            time.sleep(2)
        else:
            return
    queue.start()


def _end_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def test_a_worker_that_slept_past_its_lease_does_no_harm(start: Start) -> None:
    with start(workers=0) as system:
        system.create("lost/sleeper")
        with system.rows() as rows, Watch(system.data):
            sleeper = system.add_worker()
            build = system.submit("lost/sleeper", TESTED)
            system.wait(build, ["CHECKING"])
            stop_without_a_lock(system, sleeper.pid)
            other = system.add_worker()
            done = system.wait(build)
            assert (done["state"], done["attempt"]) == ("READY", 2), done
            prefix = system.folder("lost/sleeper").resolve()
            sleeper.send_signal(signal.SIGCONT)
            # It notices, cleans up what is its own, and takes the next build.
            other.terminate()
            other.wait()
            following = system.submit("lost/sleeper", HELLO)
            assert system.wait(following)["state"] == "READY"
            assert sleeper.poll() is None
            again = system.show(build)
            assert (again["state"], again["attempt"]) == ("READY", 2)
            assert [event["state"] for event in again["events"]].count("READY") == 1
            assert prefix.is_dir()
            assert owner_of(rows, build) is None
        settle(system, ["lost/sleeper"])


def test_a_build_that_two_workers_are_given_runs_once(start: Start) -> None:
    with start(workers=2) as system:
        system.create("lost/twice")
        with Watch(system.data):
            builds = [system.submit("lost/twice", TESTED) for _ in range(3)]
            system.manage(
                "from environments.tasks import run_next_build\n"
                f"for build in {builds} * 5: run_next_build.send(int(build))"
            )
            for build in builds:
                done = system.wait(build)
                assert (done["state"], done["attempt"]) == ("READY", 1), done
                states = [event["state"] for event in done["events"]]
                assert len(states) == len(set(states)), states
        settle(system, ["lost/twice"])


def test_a_scheduler_that_dies_is_followed_by_another(start: Start, channel: ChannelServer) -> None:
    channel.faults.add(Fault("noarch/license-agpl-*", status=503))
    with start(BUILD_ATTEMPTS="60") as system:
        system.create("lost/scheduler")
        build = system.submit("lost/scheduler", "dependencies: [license-agpl]")
        until(lambda: channel.requests.count("noarch/license-agpl-*"))
        until(lambda: system.processes("scheduler"))
        [scheduler] = system.processes("scheduler")
        scheduler.kill()
        system.kill_worker()
        channel.faults.clear()
        assert system.wait(build)["state"] == "READY"
