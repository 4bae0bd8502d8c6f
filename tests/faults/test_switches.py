"""Readers of an environment during switches see the old build or the new one."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from tests.faults.conftest import Start
from tests.faults.watching import Watch, settle
from tests.system import System

SWITCHES = 200
REFERENCE = "switched/often"


def test_readers_see_no_failure_across_two_hundred_switches(start: Start) -> None:
    with start() as system:
        system.create(REFERENCE)
        builds = [
            system.build(REFERENCE, f"dependencies: [python, hello-noarch {version}]")
            for version in ("1.1", "2.0")
        ]
        link = system.folder(REFERENCE)
        # The pauses leave the processors to the switches, of which each is seen all the same.
        runs = _Loop(lambda: _run_python(link), pause=0.05)
        reads = _Loop(lambda: _read(link), pause=0.002)
        with Watch(system.data) as watch, runs, reads:
            for number in range(SWITCHES):
                _switch(system, builds[number % 2]["id"])
        assert len(watch.seen) == 2
        assert runs.answers == {"1.1", "2.0"}
        assert reads.answers == {"1", "2"}
        settle(system, [REFERENCE])


def _switch(system: System, build: str) -> None:
    system.change("setCurrentBuild", id=build, pin=True)


def _run_python(link: Path) -> str:
    code = "import json, hello_noarch; print(hello_noarch.__version__)"
    answer = subprocess.run(
        [link / "bin/python", "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def _read(link: Path) -> str:
    """Return the build that the history of the environment names."""
    text = (link / "conda-meta" / "history").read_text()
    assert "hello-noarch" in text
    return link.readlink().name.split("-")[0]


class _Loop:
    """An action repeated in a thread, after pauses in seconds; its results and first failure."""

    def __init__(self, what: Callable[[], str], *, pause: float) -> None:
        self.answers: set[str] = set()
        self.failure: BaseException | None = None
        self._what, self._pause = what, pause
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            while not self._end.wait(self._pause):
                self.answers.add(self._what())
        except (AssertionError, OSError) as error:
            self.failure = error
