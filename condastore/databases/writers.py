"""A fair queue in front of SQLite's only write lock, across threads and processes.

SQLite itself lets a writer poll, at longer and longer intervals: among many, some never find the
lock free. Here the threads of a process take turns in the order in which they came, and one of each
process at a time asks for a lock on a file beside the database. A writer that waits longer than
its timeout gets `WriteQueueTimeoutError`, as from a locked database.

The lock is POSIX (`fcntl.lockf`): it ends with its process, and a forked child does not hold it.
Closing any descriptor of the file would end it, too, so a process opens the file once and never
closes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from django.db import OperationalError

from condastore.http import request_turns

#: First and longest interval between two polls of the file's lock, in seconds.
_FIRST_LOOK, _LONGEST_LOOK = 0.0005, 0.004
#: Seconds that an optional write waits.
OPTIONAL_PATIENCE = 0.05


class WriteQueueTimeoutError(Exception):
    """No turn in time."""


@dataclass(eq=False, slots=True)
class _Waiting:
    ready: threading.Event = field(default_factory=threading.Event)


class WriteQueue:
    """The writers of one database in this process."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the file whose lock the processes share; None where nobody shares it."""
        self._path = path
        self._guard = threading.Lock()
        self._busy = False
        self._queue: deque[_Waiting] = deque()
        self._descriptor: int | None = None

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def acquire(self, patience: float) -> float:
        """Wait for the turn to write.

        Returns:
            What is left of the patience, in seconds.
        Raises:
            WriteQueueTimeoutError: others write for longer than that.
            OSError: the file of the lock cannot be opened.
        """
        until = time.monotonic() + patience
        self._enter(patience)
        try:
            self._lock_file(until)
        except BaseException:
            self._leave()
            raise
        return max(0.0, until - time.monotonic())

    def release(self) -> None:
        if self._descriptor is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        self._leave()

    def _enter(self, patience: float) -> None:
        with self._guard:
            if not self._busy:
                self._busy = True
                return
            mine = _Waiting()
            self._queue.append(mine)
        try:
            with request_turns.waiting():
                mine.ready.wait(patience)
        except BaseException:
            # Dramatiq raises time limits and shutdowns in the thread, at any line.
            with self._guard:
                if waits := not mine.ready.is_set():
                    self._queue.remove(mine)
            if not waits:
                self._leave()
            raise
        with self._guard:
            if mine.ready.is_set():
                return  # also where that came in the last moment
            self._queue.remove(mine)
        raise WriteQueueTimeoutError

    def _leave(self) -> None:
        with self._guard:
            if self._queue:
                self._queue.popleft().ready.set()  # busy still: it is handed on
            else:
                self._busy = False

    def _lock_file(self, until: float) -> None:
        if self._path is None:
            return
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
        if _locked(self._descriptor):
            return
        pause = _FIRST_LOOK
        with request_turns.waiting():
            while not _locked(self._descriptor):
                if time.monotonic() >= until:
                    raise WriteQueueTimeoutError
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class _Patience(threading.local):
    seconds: float | None = None


_patience = _Patience()


def patience_of(default: float) -> float:
    """How long this thread waits for its turn, in seconds."""
    return default if _patience.seconds is None else _patience.seconds


@contextlib.contextmanager
def optional_write() -> Iterator[None]:
    """Skip the writes of this block if SQLite's write lock is not free soon.

    For notes that somebody who only reads leaves behind, such as the last use of a token.
    """
    before, _patience.seconds = _patience.seconds, OPTIONAL_PATIENCE
    try:
        yield
    except OperationalError as error:
        if "locked" not in str(error):
            raise
    finally:
        _patience.seconds = before
