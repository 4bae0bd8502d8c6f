"""Random kills of all kinds of processes under load, with consistency checks at the end."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from tests.faults.watching import Watch, can_write, end_all, missing
from tests.services import Service
from tests.system import GraphQLFailedError, System, Worker, until

#: Settings of a system that recovers within moments, and survives every kill.
SETTINGS = {
    "CONDASTORE_LEASE": "4",
    "CONDASTORE_SWEEP_INTERVAL": "1",
    "CONDASTORE_BACKOFF": "0.02",
    "CONDASTORE_TRASH_INTERVAL": "2",
    "CONDASTORE_BUILD_ATTEMPTS": "60",
    "CONDASTORE_WORKER_THREADS": "2",
    "CONDASTORE_SOLVE_TIME_LIMIT": "20",
}
TESTED = "\ncondastore: {tests: {commands: ['sleep 0.2']}}\n"
TEXTS = (
    f"dependencies: [python, hello-noarch]{TESTED}",
    f"dependencies: [python, hello-noarch 1.*, activating]{TESTED}",
    f"dependencies: [python, pip: ['tinyname ~=1.0']]{TESTED}",
    "dependencies: [demo-stack 2025.*, large-data]",
    "dependencies: [license-mit]",
)
WRONG = "dependencies: [conflict-left, conflict-right]"
#: How often each kind of fault happens, relative to the others.
WEIGHTS = {
    "worker": 40,
    "child of a worker": 18,
    "worker stopped": 8,
    "worker ended": 8,
    "web": 6,
    "scheduler": 7,
    "scheduler stopped": 2,
    "valkey": 4,
    "up": 1.2,
    "up ended": 0.8,
    "database connections": 3,
    "database": 1.5,
}
NAMESPACE = "soak"
OLD = 3 * 86400  # seconds: leftovers of this age are removed


class Soak:
    """One run: `faults` faults at random moments, then the checks; `seed` makes the choices."""

    def __init__(
        self,
        folder: Path,
        *,
        channel: str,
        faults: int,
        seed: int,
        database: Service | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.faults, self.database, self.say = faults, database, say
        self.chance = random.Random(seed)
        environ = SETTINGS | ({"CONDASTORE_DATABASE_URL": database.url} if database else {})
        self.system = System(folder / "data", channel=channel, workers=1, environ=environ)
        self.workers: list[Worker] = []
        self.environments = [f"{NAMESPACE}/env-{number}" for number in range(4)]
        self.builds: dict[str, set[str]] = {}  # id: the states in which it may end
        self.cancelled: set[str] = set()
        self.done: Counter[str] = Counter()
        self.states: Counter[str] = Counter()  # of builds of killed workers
        self.refused: Counter[str] = Counter()

    # --- the run -------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the system, break it, check it, and stop it."""
        try:
            self.system.start()
            for reference in self.environments:
                self.system.create(reference)
            for text in TEXTS:  # what is solved and fetched once: later builds get beyond that
                self.system.build(self.environments[0], text)
            self.workers = [self.system.add_worker(), self.system.add_worker()]
            with Watch(self.system.data):
                while self.done.total() < self.faults:
                    self._use()
                    self._break()
                self._let_settle()
                self._check_rows()
            self._check_disk()
            self._check_that_all_run()
        finally:
            left = end_all(self.system)
        assert not left, left

    def _use(self) -> None:
        """Use the system like people do, so that there is always work to interrupt."""
        for _ in range(20):
            if len(self._unfinished()) >= 5:
                break
            self._submit()
        if self.chance.random() < 0.5:
            self.chance.choice((self._cancel, self._preview, self._artifact, self._archive))()

    def _break(self) -> None:
        self._let_happen(self.chance.randrange(3))
        time.sleep(self.chance.random() * 0.4)
        kinds = [kind for kind in WEIGHTS if self.database or not kind.startswith("database")]
        [kind] = self.chance.choices(kinds, [WEIGHTS[kind] for kind in kinds])
        with contextlib.suppress(psutil.NoSuchProcess):
            if not FAULTS[kind](self):
                return
        self.done[kind] += 1
        for index, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.workers[index] = self.system.add_worker()
        if self.done.total() % 20 == 0:
            self._check_database()
            self.say(f"{self.done.total()} of {self.faults} {dict(self.done)}")

    # --- requests, which may meet a system that is away -------------------------------------------

    def _attempt(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except (GraphQLFailedError, httpx.TransportError, ValueError) as error:
            self.refused[type(error).__name__] += 1
            time.sleep(0.1)
            return None
        except AssertionError as error:  # refused, as an archive of the current build
            self.refused["refused"] += 1
            if "internal-error" in str(error):
                raise
            return None

    def _submit(self) -> None:
        fails = self.chance.random() < 0.08
        text = WRONG if fails else self.chance.choice(TEXTS)
        reference, force = self.chance.choice(self.environments), self.chance.random() < 0.2
        build = self._attempt(lambda: self.system.submit(reference, text, force=force))
        if build:
            self.builds[build] = {"FAILED"} if fails else {"READY"}

    def _cancel(self) -> None:
        running = self._unfinished()
        if running:
            build = str(self.chance.choice(running))
            self.cancelled.add(build)  # also where no answer comes
            self._attempt(lambda: self.system.change("cancelBuild", id=build))

    def _preview(self) -> None:
        query = """mutation($text: String!) {
          previewSolve(namespace: "soak", specification: $text, forceSolve: true, wait: 0) {
            __typename ... on Preview { id } } }"""
        text = self.chance.choice(TEXTS)
        self._attempt(lambda: self.system.graphql(query, text=text))

    def _artifact(self) -> None:
        query = """mutation($id: ID!, $kind: ArtifactKind!) {
          createArtifact(buildId: $id, kind: $kind) { __typename } }"""
        ready = self._ids("READY")
        if ready:
            build, kind = self.chance.choice(ready), self.chance.choice(("TAR_GZ", "TAR_ZST"))
            self._attempt(lambda: self.system.graphql(query, id=str(build), kind=kind))

    def _archive(self) -> None:
        name, state = self.chance.choice((("archiveBuild", "READY"), ("restoreBuild", "ARCHIVED")))
        found = self._ids(state)
        if found:
            build = str(self.chance.choice(found))
            self._attempt(lambda: self.system.change(name, id=build))

    # --- faults ----------------------------------------------------------------------------------

    def _victim(self) -> Worker | None:
        """Return a worker, a busy one if possible; at least one other stays."""
        alive = {worker.pid: worker for worker in self.workers if worker.poll() is None}
        owners = self._query(
            "SELECT lease_owner, state FROM environments_build WHERE lease_owner <> ''"
        )
        busy = [(int(owner.split(":")[1]), state) for owner, state in owners]
        mine = [(pid, state) for pid, state in busy if pid in alive]
        if mine:
            pid, state = self.chance.choice(mine)
            self.states[state] += 1
            return alive[pid]
        return self.chance.choice(list(alive.values())) if alive else None

    def _kill_worker(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.kill()
        victim.wait()
        return True

    def _end_worker(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        victim.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            victim.wait(20)
        return True

    def _stop_worker(self) -> bool:
        victim = self._victim()
        if victim is None:
            return False
        self._pause(psutil.Process(victim.pid))
        return True

    def _kill_child(self) -> bool:
        """A solver, a confined or sandboxed program, or uv, of any worker."""
        pids = [one.pid for one in self.workers]
        pids += [one.pid for one in self.system.processes("worker")]
        children = [child for pid in pids for child in _children(pid)]
        if not children:
            return False
        self.chance.choice(children).kill()
        return True

    def _kill_one(self, word: str) -> bool:
        found = self.system.processes(word)
        for process in found[:1]:
            process.kill()
        return bool(found)

    def _stop_scheduler(self) -> bool:
        found = self.system.processes("scheduler")
        for process in found[:1]:
            self._pause(process)
        return bool(found)

    def _kill_valkey(self) -> bool:
        found = [p for p in _children(self.system.supervisor.pid) if "valkey" in p.name()]
        for process in found[:1]:
            process.kill()
        return bool(found)

    def _restart_up(self, number: signal.Signals) -> bool:
        self.system.restart(number)
        return True

    def _pause(self, process: psutil.Process) -> None:
        """Stop a process, sometimes for longer than a lease; never during a write to SQLite."""
        seconds = self.chance.choice((0.3, 1.0, 6.0))
        for _ in range(20):
            process.suspend()
            if self.database or can_write(self.system.data / "db.sqlite3"):
                break
            process.resume()
            time.sleep(0.05)
        else:
            return
        try:
            time.sleep(seconds)
        finally:
            process.resume()

    def _end_connections(self) -> bool:
        self._query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return True

    def _restart_database(self) -> bool:
        assert self.database is not None
        self.database.kill()
        time.sleep(self.chance.choice((0.2, 2.0, 6.0)))
        self.database.start()
        return True

    # --- rows ------------------------------------------------------------------------------------

    def _query(self, text: str) -> list[tuple[Any, ...]]:
        if self.database is not None:
            with psycopg.connect(self.database.url, autocommit=True) as connection:
                return connection.execute(text.encode()).fetchall()
        with self.system.rows() as rows:
            return rows.execute(text).fetchall()

    def _ids(self, state: str) -> list[int]:
        rows = self._query("SELECT id, state FROM environments_build ORDER BY id")
        return [key for key, found in rows if found == state]

    def _unfinished(self) -> list[int]:
        rows = self._query("SELECT id FROM environments_build WHERE finished_at IS NULL")
        return sorted(key for (key,) in rows)

    def _let_happen(self, number: int) -> None:
        """Wait for so many moves of builds: a slow machine takes longer, and gets as far."""
        count = "SELECT count(*) FROM environments_buildevent"
        [(before,)] = self._query(count)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            [(now,)] = self._query(count)
            if now - before >= number or not self._unfinished():
                return
            time.sleep(0.02)

    # --- checks ----------------------------------------------------------------------------------

    def _let_settle(self) -> None:
        """Check that all accepted work reaches a final state without intervention."""
        waiting = (
            "SELECT 'artifact', id, state FROM environments_artifact "
            "WHERE state NOT IN ('READY', 'FAILED') UNION ALL "
            "SELECT 'build', id, state FROM environments_build WHERE finished_at IS NULL"
        )
        previews = "SELECT state FROM environments_preview WHERE state IN ('QUEUED', 'SOLVING')"
        until(
            lambda: not self._query(waiting) and not self._query(previews),
            180,
            lambda: (
                f"stuck: {self._query(waiting)} {self._query(previews)}\n"
                f"{self.system.log()[-3000:]}"
            ),
            0.5,
        )

    def _check_database(self) -> None:
        """The file of SQLite is sound; the faults so far say between which two looks it broke."""
        if self.database is None:
            found = self._query("PRAGMA integrity_check")
            assert found == [("ok",)], found

    def _check_rows(self) -> None:
        self._check_database()
        found = {
            str(key): (state, failure)
            for key, state, failure in self._query(
                "SELECT id, state, failure FROM environments_build"
            )
        }
        lost = sorted(set(self.builds) - set(found))
        assert not lost, f"lost: {lost}"
        wrong = {}
        for build, expected in self.builds.items():
            state, failure = found[build]
            allowed = expected | ({"CANCELLED"} if build in self.cancelled else set())
            if "READY" in allowed:
                allowed = allowed | {"ARCHIVED"}
            killed = "smoke-test-killed" in str(failure)  # by us, twice
            if state not in allowed and not killed:
                wrong[build] = (state, failure)
        assert not wrong, f"{len(wrong)} wrong: {wrong}"
        failed = self._query(
            "SELECT id, failure FROM environments_artifact WHERE state = 'FAILED'"
        ) + self._query("SELECT id, failure FROM environments_preview WHERE state = 'FAILED'")
        assert not failed, failed
        named = self._query(
            "SELECT id, state FROM environments_build WHERE prefix_id IS NOT NULL "
            "AND state <> 'READY'"
        )
        assert not named, f"folders of builds that are not READY: {named}"

    def _check_disk(self) -> None:
        """Nothing of what died is left, once it is old enough to be known for a leftover."""
        data = self.system.data
        ready = {
            path.removeprefix("prefixes/")
            for (path,) in self._query(
                "SELECT path FROM environments_prefix WHERE id IN "
                "(SELECT prefix_id FROM environments_build WHERE state = 'READY')"
            )
        }
        for path in ready:
            assert missing(data / "prefixes" / path) == [], path

        def leftovers() -> list[Path]:
            return [
                *(data / "prefixes" / path for path in self.system.prefixes() - ready),
                *data.glob("envs/*/.*"),
                *data.glob("trash/*"),
                *filter(_is_attempt, data.glob("blobs/*")),
                *data.glob("cache/mirrors/*"),
                *data.glob("cache/uv/condastore-uv-*"),
                *data.glob("cache/uv/*/.tmp*"),
                *data.glob("cache/uv/*/*/.tmp*"),
                *data.glob("cache/**/*.part"),
                *data.glob("cache/**/.unpacking-*"),
            ]

        def tidy() -> bool:
            found = leftovers()
            for path in found:
                _turn_back(path)
            rows = self._query(
                "SELECT path FROM environments_prefix WHERE id NOT IN "
                "(SELECT prefix_id FROM environments_build WHERE prefix_id IS NOT NULL)"
            )
            return not found and not rows

        until(tidy, 90, lambda: f"left: {leftovers()[:20]}\n{self.system.log()[-2000:]}", 0.5)

    def _check_that_all_run(self) -> None:
        links = self._query(
            "SELECT n.name, e.name, p.path, b.state, b.number FROM environments_environment e "
            "JOIN environments_namespace n ON n.id = e.namespace_id "
            "JOIN environments_build b ON b.id = e.current_id "
            "JOIN environments_prefix p ON p.id = b.prefix_id"
        )
        assert links
        for namespace, name, path, state, number in links:
            link = self.system.folder(f"{namespace}/{name}")
            assert link.resolve() == (self.system.data / path).resolve(), (link, path)
            assert state == "READY", (link, state, number)
        for (path,) in self._query(
            "SELECT path FROM environments_prefix WHERE id IN "
            "(SELECT prefix_id FROM environments_build WHERE state = 'READY')"
        ):
            python = self.system.data / path / "bin" / "python"
            if python.exists():
                subprocess.run([python, "-c", "import json"], check=True)
        assert self.system.get("/readyz").json()["ready"]


FAULTS: dict[str, Callable[[Soak], bool]] = {
    "worker": Soak._kill_worker,
    "child of a worker": Soak._kill_child,
    "worker stopped": Soak._stop_worker,
    "worker ended": Soak._end_worker,
    "web": lambda soak: soak._kill_one("web"),
    "scheduler": lambda soak: soak._kill_one("scheduler"),
    "scheduler stopped": Soak._stop_scheduler,
    "valkey": Soak._kill_valkey,
    "up": lambda soak: soak._restart_up(signal.SIGKILL),
    "up ended": lambda soak: soak._restart_up(signal.SIGTERM),
    "database connections": Soak._end_connections,
    "database": Soak._restart_database,
}


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_attempt(path: Path) -> bool:
    """Return True for the folder of an attempt at an artifact."""
    return re.match(r"(documents-)?[0-9]+-", path.name) is not None


def _turn_back(path: Path) -> None:
    then = time.time() - OLD
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, (then, then), follow_symlinks=False)
