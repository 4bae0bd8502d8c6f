"""Processes that read channels and solve with rattler; confined, and killable at any moment.

While rattler words the reason of an unsatisfiable request it can take all memory of the machine,
and its own time limit does not apply there; hostile repodata can have the same effect. So each
solve, and each other reading of a channel, runs in its own process. The process is killed if the
work is cancelled, late, or takes too much memory; otherwise it is kept for the next job.

The process parses foreign input, so it may access only its repodata and the files it solves from,
and may connect only to the forward proxy. Its answer is parsed as JSON: unpickling could run code.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from condastore.errors import (
    StoreError,
    TimeLimitError,
    WorkerLostError,
    error_from_json,
    error_to_json,
)
from environments.domain.json_text import parse_json
from environments.domain.lock import Lock, PlatformLock
from environments.domain.names import Credential
from environments.domain.progress import Cancelled, never, obey
from environments.engine.channels.jobs import ChannelJob
from environments.engine.channels.repodata import DEFAULT_READ_LIMITS, Channels
from environments.engine.network import forward_proxy
from environments.engine.network.addresses import guard
from environments.engine.network.bounded_reading import ReadLimits
from environments.engine.solve.solve import Log, Work, solve_conda
from environments.engine.system.confinement import child_environment, confine
from environments.engine.system.memory import private_bytes, release_free_memory

_POLL_SECONDS = 0.05  # between two checks of cancellation and memory
_IDLE_SECONDS = 900.0  # after which an unused process exits
Job = Work | ChannelJob


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A job with the callbacks of its caller."""

    job: Job
    credentials: Mapping[str, Credential | None]
    cancelled: Cancelled
    log: Log
    each: Callable[[Any], None]


class MemoryExceededError(Exception):
    """The solve took more memory than it may use."""


