"""A real `condastore up`, as a test starts, watches and kills it."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from tests import lanes
from tests.condastore.command_line import COMMAND, Person
from tests.migrated import put_database
from tests.services.processes import wait_for

ADMIN, PASSWORD = "admin", "correct-horse-battery"


@dataclass(slots=True, kw_only=True)
class System:
    """One `condastore up` on a data folder; started by `start`, ended by a signal."""

    data: Path
    person: Person
    arguments: tuple[str, ...] = ("--port", "0")
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] = field(default_factory=dict)
    _family: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.data / "run" / "up.json").read_text())
        return content

    @property
    def log(self) -> str:
        return (self.data.parent / "up.log").read_text(errors="replace")

    def start(self) -> System:
        """Start it and wait until it says that it is ready."""
        lanes.require("system", "`condastore up`")
        with (self.data.parent / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--json", *self.arguments],
                env=self.person.environ,
                cwd=self.person.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        with self.process.stdout as said:
            line = said.readline()
        assert line, f"it ended with status {self.process.wait()}:\n{self.log}"
        self.ready = json.loads(line)
        self._family = self.family()
        return self

    def family(self) -> list[psutil.Process]:
        """It and everything that it has started."""
        assert self.process is not None
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    @property
    def children(self) -> list[psutil.Process]:
        """What it had started when it was last looked at."""
        return self._family[1:]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self._family = self.family()
        self.process.send_signal(number)

    def left(self, *, within: float) -> list[psutil.Process]:
        """Which of its processes still run after so many seconds."""
        assert self.process is not None
        self.process.wait(within)
        alive: list[psutil.Process] = psutil.wait_procs(self._family, timeout=within)[1]
        return [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            for one in self.left(within=1):
                one.kill()

    def child(self, name: str) -> psutil.Process:
        return psutil.Process(self.state["children"][name])

    def replaced(self, name: str) -> None:
        """Kill a child and wait until another one runs in its place."""
        before = self.state["children"][name]
        psutil.Process(before).kill()
        wait_for(lambda: self.state["children"][name] not in {before, None}, what=name)

    def administrator(self, home: Path) -> Person:
        """The administrator at another terminal, signed in."""
        home.mkdir(exist_ok=True)
        person = Person(home=home)
        person.does(
            "login", self.url, "--username", ADMIN, "--password-stdin", says=f"{PASSWORD}\n"
        ).succeeded()
        return replace(person, url=self.url)


def make_system(
    folder: Path, variables: Mapping[str, str] | None = None, *, migrated: bool = True
) -> System:
    """Not started yet. `folder` is short, so that the queue's socket fits into it.

    `migrated`: it finds its tables; they are made at its first start else.
    """
    home = folder / "home"
    home.mkdir()
    data = folder / "data"
    if migrated:
        put_database(data)
    settings = {
        "CONDASTORE_DATA": str(data),
        "CONDASTORE_ADMIN_PASSWORD": PASSWORD,
        "CONDASTORE_SWEEP_INTERVAL": "2",
        **(variables or {}),
    }
    return System(data=data, person=Person(home=home, variables=settings))


@contextmanager
def running_system(
    variables: Mapping[str, str] | None = None, *, migrated: bool = True
) -> Iterator[System]:
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        system = make_system(Path(folder), variables, migrated=migrated)
        system.start()
        try:
            yield system
        finally:
            system.stop()
