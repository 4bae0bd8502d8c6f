"""Runs the `condastore` command at once: each is forked from a process that has all imports.

A command is a process of its own all the same, with its own environment, folder and files. What
starts as a person starts it is tried in test_distributions.py and in tests/acceptance.

``python -m tests.condastore.quick_commands SOCKET``: for each message, a process runs the command
that comes with it; its number and its status are written to the last of the files of the message.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

PROJECT = Path(__file__).parents[2]
#: What the commands import when they run.
IMPORTED = ("condastore.cli.main", "httpx", "rich.live", "rich.progress", "rich.table")
FILES = 5  # of a message: what to run, stdin, stdout, stderr, the answer


class QuickCommands:
    """Of this process: made by `quick_commands`."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._lock = threading.Lock()
        atexit.register(self._close)

    def _close(self) -> None:
        self._ours.close()
        self._process.wait()

    def run(
        self,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        cwd: Path,
        says: str | None,
        seconds: float,
    ) -> tuple[int, str, str]:
        """The status, what was printed, and the errors; TimeoutExpired where it takes longer."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
            request, stdin, stdout, stderr = files
            _write(request, json.dumps([list(arguments), dict(environ), str(cwd)]))
            _write(stdin, says or "")
            answer, told = os.pipe()
            heard = stack.enter_context(os.fdopen(answer, "rb", buffering=0))
            with self._lock:
                socket.send_fds(self._ours, [b"."], [*(one.fileno() for one in files), told])
            os.close(told)
            pid = _number(heard, seconds)
            try:
                status = _number(heard, seconds)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), seconds) from None
            return status, _read(stdout), _read(stderr)


@functools.cache
def quick_commands() -> QuickCommands:
    return QuickCommands()


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())
    file.flush()
    file.seek(0)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def _number(heard: IO[bytes], seconds: float) -> int:
    if not select.select([heard], [], [], seconds)[0]:
        raise TimeoutError
    line = heard.readline()
    assert line, "the process that starts commands has ended"
    return int(line)


# --- the process that starts them -----------------------------------------------------------------


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is here stays shared memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(fileno=int(sys.argv[1])) as messages:
        while True:
            message, files, *_ = socket.recv_fds(messages, 1, FILES)
            if not message:
                return
            if os.fork() == 0:
                messages.close()
                _follow(files)
            for file in files:
                os.close(file)


def _follow(files: Sequence[int]) -> NoReturn:
    """Start the command, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _become(files)
    os.write(files[-1], f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(files[-1], f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(files: Sequence[int]) -> NoReturn:
    status = 1
    try:
        with os.fdopen(files[0], "rb") as request:
            arguments, environ, cwd = json.load(request)
        for number, file in enumerate(files[1:4]):
            os.dup2(file, number)
        os.closerange(3, max(files) + 1)
        os.environ.clear()
        os.environ.update(environ)
        os.chdir(cwd)
        sys.argv = ["condastore", *arguments]
        status = _run()
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run() -> int:
    from condastore.cli.main import main as command

    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