class _ProcessExitedError(Exception):
    """The process exited without an answer."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    link: Connection
    readable: frozenset[Path]
    cache: Path

    def end(self) -> None:
        """SIGKILL the process, since a clean exit may crash, and remove its partial files."""
        unfinished = list(self._unfinished())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.link.close()
        for path in unfinished:
            with contextlib.suppress(OSError):
                path.unlink()

    def _unfinished(self) -> Iterator[Path]:
        """Yield the temporary files in its cache that it holds open: partial downloads."""
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    path = entry.readlink()
                    if path.name.startswith(".tmp") and path.is_relative_to(self.cache):
                        yield path


class SolverProcesses:
    """Pool of solver processes: one per running job, and one idle process for the next job."""

    def __init__(
        self,
        *,
        cache: Path,
        memory_limit: int,
        idle_memory: int,
        readable: Sequence[Path] = (),
        limits: ReadLimits = DEFAULT_READ_LIMITS,
    ) -> None:
        """
        Args:
            cache: folder of their repodata; it must contain nothing else.
            memory_limit: bytes that a process may use during a job.
            idle_memory: bytes that an idle process may hold.
            readable: files that each process may read beside its cache.
            limits: limits of reading a channel.
        """
        self._limits = limits
        self._cache = cache
        self._readable = frozenset(readable)
        self._memory_limit = memory_limit
        self._idle_memory = idle_memory
        self._lock = threading.Lock()
        self._idle: _Worker | None = None
        self._owner = os.getpid()

    def warm_up(self) -> None:
        """Start a process for the first job."""
        if self._idle is None:
            self._release(self._start(self._readable), keep=True)

    def close(self) -> None:
        worker = self._acquire()
        if worker is not None:
            worker.end()

    def run(
        self,
        job: Job,
        credentials: Mapping[str, Credential | None],
        *,
        cancelled: Cancelled,
        log: Log = lambda line: None,
        each: Callable[[Any], None] = lambda item: None,
    ) -> list[PlatformLock]:
        """Run a job in a process.

        Args:
            each: called with every item of a `ChannelJob`, as its `read_item` returns it.
        Returns:
            The locked platforms of `Work`; an empty list for any other job.
        Raises:
            MemoryExceededError: the job took more memory than it may use.
            StoreError: raised by `solve_conda` or by the job.
        """
        readable = self._readable | _paths_of(job)
        request = _Request(
            job=job, credentials=credentials, cancelled=cancelled, log=log, each=each
        )
        worker = self._acquire()
        if worker is not None and worker.readable != readable:
            worker.end()  # it may read hosted channels that this job must not see
        elif worker is not None:
            with contextlib.suppress(
                _ProcessExitedError
            ):  # it exited just now, after its idle time
                return self._send(worker, request)
        worker = self._start(readable)
        try:
            return self._send(worker, request)
        except _ProcessExitedError as error:
            raise WorkerLostError(
                f"The solver process exited unexpectedly (status {worker.process.returncode})."
            ) from error

    def _send(self, worker: _Worker, request: _Request) -> list[PlatformLock]:
        try:
            worker.link.send((request.job, request.credentials))
            answer = self._wait_for_answer(worker, request)
            healthy = private_bytes(worker.process.pid) <= self._idle_memory
        except (EOFError, OSError, _MalformedError) as error:
            worker.end()
            raise _ProcessExitedError from error
        except BaseException:
            worker.end()
            raise
        self._release(worker, keep=healthy)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def _wait_for_answer(
        self, worker: _Worker, request: _Request
    ) -> list[PlatformLock] | StoreError:
        last = time.monotonic()
        while True:
            # Limits also apply to a process that sends without a pause.
            while worker.link.poll(_POLL_SECONDS) and time.monotonic() - last < _POLL_SECONDS:
                kind, content = _read(worker.link.recv_bytes(_MAX_MESSAGE_BYTES), request.job)
                if kind == "log":
                    request.log(content)
                elif kind == "item":
                    request.each(content)
                else:
                    answer: list[PlatformLock] | StoreError = content
                    return answer
            last = time.monotonic()
            obey(request.cancelled)
            if private_bytes(worker.process.pid) > self._memory_limit:
                raise MemoryExceededError
            if last > request.job.deadline + 2:  # the process's own limits apply first
                raise TimeLimitError(
                    "The solver found no solution within the time limit."
                    if isinstance(request.job, Work)
                    else "The channel was not read within the time limit."
                )

    def _start(self, readable: frozenset[Path]) -> _Worker:
        self._cache.mkdir(parents=True, exist_ok=True)
        proxy = forward_proxy.access_for(guard())
        ours, theirs = Pipe()
        options = {
            "link": theirs.fileno(),
            "cache": os.fspath(self._cache),
            "memory_limit": self._memory_limit,
            "silence": self._limits.silence.total_seconds(),
            "rate": self._limits.rate,
            "size": self._limits.size,
            "readable": sorted(map(os.fspath, readable)),
            "connect": [proxy.port],
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(options)],
                env=child_environment(
                    {
                        **proxy.environment(),
                        "PYTHONPATH": os.pathsep.join(_import_path()),
                        "TMPDIR": os.fspath(self._cache),
                    }
                ),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Worker(process, ours, readable, self._cache.resolve())

    def _acquire(self) -> _Worker | None:
        with self._lock:
            if self._owner != os.getpid():  # after a fork, the idle process belongs to the parent
                self._idle, self._owner = None, os.getpid()
            worker, self._idle = self._idle, None
        if worker is not None and worker.process.poll() is not None:
            worker.end()
            return None
        return worker

    def _release(self, worker: _Worker, *, keep: bool) -> None:
        with self._lock:
            if keep and self._idle is None:
                self._idle = worker
                return
        worker.end()


def _paths_of(job: Job) -> frozenset[Path]:
    """Return the files and folders of this machine that a job reads."""
    found = {path for hosted in job.hosted for path in hosted.files.values()}
    found |= {guard().path(url) for url in job.channels if url.startswith("file:")}
    rules = job.request.rules if isinstance(job, Work) else None
    if rules is not None and rules.policy.hides and rules.first_seen is not None:
        found.add(rules.first_seen)
    return frozenset(found)


#: Maximum size of one message, in bytes; a lock of a thousand packages takes about 1 MB.
_MAX_MESSAGE_BYTES = 64 << 20


class _MalformedError(Exception):
    """The process sent a message that cannot be parsed."""


def _read(message: bytes, job: Job) -> tuple[str, Any]:
    """Parse a message into its kind ("log", "item", "error" or "answer") and its value."""
    try:
        kind, content = parse_json(message)
        if kind == "log":
            return kind, str(content)
        if kind == "error":
            return kind, error_from_json(content)
        if kind == "item" and not isinstance(job, Work):
            return kind, job.read_item(content)
        return "answer", list(Lock.from_json({"channels": [], "platforms": content}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _MalformedError from error


_PROGRAM = """
from environments.domain.optional_packages import import_without_rich
import_without_rich("httpx")
from environments.engine.solve.process import main
main()
"""


def main() -> None:
    """Serve jobs until the parent closes the connection; argv[1] holds the options, as JSON."""
    options = json.loads(sys.argv[1])
    cache = Path(options["cache"])
    confine(
        readable=map(Path, options["readable"]),
        writable=[cache],
        connect=options["connect"],
    )
    link = Connection(options["link"])
    # The parent's checks come first; this limit holds between two of them.
    limit = max(options["memory_limit"] * 4, 1 << 30)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    limits = ReadLimits(
        silence=timedelta(seconds=options["silence"]), rate=options["rate"], size=options["size"]
    )
    # rattler decompresses downloads to files: above this size writing fails with EFBIG.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.size, limits.size))
    credentials: dict[str, Credential | None] = {}
    channels = Channels(
        cache=cache, credentials=lambda url: credentials.get(url), limits=limits, confined=True
    )
    requests = _Inbox(link)
    while True:
        job, shown = requests.next()
        credentials = dict(shown)
        here = {hosted.url for hosted in job.hosted}
        channels.learn_credentials(url for url in job.channels if url not in here)
        answer: tuple[str, Any]
        try:
            answer = ("answer", _run_job(job, channels, requests))
        except StoreError as error:
            answer = ("error", error_to_json(error))
        except Exception as error:
            failed = WorkerLostError(channels.clean(f"The solver failed: {error!r}"))
            answer = ("error", error_to_json(failed))
        release_free_memory()
        requests.send(answer)


def _run_job(job: Job, channels: Channels, requests: _Inbox) -> list[Any]:
    if isinstance(job, Work):
        parts = solve_conda(channels, job, cancelled=never, log=requests.log)
        return list(Lock(channels=(), platforms=tuple(parts)).to_json()["platforms"])
    channels.refresh(job.states)
    # After a fault, items are sent again; the receiver must accept duplicates.
    channels.persistently(
        job.channels, lambda: job.run(channels, lambda item: requests.send(("item", item)))
    )
    channels.forget()  # free the whole channel; a solve reads a few names only
    return []


class _Inbox:
    """The process's end of the connection. If the parent closes it, this process exits at once."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._ready = threading.Semaphore(0)
        self._received: list[Any] = []
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self) -> Any:
        if not self._ready.acquire(timeout=_IDLE_SECONDS):
            os._exit(0)
        return self._received.pop(0)

    def log(self, line: str) -> None:
        self.send(("log", line))

    def send(self, message: Any) -> None:
        with self._sending:
            try:
                self._link.send_bytes(json.dumps(message).encode())
            except OSError:
                os._exit(0)

    def _listen(self) -> None:
        while True:
            try:
                self._received.append(self._link.recv())
            except (EOFError, OSError):
                os._exit(0)  # also during a solve: nobody waits for the result any more
            self._ready.release()


def _import_path() -> list[str]:
    """Return the folders where the process finds this package, whatever its working directory."""
    ours = Path(__file__).resolve().parents[3]
    return [os.fspath(ours), *filter(None, [os.environ.get("PYTHONPATH")])]
