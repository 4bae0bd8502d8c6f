"""A server process that a test may kill, pause and start again; and what starting one needs."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import lanes

LOOPBACK = "127.0.0.1"

#: A unix socket's path must be shorter than 104 characters, some of which are the server's own.
_LONGEST_FOLDER = 60


class ComponentMissing(RuntimeError):  # noqa: N818  read as a sentence: a component is missing
    """A server's programs are not on this machine."""

    def __init__(self, component: str, install: str) -> None:
        super().__init__(f"{component} is not installed here; install it with: {install}")
        self.component, self.install = component, install


class ServiceFailedError(RuntimeError):
    """A server ended, or was not ready in time; its last output is in the message."""


def find_program(name: str, *, component: str, install: str, folders: Sequence[str] = ()) -> Path:
    """A program beside this interpreter, in one of `folders`, or on the PATH."""
    for folder in (Path(sys.executable).parent, *map(Path, folders)):
        if os.access(folder / name, os.X_OK):
            return folder / name
    if found := shutil.which(name):
        return Path(found)
    raise ComponentMissing(component, install)


def free_ports(count: int = 1) -> list[int]:
    """Ports of the loopback interface that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind((LOOPBACK, 0))
        return [opened.getsockname()[1] for opened in sockets]


def accepts(port: int) -> Callable[[], bool]:
    """A check that a port of the loopback interface takes connections."""

    def check() -> bool:
        with socket.create_connection((LOOPBACK, port), 0.5):
            return True

    return check


def wait_for(
    check: Callable[[], object],
    *,
    seconds: float = 30,
    process: subprocess.Popen[bytes] | None = None,
    what: str = "what was waited for",
) -> None:
    """Wait until `check` gives something true; an OSError of it means: not yet.

    Raises:
        ServiceFailedError: `process`, if given, has ended meanwhile.
        TimeoutError: it took longer than `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        if process is not None and process.poll() is not None:
            raise ServiceFailedError(f"{what}: ended with the status {process.returncode}")
        with contextlib.suppress(OSError):
            if check():
                return
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not ready after {seconds:g} s")
        time.sleep(0.02)


@dataclass(slots=True, kw_only=True, eq=False)
class Service:
    """A server in a folder, made by `running`; its url stays the same when it is restarted."""

    name: str
    url: str
    command: Sequence[str]
    ready: Callable[[], object]
    folder: Path
    environment: Mapping[str, str] | None = None
    #: The account to run it as; this process's own if None.
    account: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    #: Seconds; after them it is killed. If 0, it is killed at once.
    stop_wait: float = 10
    start_wait: float = 60  # seconds
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _watcher: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Its process id, or the last one that it had."""
        if self._process is None:
            raise ServiceFailedError(f"{self.name} was not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it has written so far."""
        path = self.folder / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it is ready; nothing where it runs already."""
        if self.is_running:
            return
        lanes.require("services", self.name)
        with (self.folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
                **account_arguments(self.account),
            )
        self._watch(self._process.pid)
        try:
            wait_for(self.ready, seconds=self.start_wait, process=self._process, what=self.name)
        except (ServiceFailedError, TimeoutError) as error:
            self.kill()
            raise ServiceFailedError(f"{error}; it wrote:\n{self.log[-2000:]}") from error

    def stop(self) -> None:
        """Ask it to end, as an operator does; it is killed if it does not in time."""
        if self._process is None or not self.is_running:
            return
        self.resume()
        if self.stop_wait:
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.stop_wait)
        self.kill()

    def kill(self) -> None:
        """End it and its children at once, as a power cut does."""
        if self._process is None:
            return
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(tree, timeout=10)

    def restart(self) -> None:
        """Start it again on the same data, port or socket; kill it first if it still runs."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Let it hang: it holds its connections and answers nothing."""
        for process in self._tree():
            process.suspend()

    def resume(self) -> None:
        """Let it go on after `pause`."""
        for process in reversed(self._tree()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        if self._watcher is not None:
            if self._watcher.stdin is not None:
                self._watcher.stdin.close()
            self._watcher.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tree(self) -> list[psutil.Process]:
        if not self.is_running:
            return []
        try:
            server = psutil.Process(self.pid)
            return [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _watch(self, pid: int) -> None:
        if self._watcher is None:
            watcher = Path(__file__).with_name("watcher.py")
            self._watcher = subprocess.Popen(
                [sys.executable, str(watcher), str(self.folder)],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        if self._watcher.stdin is not None:
            self._watcher.stdin.write(f"{pid}\n".encode())
            self._watcher.stdin.flush()


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """Start a service; stop it and remove its folder at the end."""
    try:
        service.start()
        yield service
    finally:
        service.close()


def new_folder(name: str, *, account: str | None = None) -> Path:
    """A new folder with a path that leaves room for a unix socket, owned by `account`."""
    short = None if len(tempfile.gettempdir()) < _LONGEST_FOLDER else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=short))
    if account is not None:
        entry = pwd.getpwnam(account)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    return folder


def account_arguments(account: str | None) -> dict[str, Any]:
    """What tells `subprocess` to run a program as another account."""
    if account is None:
        return {}
    entry = pwd.getpwnam(account)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
