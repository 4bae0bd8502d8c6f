"""Low-level helpers to start processes: sessions, process groups, pipes and files in memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

#: Default streams of a program: no input, and one pipe for output and errors.
STREAMS = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
}


def start_process(
    command: Sequence[str],
    *,
    cwd: Path,
    pass_fds: Sequence[int],
    streams: Mapping[str, int],
    process_group: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` with an empty environment, in a new session or in `process_group`."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={},
        stdin=streams["stdin"],
        stdout=streams["stdout"],
        stderr=streams["stderr"],
        start_new_session=process_group is None,
        process_group=process_group,
        pass_fds=pass_fds,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group of `process`, with all that it started, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


#: Waits for the end of the worker on its input, then kills the process whose number came before,
#: if one came, and its own process group. POSIX shell: it starts in a millisecond.
_GROUP_GUARD = "read -r process; read -r _; kill -KILL $process 0"


class GuardedGroup:
    """Process group that is killed as a whole when this process exits, however it dies.

    A guard process leads the group, so the group exists before its first member. The kernel kills
    all members of a group at once, and a fork in a group that is being killed fails: no member can
    be missed. PR_SET_PDEATHSIG gives less: a child of a child is not tied to its parent until it
    asks for it itself.
    """

    def __init__(self, guard: subprocess.Popen[bytes], alive: BinaryIO) -> None:
        self._guard = guard
        self._alive = alive
        self._member: int | None = None

    @property
    def id(self) -> int:
        return self._guard.pid

    def add(self, pid: int) -> None:
        """Kill process `pid` with the group, even if it leaves the group. Call it once."""
        with contextlib.suppress(ProcessLookupError):  # it exited
            self._member = os.pidfd_open(pid)
        with contextlib.suppress(BrokenPipeError):  # the guard was killed from outside
            self._alive.write(f"{pid}\n".encode())

    def kill(self) -> None:
        """Kill all members, and reap the guard. Further calls do nothing."""
        if self._guard.returncode is not None:  # the number of the group is free for others
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.id, signal.SIGKILL)
        if self._member is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._member, signal.SIGKILL)
            os.close(self._member)
        self._guard.wait()


@contextlib.contextmanager
def guarded_group(*held: int) -> Iterator[GuardedGroup]:
    """Create a process group, and kill it at the end of the block or of this process.

    Args:
        held: descriptors that stay open until the group is killed, also after this process exited.
    """
    with contextlib.ExitStack() as ours:
        reader, alive = open_pipe(ours)
        guard = start_process(
            ["/bin/sh", "-c", _GROUP_GUARD],
            cwd=Path("/"),
            pass_fds=held,
            streams={
                "stdin": reader.fileno(),
                "stdout": subprocess.DEVNULL,
                "stderr": subprocess.DEVNULL,
            },
            process_group=0,
        )
        group = GuardedGroup(guard, alive)
        try:
            reader.close()
            yield group
        finally:
            group.kill()


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Create an anonymous file in memory with `content`; yield its descriptor."""
    descriptor = os.memfd_create("condastore")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def open_pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    reader, writer = os.pipe()
    return (
        stack.enter_context(os.fdopen(reader, "rb", buffering=0)),
        stack.enter_context(os.fdopen(writer, "wb", buffering=0)),
    )
