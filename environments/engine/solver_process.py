"""How does a solve stay stoppable? rattler works in a process that can be killed at any moment.

A request without a solution can make rattler take all memory of the machine while it puts the
reason in words, and its time limit does not hold there. So each solve has a process to itself: it
is ended when the solve is cancelled, late, or takes too much memory, and kept warm otherwise.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from environments.domain.errors import StoreError, TimeLimitError, WorkerLostError
from environments.domain.lock import PlatformLock
from environments.domain.names import Credential
from environments.domain.progress import Cancelled, never, obey
from environments.engine import forward_proxy
from environments.engine.addresses import guard
from environments.engine.channels import Channels
from environments.engine.memory import give_back, resident
from environments.engine.solving import Log, Work, solve_conda

_POLL = 0.05  # seconds between two looks at a cancel and at the memory
_IDLE = 900.0  # seconds after which a process that nobody asks ends by itself


class TooHardError(Exception):
    """The solve took more memory than it may."""


class _GoneError(Exception):
    """The process ended without an answer."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    link: Connection

    def end(self) -> None:
        """Kill it: it keeps nothing that is worth a goodbye, and its exit may crash."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.link.close()


class SolverProcesses:
    """Processes that solve, one solve each at a time; one of them is kept for the next."""

    def __init__(self, *, cache: Path, memory_limit: int, idle_memory: int) -> None:
        """Sizes in bytes: at most that while it solves; at most that while it waits."""
        self._cache = cache
        self._memory_limit = memory_limit
        self._idle_memory = idle_memory
        self._lock = threading.Lock()
        self._idle: _Worker | None = None
        self._owner = os.getpid()

    def warm_up(self) -> None:
        """Have a process ready for the first solve."""
        if self._idle is None:
            self._give_back(self._start(), keep=True)

    def close(self) -> None:
        worker = self._take()
        if worker is not None:
            worker.end()

    def run(
        self,
        work: Work,
        credentials: Mapping[str, Credential | None],
        *,
        cancelled: Cancelled,
        log: Log,
    ) -> list[PlatformLock]:
        """`solve_conda` in a process.

        Raises:
            TooHardError: it took more memory than it may.
            StoreError: what `solve_conda` raises.
        """
        worker = self._take()
        if worker is not None:
            with contextlib.suppress(_GoneError):  # it ended just now, having been idle for long
                return self._ask(worker, work, credentials, cancelled=cancelled, log=log)
        worker = self._start()
        try:
            return self._ask(worker, work, credentials, cancelled=cancelled, log=log)
        except _GoneError as error:
            raise WorkerLostError(
                f"The solver ended unexpectedly (status {worker.process.returncode})."
            ) from error

    def _ask(
        self,
        worker: _Worker,
        work: Work,
        credentials: Mapping[str, Credential | None],
        *,
        cancelled: Cancelled,
        log: Log,
    ) -> list[PlatformLock]:
        try:
            worker.link.send((work, credentials))
            kind, answer = self._await(worker, work, cancelled=cancelled, log=log)
            healthy = resident(worker.process.pid) <= self._idle_memory
        except (EOFError, OSError) as error:
            worker.end()
            raise _GoneError from error
        except BaseException:
            worker.end()
            raise
        self._give_back(worker, keep=healthy)
        if kind == "error":
            raise answer
        return list(answer)

    def _await(
        self, worker: _Worker, work: Work, *, cancelled: Cancelled, log: Log
    ) -> tuple[str, Any]:
        while True:
            while worker.link.poll(_POLL):
                kind, content = worker.link.recv()
                if kind != "log":
                    return kind, content
                log(content)
            obey(cancelled)
            if resident(worker.process.pid) > self._memory_limit:
                raise TooHardError
            if time.monotonic() > work.deadline + 2:  # its own limits come first, if they hold
                raise TimeLimitError("The solver found no answer within the time limit.")

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _PROGRAM),
                    *(str(theirs.fileno()), os.fspath(self._cache), str(self._memory_limit)),
                ],
                env={
                    **{
                        name: value
                        for name, value in os.environ.items()
                        if "proxy" not in name.lower()
                    },
                    **forward_proxy.of(guard()).environment(),
                    "PYTHONPATH": os.pathsep.join(_import_path()),
                },
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Worker(process, ours)

    def _take(self) -> _Worker | None:
        with self._lock:
            if self._owner != os.getpid():  # after a fork the parent's is not ours
                self._idle, self._owner = None, os.getpid()
            worker, self._idle = self._idle, None
        if worker is not None and worker.process.poll() is not None:
            worker.end()
            return None
        return worker

    def _give_back(self, worker: _Worker, *, keep: bool) -> None:
        with self._lock:
            if keep and self._idle is None:
                self._idle = worker
                return
        worker.end()


_PROGRAM = "from environments.engine.solver_process import main; main()"


def main() -> None:
    """The process itself: `FD CACHE MEMORY_LIMIT`; answers until the other end closes."""
    link = Connection(int(sys.argv[1]))
    # The parent looks often enough; this is for the moment when it does not.
    limit = max(int(sys.argv[3]) * 4, 1 << 30)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    credentials: dict[str, Credential | None] = {}
    channels = Channels(
        cache=Path(sys.argv[2]), credentials=lambda url: credentials.get(url), confined=True
    )
    requests = _Inbox(link)
    while True:
        work, shown = requests.next()
        credentials = dict(shown)
        here = {hosted.url for hosted in work.hosted}
        channels.learn_credentials(url for url in work.request.channels if url not in here)
        answer: tuple[str, Any]
        try:
            answer = ("answer", solve_conda(channels, work, cancelled=never, log=requests.log))
        except StoreError as error:
            answer = ("error", error)
        except Exception as error:
            answer = ("error", WorkerLostError(channels.clean(f"The solver failed: {error!r}")))
        give_back()
        requests.send(answer)


class _Inbox:
    """The process's end of the link. When the other end closes, this process ends at once."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._ready = threading.Semaphore(0)
        self._received: list[Any] = []
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self) -> Any:
        if not self._ready.acquire(timeout=_IDLE):
            os._exit(0)
        return self._received.pop(0)

    def log(self, line: str) -> None:
        self.send(("log", line))

    def send(self, message: Any) -> None:
        with self._sending:
            try:
                self._link.send(message)
            except OSError:
                os._exit(0)

    def _listen(self) -> None:
        while True:
            try:
                self._received.append(self._link.recv())
            except (EOFError, OSError):
                os._exit(0)  # also in the middle of a solve: nobody waits for it any more
            self._ready.release()


def _import_path() -> list[str]:
    """Where the process finds us, from whatever folder it starts in."""
    ours = Path(__file__).resolve().parents[2]
    return [os.fspath(ours), *filter(None, [os.environ.get("PYTHONPATH")])]
