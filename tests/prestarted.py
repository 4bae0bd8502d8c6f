"""Start Python programs as copies of a process that has imported what they import.

Each program is a process of its own all the same, with its own environment, folder, files, session
and exit status. Only modules of other projects are imported before, as ours read the environment.
A program that is started as a person starts it is in `tests/condastore/test_distributions.py`,
`tests/condastore/supervisor/test_up.py` and `tests/docs/test_tours.py`.

``python -m tests.prestarted SOCKET MODULE...``: for each message, a copy runs what the first of its
files says. The process ids of its parent and of the copy, then the exit status, are written to the
last of the files.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
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
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

import psutil
import setproctitle

PROJECT = Path(__file__).parents[1]
#: Modules that take most of the start of the server's processes.
SERVER = (
    "boto3",
    "cryptography.x509",
    "django.contrib.auth.hashers",
    "django.contrib.postgres.fields",
    "django.contrib.staticfiles.storage",
    "django.core.handlers.asgi",
    "django.core.management.commands.migrate",
    "django.db.backends.sqlite3.base",
    "django.forms",
    "django.middleware.csrf",
    "django.template.loader",
    "django.views.generic",
    "dramatiq.brokers.redis",
    "environs",
    "httpx",
    "psutil",
    "rattler",
    "rich.console",
    "strawberry.asgi",
    "strawberry.django",
    "strawberry.relay",
    "structlog",
    "uvicorn.main",
    "whitenoise.middleware",
)
#: Modules that the command line imports when a command runs.
COMMAND_LINE = (
    "condastore.cli.main",  # reads nothing before it runs
    "httpx",
    "rich.live",
    "rich.progress",
    "rich.table",
)
_FILES = 5  # of a message: what to run, stdin, stdout, stderr, the answer
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
#: Variables that act before the first line of Python: a copy has them from its original.
_OF_THE_LOADER = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED")


class Program:
    """A program that was started, as `subprocess.Popen` shows one."""

    def __init__(self, answer: IO[bytes], *, stdin: IO[str] | None, stdout: IO[str] | None) -> None:
        self._answer, self.stdin, self.stdout = answer, stdin, stdout
        self._keeper, self.pid = _number(answer), _number(answer)
        self.returncode: int | None = None

    def descendants(self) -> list[psutil.Process]:
        """Return the processes that it started and that run, also after its end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(self._keeper).children(recursive=True)
            return [each for each in started if _runs(each)]
        return []

    def poll(self) -> int | None:
        return self._status(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def _status(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._answer], [], [], seconds)[0]:
            self.returncode = _number(self._answer)
            self._answer.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in (self.stdin, self.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.wait()


class Prestarted:
    """The process that is copied; it ends with this one."""

    def __init__(self, modules: Sequence[str], variables: Mapping[str, str]) -> None:
        self._ours, theirs = socket.socketpair()
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CONDASTORE_", "DJANGO_")) and name not in _OF_THE_LOADER
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                env=inherited | dict(variables),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lock = threading.Lock()
        atexit.register(self._close)

    def _close(self) -> None:
        self._ours.close()
        self._process.wait()

    def start(
        self,
        what: Mapping[str, Any],
        *,
        env: Mapping[str, str],
        cwd: Path,
        files: tuple[IO[Any] | int, IO[Any] | int, IO[Any] | int],
        session: bool = False,
    ) -> Program:
        """Start `what`: a `module` whose `main()` runs with `arguments`, or `code`.

        Args:
            files: stdin, stdout and stderr, which may be PIPE and DEVNULL of `subprocess`.
            session: start a session, and a process group with it.
        """
        reading, writing = os.pipe()
        answer = os.fdopen(reading, "rb", buffering=0)
        request = {**what, "env": dict(env), "cwd": str(cwd), "session": session}
        pipes: list[IO[str] | None] = [None, None, None]
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(json.dumps(request).encode())
            file.seek(0)
            sent = [file.fileno()]
            for number, each in enumerate(files):
                if each == subprocess.PIPE:
                    ends = os.pipe()
                    theirs, ours = ends if number == 0 else ends[::-1]
                    pipes[number] = os.fdopen(ours, "w" if number == 0 else "r")
                    stack.callback(os.close, theirs)
                elif each == subprocess.DEVNULL:
                    theirs = os.open(os.devnull, os.O_RDWR)
                    stack.callback(os.close, theirs)
                else:
                    theirs = each if isinstance(each, int) else each.fileno()
                sent.append(theirs)
            stack.callback(os.close, writing)
            with self._lock:
                socket.send_fds(self._ours, [b"."], [*sent, writing])
        return Program(answer, stdin=pipes[0], stdout=pipes[1])

    def run(
        self,
        what: Mapping[str, Any],
        *,
        env: Mapping[str, str],
        cwd: Path,
        says: str = "",
        seconds: float | None = None,
    ) -> tuple[int, str, str]:
        """Run `what`; its status, what it printed, and its errors.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        with contextlib.ExitStack() as stack:
            stdin, *others = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            stdin.write(says.encode())
            stdin.seek(0)
            program = self.start(what, env=env, cwd=cwd, files=(stdin, others[0], others[1]))
            try:
                status = program.wait(seconds)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
            printed = []
            for file in others:
                file.seek(0)
                printed.append(file.read().decode().replace("\r\n", "\n"))
            return status, printed[0], printed[1]


def servers(env: Mapping[str, str]) -> Prestarted:
    """Return what the server's processes are copied from whose variables are `env`."""
    return _prestarted(SERVER, *_of_loader(env))


def commands() -> Prestarted:
    """Return what commands of the client are copied from."""
    return _prestarted(COMMAND_LINE)


def _of_loader(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((name, env[name]) for name in _OF_THE_LOADER if name in env)


@functools.cache
def _prestarted(modules: Sequence[str], *variables: tuple[str, str]) -> Prestarted:
    return Prestarted(modules, dict(variables))


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _number(answer: IO[bytes]) -> int:
    line = answer.readline()
    assert line, "the process that starts programs has ended"
    return int(line)


# --- the process that is copied -------------------------------------------------------------------


def main() -> None:
    os.environ["SPT_NOENV"] = "1"  # what `/proc` shows of the variables stays true
    # Before the variables are others': it finds the place of the title beside them.
    setproctitle.setproctitle("tests.prestarted")
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is here stays shared memory
    # A handler, as the processor time of ignored children would not be counted.
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    with socket.socket(fileno=int(sys.argv[1])) as messages:
        while True:
            message, files, *_ = socket.recv_fds(messages, 1, _FILES)
            if not message:
                return
            if os.fork() == 0:
                messages.close()
                _follow(files)
            for file in files:
                os.close(file)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _follow(files: Sequence[int]) -> NoReturn:
    """Start the program, say how it ended, and stay while a descendant of it runs.

    What the program leaves behind becomes a child of this process: tests find it there.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    library = ctypes.CDLL(None)
    library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # not longer than the tests
    pid = os.fork()
    if pid == 0:
        _become(files)
    os.write(files[-1], f"{os.getpid()}\n{pid}\n".encode())
    for file in files[:-1]:
        os.close(file)
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, status = os.wait()
            if ended == pid:
                with contextlib.suppress(BrokenPipeError):
                    os.write(files[-1], f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(files: Sequence[int]) -> NoReturn:
    status = 1
    try:
        with os.fdopen(files[0], "rb") as file:
            request = json.load(file)
        for number, descriptor in enumerate(files[1:4]):
            os.dup2(descriptor, number)
        os.closerange(3, max(files) + 1)
        if request["session"]:
            os.setsid()
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        for action in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
            warnings.simplefilter(action)  # type: ignore[arg-type]
        status = _run(request)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(request: Mapping[str, Any]) -> int:
    """Return the status that the interpreter would end with."""
    try:
        if "code" in request:
            setproctitle.setproctitle("python -c")
            exec(request["code"], {"__name__": "__main__"})  # noqa: S102 - of a test
        else:
            sys.argv = [request["module"], *request["arguments"]]
            setproctitle.setproctitle(" ".join(["python", "-m", *sys.argv]))
            importlib.import_module(request["module"]).main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
