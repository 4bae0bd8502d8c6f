"""Child processes that are started again when they die, and that never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol

from condastore.supervisor import fork

#: Seconds before a child that died is started again: doubles in a crash loop, and begins anew after
#: a good run. A child that ran well for so long was killed from outside, or met a rare fault.
FIRST_PAUSE, LONGEST_PAUSE, GOOD_RUN = 0.5, 30.0, 10.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a child runs.

    `module`: one of ours, of which `main()` runs, and `command` are its arguments; else `command`
    is another program. `preload`: modules that this process imports before it is copied, so that
    a restart takes a moment, and several share the memory. `grace`: seconds that it has to stop
    when told to; `unsaid`: lines with one of these are not passed on; `niceness`: how much lower
    than this process's its priority is.
    """

    name: str
    command: Sequence[str]
    module: str = ""
    preload: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()
    unsaid: Sequence[str] = ()
    grace: float = 10.0
    niceness: int = 0


def die_with(parent: int) -> Callable[[], None]:
    """To run in a child before it becomes its program: SIGTERM when `parent` dies, however.

    The signal is tied to the thread that starts the child: start it from the main thread.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return tie


class Process(Protocol):
    """What `subprocess.Popen` and `forks.Fork` have in common."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> IO[bytes] | None: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def terminate(self) -> None: ...


def _start(program: Program) -> Process:
    """The program in a process with a session of its own, its output in a pipe.

    Our own modules run in a fork of this process, which has imported their dependencies already.
    """
    tie = die_with(os.getpid())

    def first() -> None:
        os.nice(program.niceness)
        tie()

    if program.module and fork.safe():
        for name in program.preload:
            importlib.import_module(name)
    if program.module and fork.safe():
        return fork.Fork(
            program.module,
            program.command,
            title=f"condastore {program.name}",
            environ=program.environ,
            descriptors=program.descriptors,
            first=first,
        )
    ours = [sys.executable, "-m", program.module] if program.module else []
    return subprocess.Popen(
        [*ours, *program.command],
        env=os.environ | dict(program.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=program.descriptors,
        start_new_session=True,
        preexec_fn=first,  # safe: the supervisor has one thread
    )


class Child:
    """One program and the process that runs it now, in a session and process group of its own."""

    def __init__(self, program: Program, *, said: Callable[[str], None]) -> None:
        self.program = program
        self.process: Process | None = None
        self.due = 0.0  # when it may be started (again)
        self._said = said
        self._pause, self._started = FIRST_PAUSE, 0.0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def output(self) -> IO[bytes] | None:
        return self.process.stdout if self.process else None

    def start(self) -> None:
        self._started = time.monotonic()
        self.process = _start(self.program)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

    def reap(self) -> bool:
        """True once, when the process has ended; says when it is started again."""
        if self.process is None or self.process.poll() is None:
            return False
        now = time.monotonic()
        if now - self._started >= GOOD_RUN:
            self._pause = FIRST_PAUSE
        self.due = now + self._pause
        self._said(f"{_ending(self.process.returncode)}; starts again in {self._pause:g} s")
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self.clear()
        return True

    def clear(self) -> None:
        """Forget the process that ended, and end what it left in its process group."""
        if self.process is not None:
            self.kill()
            self.process.wait()
            self.process = None

    def terminate(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """The whole process group: the child leads it."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def _ending(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
