"""Start a child process in a moment: fork the parent, which has all imports.

Only a parent with one thread may be copied: a lock that another thread holds would stay locked.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, NoReturn

_TASKS = Path("/proc/self/task")


def safe() -> bool:
    """Return whether this process can fork: on Linux, with one thread, native ones included."""
    if not sys.platform.startswith("linux") or not _TASKS.is_dir():
        return False
    return threading.active_count() == 1 and len(list(_TASKS.iterdir())) == 1


class Fork:
    """A copy of this process that runs `main()` of `module`; seen from here as `Popen` shows one.

    It has a session of its own, nothing to read, its output in a pipe, and of the open files those
    that `descriptors` names. `first` runs before all else.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        title: str,
        environ: Mapping[str, str],
        descriptors: Sequence[int],
        first: Callable[[], None],
    ) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else the copy says it again
        # What is here stays shared memory, as the collector of neither process touches it. What is
        # unreachable must not be closed in the copy, where its numbers are others'. While imports
        # have stopped the collector, that is what they left: it is kept, as finding it takes longer
        # than some of the imports.
        if gc.isenabled():
            gc.collect()
        gc.freeze()
        ours, theirs = os.pipe()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become(module, arguments, title, environ, descriptors, first, theirs, blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(theirs)
        self.stdout: IO[bytes] | None = os.fdopen(ours, "rb", buffering=0)
        self._ended: int | None = None

    @property
    def returncode(self) -> int:
        if self._ended is None:
            raise ValueError("It runs.")
        return self._ended

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        self._wait(0)
        return self.returncode

    def _wait(self, options: int) -> int | None:
        if self._ended is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._ended = os.waitstatus_to_exitcode(status)
        return self._ended

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def _become(
    module: str,
    arguments: Sequence[str],
    title: str,
    environ: Mapping[str, str],
    descriptors: Sequence[int],
    first: Callable[[], None],
    output: int,
    blocked: Set[int | signal.Signals],
) -> NoReturn:
    """In the copy: run the module, then end the process; nothing of the parent continues here."""
    status = 1
    try:
        gc.enable()  # the parent may have stopped it for its imports
        first()
        os.setsid()
        _forget_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _take_descriptors(output, descriptors)
        os.environ.update(environ)
        _call_itself(title)
        sys.argv = [module, *arguments]
        status = _run(module)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(module: str) -> int:
    """The status that the interpreter would end with."""
    try:
        importlib.import_module(module).main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _forget_signals() -> None:
    """Those that the parent handles, as a new program does; those it ignores stay ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _take_descriptors(output: int, descriptors: Sequence[int]) -> None:
    """Keep the open files that `descriptors` names, and none of the parent's other ones.

    Their numbers lead to /dev/null and stay taken. An object of the parent that lives on in the
    copy (a connection in a pool) closes its number some day: freed now, that number would be a
    file of somebody else by then.
    """
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for entry in list(Path("/proc/self/fd").iterdir()):
        number = int(entry.name)
        if number > 2 and number not in descriptors:
            with contextlib.suppress(OSError):  # the one of this listing is closed by now
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _call_itself(title: str) -> None:
    """Let `ps` tell the children of one program apart."""
    os.environ["SPT_NOENV"] = "1"  # what `/proc` shows of the variables stays true
    import setproctitle

    setproctitle.setproctitle(title)
