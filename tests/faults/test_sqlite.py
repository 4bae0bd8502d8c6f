"""SQLite under a web process and four workers: nobody is ever told that the database is locked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.faults.conftest import Start
from tests.faults.watching import settle
from tests.system import System

PEOPLE, BUILDS = 8, 40
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
            made = []
            for turn in range(BUILDS // PEOPLE):
                name = ("licence-mit", "licence-bsd", "demo-stack")[(number + turn) % 3]
                text = f"dependencies: [{name}]\nvariables: {{TURN: '{number}-{turn}'}}\n"
                build = system.submit(references[number], text)
                system.graphql(LIST)
                system.change("tagBuild", id=build, tag=f"t{turn}")
                made.append(build)
            return made

        with ThreadPoolExecutor(PEOPLE) as people:
            builds = [build for made in people.map(work, range(PEOPLE)) for build in made]
        for build in builds:
            done = system.wait(build)
            assert (done["state"], done["attempt"]) == ("READY", 1), done
        _say_nothing_of_locks(system)
        settle(system, references)


def _say_nothing_of_locks(system: System) -> None:
    log = system.log()
    assert "locked" not in log, log[-3000:]
    with system.rows() as rows:
        events = rows.execute("SELECT message FROM environments_buildevent").fetchall()
    assert not [message for (message,) in events if "locked" in message]
