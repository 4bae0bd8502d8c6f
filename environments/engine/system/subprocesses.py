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
    command: Sequence[str], *, cwd: Path, pass_fds: Sequence[int], streams: Mapping[str, int]
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, with an empty environment."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={},
        stdin=streams["stdin"],
        stdout=streams["stdout"],
        stderr=streams["stderr"],
        start_new_session=True,
        pass_fds=pass_fds,
    )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group of `process`, with all that it started, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


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
