"""Steps of the wall clock while builds wait and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.channels.server import ChannelServer
from tests.faults.conftest import Start
from tests.faults.watching import settle
from tests.services.processes import find_program

TESTED = "dependencies: [python]\ncondastore: {tests: {commands: ['sleep 2']}}\n"
HELLO = "dependencies: [license-mit]"
HOURS = 2 * 3600


class Clock:
    """The wall clock of a system's processes; the monotonic clock is not changed."""

    def __init__(self, folder: Path) -> None:
        self._file, self._library = folder / "offset", folder / "shifted_clock.so"
        self._file.write_bytes(bytes(8))
        compiler = find_program("gcc", component="a C compiler", install="apt-get install gcc")
        source = Path(__file__).with_name("shifted_clock.c")
        command = [str(compiler), "-shared", "-fPIC", "-O2", str(source), "-o", str(self._library)]
        subprocess.run(command, check=True)

    def set(self, seconds: int) -> None:
        """Let the wall clock differ from the machine's by so much, from now on."""
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    @property
    def environ(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK_FILE": str(self._file)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def clock(compiled: Clock) -> Clock:
    """The clock, set right; one for all tests, as the library is loaded with the programs."""
    compiled.set(0)
    return compiled


@pytest.mark.parametrize(
    "steps",
    [(-HOURS,), (HOURS,), (HOURS, 0), (-HOURS, 0)],
    ids=["back", "forward", "forward and back", "back and forward"],
)
def test_builds_continue_when_the_clock_is_set(
    start: Start, clock: Clock, channel: ChannelServer, steps: tuple[int, ...]
) -> None:
    with start(workers=0, preload=clock.environ) as system:
        system.create("clock/env")
        worker = system.add_worker()
        running = system.submit("clock/env", TESTED)
        system.wait(running, ["CHECKING"])
        # One worker with as many threads as there are builds would leave none waiting.
        waiting = [system.submit("clock/env", HELLO) for _ in range(3)]
        for number, step in enumerate(steps):
            clock.set(step)
            if number == 0:
                worker.kill()  # its lease ends hours from now, by the clock that was set back
                system.add_worker()
            waiting.append(system.submit("clock/env", HELLO))
        for build in (running, *waiting):
            assert system.wait(build)["state"] == "READY"
        clock.set(0)  # the ages of folders depend on the wall clock
        settle(system, ["clock/env"])


def test_a_worker_that_lives_loses_no_build_when_the_clock_is_set(
    start: Start, clock: Clock
) -> None:
    with start(preload=clock.environ, LEASE="6") as system:
        system.create("clock/alive")
        for step in (HOURS, -HOURS, 0):
            build = system.submit("clock/alive", TESTED)
            system.wait(build, ["CHECKING"])
            clock.set(step)
            done = system.wait(build)
            assert (done["state"], done["attempt"]) == ("READY", 1), done
