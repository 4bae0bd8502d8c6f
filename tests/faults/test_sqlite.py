"""SQLite with a web process and four workers: no "database is locked" errors."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.faults.conftest import Start
from tests.faults.watching import settle
from tests.system import SUBMIT, System

WRONG = {"username": "nobody", "password": "not the password"}
PEOPLE, BUILDS = 8, 40
BURST, READERS, SUBSCRIPTIONS = 120, 4, 40
LIST = """{ environments(first: 50) { totalCount edges { node { name
  current { number state } builds(first: 5) { totalCount } } } } }"""


def test_a_web_process_and_four_workers_never_find_the_database_locked(start: Start) -> None:
    # A lease that outlasts any wait for the processor: a second attempt has another reason.
    with start(workers=4, WORKER_THREADS="2", LEASE="30") as system:
        references = [f"busy/env-{number}" for number in range(PEOPLE)]
        for reference in references:
            system.create(reference)

        def work(number: int) -> list[str]:
            """What one person does: submits, looks, tags, cancels."""
            created = []
            for turn in range(BUILDS // PEOPLE):
                name = ("license-mit", "license-bsd", "demo-stack")[(number + turn) % 3]
                text = f"dependencies: [{name}]\nvariables: {{TURN: '{number}-{turn}'}}\n"
                build = system.submit(references[number], text)
                system.graphql(LIST)
                system.change("tagBuild", id=build, tag=f"t{turn}")
                created.append(build)
            return created

        with ThreadPoolExecutor(PEOPLE) as people:
            builds = [build for created in people.map(work, range(PEOPLE)) for build in created]
        for build in builds:
            done = system.wait(build)
            assert (done["state"], done["attempt"]) == ("READY", 1), done
        _say_nothing_of_locks(system)
        settle(system, references)


def test_a_burst_of_submissions_is_accepted_or_gets_retry_after(start: Start) -> None:
    with start(workers=2, WORKER_THREADS="2", LEASE="30") as system:
        references = [f"burst/env-{number}" for number in range(PEOPLE)]
        watched = [system.create(reference) for reference in references]
        assert watched
        first = [system.submit(reference, _text("first")) for reference in references]
        ended = threading.Event()

        def read(_: int) -> int:
            """A reader meanwhile; how many answers it had."""
            answers = 0
            while not ended.is_set():
                system.graphql(LIST)
                answers += 1
            return answers

        with (
            ThreadPoolExecutor(BURST) as senders,
            ThreadPoolExecutor(READERS) as readers,
            _subscribed(system, (first * SUBSCRIPTIONS)[:SUBSCRIPTIONS]),
        ):
            reading = [readers.submit(read, number) for number in range(READERS)]
            answers = list(
                senders.map(
                    lambda n: _submit(system, references[n % PEOPLE], _text(str(n))), range(BURST)
                )
            )
            ended.set()
            assert all(done.result() for done in reading)
        accepted = [answer["build"]["id"] for answer in answers if "build" in answer]
        refused = [answer for answer in answers if "build" not in answer]
        assert {answer["code"] for answer in refused} <= {"unavailable"}
        assert all(answer["hint"] for answer in refused)
        assert accepted
        for build in [*first, *accepted]:
            done = system.wait(build)
            assert (done["state"], done["attempt"]) == ("READY", 1), done
        assert "internal-error" not in system.log()
        settle(system, references)


def test_while_another_program_writes_changes_are_unavailable_and_reads_work(
    start: Start,
) -> None:
    with start(workers=0) as system:
        system.create("held/ml")
        system.submit("held/ml", _text("first"))
        with _held(system.data / "db.sqlite3"), ThreadPoolExecutor(9) as people:
            changes = [
                people.submit(_submit, system, "held/ml", _text(str(number))) for number in range(4)
            ]
            download = people.submit(system.get, "/api/envs/held/ml/latest/log")  # is recorded
            sign_ins = [people.submit(system.http.post, "/api/device", json={}) for _ in range(2)]
            sign_ins.append(people.submit(system.http.post, "/api/token", json=WRONG))
            assert system.graphql(LIST)["environments"]["totalCount"] == 1
            answers = [change.result() for change in changes]
            others = [one.result(timeout=300) for one in (download, *sign_ins)]
        assert {answer["code"] for answer in answers} == {"unavailable"}
        assert all("10 seconds" in answer["hint"] for answer in answers)
        for answer in others:
            assert answer.status_code == 503, answer.text
            assert answer.headers["Retry-After"] == "10"
            assert answer.json()["code"] == "unavailable"
        assert "unexpected" not in system.log()
        assert "build" in _submit(system, "held/ml", _text("again"))


def _text(turn: str) -> str:
    return f"dependencies: [license-mit]\nvariables: {{TURN: '{turn}'}}\n"


def _submit(system: System, reference: str, text: str) -> dict[str, Any]:
    """What a submission is answered with."""
    namespace, _, environment = reference.partition("/")
    variables = {"namespace": namespace, "environment": environment, "text": text}
    answer = system.graphql(SUBMIT, **variables, force=False)["submitBuild"]
    return dict(answer)


@contextmanager
def _subscribed(system: System, builds: list[str]) -> Iterator[None]:
    """Subscriptions to these builds, open meanwhile or until the build ends."""
    query = "subscription($id: ID!) { buildProgress(buildId: $id) { build { state } } }"
    headers = {"Authorization": f"Bearer {system.token}", "Accept": "text/event-stream"}

    def follow(build: str) -> None:
        body = {"query": query, "variables": {"id": build}}
        with httpx.stream(
            "POST", f"{system.url}/graphql", json=body, headers=headers, timeout=60
        ) as response:
            assert response.status_code == 200
            text = "".join(response.iter_text())
        assert "complete" in text, text[-500:]

    with ThreadPoolExecutor(len(builds)) as followers:
        following = [followers.submit(follow, build) for build in builds]
        yield
        for one in following:
            one.result()


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Another program holds the write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as rows:
        rows.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            rows.execute("ROLLBACK")


def _say_nothing_of_locks(system: System) -> None:
    log = system.log()
    assert "locked" not in log, log[-3000:]
    with system.rows() as rows:
        events = rows.execute("SELECT message FROM environments_buildevent").fetchall()
    assert not [message for (message,) in events if "locked" in message]
