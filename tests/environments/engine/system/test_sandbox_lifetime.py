"""A sandbox ends with its worker, at whichever step of its start the worker is killed.

Each test stops the start of a sandbox at one step, in a worker of its own, and kills that worker.
"""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from environments.engine.system.sandbox import can_sandbox

pytestmark = pytest.mark.skipif(not can_sandbox(), reason="bubblewrap does not work here")

#: The worker runs a command that leaves a file and then sleeps.
WORKER = """
import fcntl, os, sys, time
from pathlib import Path
from environments.engine.system import sandbox
sandbox.require_sandbox()
folder = Path(sys.argv[1])

{change}
(folder / "starts").touch()  # the sandboxes of the check have ended

with sandbox.start_sandboxed(
    ["sh", "-c", "touch " + str(folder / "ran") + "; exec sleep 1000"], cwd=folder,
    env={{"PATH": "/usr/bin:/bin"}}, limits={{}}, streams=sandbox.STREAMS,
    sandbox=sandbox.Sandbox(writable={{folder: folder}}),
) as process:
    {block}
"""
#: bubblewrap reports the first process of the sandbox before it lets it continue: it waits for the
#: reader of a full pipe.
FULL_PIPE = """
open_pipe, opened = sandbox.open_pipe, []
def full_pipe(stack):
    reader, writer = open_pipe(stack)
    if not opened:
        size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        writer.write(b" " * size)
    opened.append(writer)
    return reader, writer
sandbox.open_pipe = full_pipe
sandbox._first_process = lambda info: time.sleep(1000)
"""
#: The first process has set up the sandbox, and waits to be released.
NOT_RELEASED = """
def wait(pid, limits):
    (folder / "waits").touch()
    time.sleep(1000)
sandbox._limit = wait
"""
#: The first process is released but not yet tied to bubblewrap.
NOT_TIED = """
options = sandbox._sandbox_options
sandbox._sandbox_options = lambda **chosen: [
    option for option in options(**chosen) if option != "--die-with-parent"
]
"""


def wait_for(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def sandboxes(worker: psutil.Process) -> list[psutil.Process]:
    """Return the first processes of the sandboxes of `worker`: the children of bubblewrap."""
    return [
        process
        for bubblewrap in worker.children()
        if bubblewrap.name() == "bwrap"
        for process in bubblewrap.children()
    ]


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def worker_of(
    folder: Path, *, change: str, block: str = "process.wait()"
) -> Iterator[psutil.Popen]:
    program = WORKER.format(change=textwrap.dedent(change), block=block)
    with psutil.Popen([sys.executable, "-c", program, str(folder)]) as worker:
        try:
            wait_for((folder / "starts").exists)
            yield worker
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def kill_with_sandbox(worker: psutil.Popen) -> list[psutil.Process]:
    """Kill a worker that has one sandbox; return what its sandbox consisted of."""
    wait_for(lambda: len(sandboxes(worker)) == 1)
    processes: list[psutil.Process] = worker.children(recursive=True)
    worker.kill()
    worker.wait()
    return processes


def assert_ended(processes: list[psutil.Process]) -> None:
    try:
        wait_for(lambda: all(map(ended, processes)))
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_a_worker_killed_before_bubblewrap_continues_leaves_nothing(tmp_path: Path) -> None:
    with worker_of(tmp_path, change=FULL_PIPE) as worker:
        assert_ended(kill_with_sandbox(worker))
    assert not (tmp_path / "ran").exists()


def test_a_worker_killed_before_it_releases_the_sandbox_runs_no_command(tmp_path: Path) -> None:
    with worker_of(tmp_path, change=NOT_RELEASED) as worker:
        wait_for((tmp_path / "waits").exists)
        assert_ended(kill_with_sandbox(worker))
    assert not (tmp_path / "ran").exists()


def test_a_worker_killed_before_bubblewrap_ties_the_sandbox_leaves_nothing(tmp_path: Path) -> None:
    with worker_of(tmp_path, change=NOT_TIED) as worker:
        wait_for((tmp_path / "ran").exists)
        assert_ended(kill_with_sandbox(worker))


def test_a_block_that_ends_before_bubblewrap_ties_the_sandbox_leaves_nothing(
    tmp_path: Path,
) -> None:
    leave = "while not (folder / 'end').exists(): time.sleep(0.01)\ntime.sleep(1000)"
    with worker_of(tmp_path, change=NOT_TIED, block=leave) as worker:
        wait_for((tmp_path / "ran").exists)
        processes = worker.children(recursive=True)
        (tmp_path / "end").touch()
        assert_ended(processes)
        assert not worker.children()  # nothing is left to reap
