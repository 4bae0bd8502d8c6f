"""Invariants that are checked all the time, and at the end of fault tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from condastore.databases.sqlite3.base import queue_of
from condastore.databases.writers import WriteQueueTimeoutError
from tests.system import FINISHED, System, Worker, until


def can_write(database: Path, *, patience: float = 0.3) -> bool:
    """Return True if no stopped process holds SQLite's write lock or write turn."""
    queue = queue_of(str(database))
    try:
        queue.acquire(patience)
    except WriteQueueTimeoutError:
        return False
    try:
        with contextlib.closing(
            sqlite3.connect(database, timeout=patience, isolation_level=None)
        ) as rows:
            rows.execute("BEGIN IMMEDIATE")
            rows.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        queue.release()
    return True


def stop_without_a_lock(system: System, pid: int) -> None:
    """SIGSTOP a worker that is not writing; otherwise all others would wait for it."""
    for _ in range(50):
        os.kill(pid, signal.SIGSTOP)
        if can_write(system.data / "db.sqlite3"):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("the worker always writes")


class Watch:
    """Reads `envs/` without pause, as users do: whatever is there must be whole.

    A link that was there once stays there. What it leads to has its notes and every file that its
    packages bring.
    """

    def __init__(self, data: Path) -> None:
        self.envs = data / "envs"
        self.looks = 0
        self.faults: list[str] = []
        self.seen: set[str] = set()  # the prefixes that were current at some time
        self._links: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        if error is None:
            assert not self.faults, self.faults[:10]
            assert self.looks

    def _watch(self) -> None:
        while not self._end.wait(0.002):
            self._find()
            for link in self._links:
                self._look(link)
            self.looks += 1

    def _find(self) -> None:
        """Add the links that are new; with strings, as this runs hundreds of times per second."""
        for namespace in _names(f"{self.envs}"):
            folder = f"{self.envs}/{namespace}"
            self._links.update(f"{folder}/{name}" for name in _names(folder))

    def _look(self, link: str) -> None:
        folder, _, name = link.rpartition("/")
        target = ""
        try:
            target = os.readlink(link)  # noqa: PTH115
            prefix = f"{folder}/{target}"
            with open(f"{prefix}/conda-meta/history", "rb"):  # noqa: PTH123
                pass
            number = target.rpartition("/")[2]
            if number not in self.seen:
                lacking = missing(Path(prefix))
                if self._withdrawn(link, target):
                    return
                self.faults += [f"{number}: no {name}" for name in lacking]
                self.seen.add(number)
        except OSError as error:
            if not target or not self._withdrawn(link, target):
                self.faults.append(f"{name}: {error!r}")

    def _withdrawn(self, link: str, target: str) -> bool:
        """Whether its worker was killed before READY: `envs/` first leads elsewhere again."""
        try:
            now = os.readlink(link)  # noqa: PTH115
        except FileNotFoundError:  # the look that follows says so
            return True
        return now != target and not (Path(link).parent / target).exists()


def _names(folder: str) -> list[str]:
    """What is visible in a folder; nothing if it is not there."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208
    return []


def missing(prefix: Path) -> list[str]:
    """Return what a prefix lacks: files that its packages list, and conda's metadata."""
    records = list((prefix / "conda-meta").glob("*.json"))
    if not records:
        return ["packages"]
    names = [f"conda-meta/{name}" for name in ("history", "frozen")]
    for record in records:
        names += json.loads(record.read_bytes())["files"]
    return [name for name in names if not os.path.lexists(prefix / name)]


def owner_of(rows: sqlite3.Connection, build: str) -> int | None:
    """Return the process that runs a build."""
    query = "SELECT lease_owner FROM environments_build WHERE id = ?"
    [(owner,)] = rows.execute(query, (build,)).fetchall()
    return int(owner.split(":")[1]) if owner else None


def state_of(rows: sqlite3.Connection, build: str) -> str:
    query = "SELECT state FROM environments_build WHERE id = ?"
    [(state,)] = rows.execute(query, (build,)).fetchall()
    return str(state)


def kill_in(rows: sqlite3.Connection, worker: Worker, build: str, state: str) -> bool:
    """Let the worker run a step at a time, and kill it when its build is in `state`.

    False where the build was faster.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        worker.send_signal(signal.SIGSTOP)
        now = state_of(rows, build)
        if now == state and owner_of(rows, build) == worker.pid:
            worker.kill()
            worker.wait()
            return True
        worker.send_signal(signal.SIGCONT)
        if now in FINISHED:
            return False
        # Long states are waited for; the short ones are near when the one before them is seen.
        time.sleep(0.002)
    raise AssertionError(f"build {build} stayed in {now}")


def settle(system: System, references: Iterable[str]) -> None:
    """Nothing is left of what died: no folder, no link, no process; pointers and links agree.

    Upkeep takes a folder for an orphan only when it is older than any attempt may be: here the
    clock of those that are left is turned back.
    """
    references = list(references)
    shown = {reference: system.environment(reference) for reference in references}
    builds = {
        reference: [edge["node"] for edge in environment["builds"]["edges"]]
        for reference, environment in shown.items()
    }
    for reference, known in builds.items():
        assert {build["state"] for build in known} <= FINISHED, known
        current = shown[reference]["current"]
        ready = [build for build in known if build["state"] == "READY"]
        assert [build["id"] for build in known if build["isCurrent"]] == [
            each["id"] for each in [current] if each
        ]
        if not shown[reference]["pinned"]:
            newest = max(ready, key=lambda build: int(build["number"]), default=None)
            assert (current or {}).get("id") == (newest or {}).get("id"), reference
        link = system.folder(reference)
        assert link.is_symlink() == bool(current), reference
        if current:
            assert link.resolve() == Path(current["prefixPath"]).resolve(), reference
        for build in ready:
            assert missing(Path(build["prefixPath"])) == [], build
    namespaces = {reference.split("/")[0] for reference in references}
    expected = {
        Path(build["prefixPath"]).relative_to(system.data / "prefixes").as_posix()
        for known in builds.values()
        for build in known
        if build["state"] == "READY"
    }

    def tidy() -> bool:
        left = {path for path in system.prefixes() if path.split("/")[0] in namespaces}
        for path in left - expected:
            _turn_back(system.data / "prefixes" / path)
        hidden = sorted((system.data / "envs").glob("*/.*"))
        for name in hidden:
            _turn_back(name)
        return left == expected and not hidden and not list((system.data / "trash").glob("*"))

    until(tidy, 60, lambda: f"left: {system.prefixes() ^ expected}\n{system.log()[-3000:]}")


def _turn_back(path: Path, hours: int = 1) -> None:
    then = time.time() - hours * 3600
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, (then, then), follow_symlinks=False)


def end_all(system: System) -> list[str]:
    """Stop the system; return the command lines of remaining processes."""
    system.stop()
    psutil.wait_procs(system.everything(), timeout=10)
    return [" ".join(process.cmdline()) for process in system.everything()]
