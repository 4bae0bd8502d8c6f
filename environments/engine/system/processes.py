"""Execution of programs that can be stopped at any moment and leave no processes behind.

Programs of condastore and of the system run under a guard process, which kills them and everything
they started when the worker exits. Code of packages runs in bubblewrap (`Sandbox`), and nowhere
else.

Landlock with a seccomp filter (`confinement.py`) was considered as a second sandbox for machines
that forbid namespaces; it is not sufficient for malicious code. Without a PID namespace the code
can leave its process group, outlive the build, and signal the worker (before ABI 6). It sees all
processes, System V memory and message queues of the user. UDP and the machine's loopback interface
stay open, and a prefix cannot be shown at its final path. Without a working bubblewrap no code of
packages runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from condastore.errors import UnavailableError
from environments.domain.progress import Cancelled, obey
from environments.engine.system import confinement as confining
from environments.engine.system.sandbox import Sandbox, require_sandbox, start_sandboxed
from environments.engine.system.subprocesses import (
    STREAMS,
    kill_group,
    memory_file,
    open_pipe,
    start_process,
)

POLL = 0.1  # seconds between two checks of cancellation
LINE_LENGTH = 4_000  # characters; longer lines are cut
TAIL = 40  # last lines that are kept for messages
#: Status -> signal, of programs that were killed from outside: 128 + n as in a shell, and -n as in
#: `Popen` if the guard was killed too.
_KILLED = {
    status: number.name
    for number in (signal.SIGKILL, signal.SIGTERM)
    for status in (128 + number, -number)
}
#: Bytes of a program's output that are passed on; the rest is read and dropped.
OUTPUT_LIMIT = 4 << 20

#: Runs the command as a child in its own process group, and kills the group when the pipe to the
#: worker closes: nothing outlives the worker, however it dies. (PR_SET_PDEATHSIG alone does not
#: reach grandchildren, and `preexec_fn` is unsafe in a process with threads.) The guard starts with
#: an empty environment; the command's environment comes through a file descriptor, so that it
#: neither affects how the guard is loaded nor appears in /proc/*/cmdline.
_GUARD = """
import json, os, select, signal, sys
alive = int(sys.argv[1])
with open(int(sys.argv[2]), "rb") as file:
    start = json.load(file)
child = os.fork()
if not child:
    first = 3
    for kept in [*start["kept"], os.sysconf("SC_OPEN_MAX")]:
        os.closerange(first, kept)
        first = kept + 1
    if start["background"]:
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if start["limits"]:
        import resource
        for name, value in start["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
    try:
        if start["confinement"]:
            import importlib.util
            spec = importlib.util.spec_from_file_location("confinement", start["module"])
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            os.environ.update(start["environment"])  # has the paths of certificates
            module.confine(**start["confinement"])
        os.execvpe(start["command"][0], start["command"], start["environment"])
    except OSError as error:
        os.write(2, f"{start['command'][0]}: {error.strerror}\\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
for inherited in (0, 1, 2):
    os.close(inherited)
ended = os.pidfd_open(child)
if alive in select.select([alive, ended], [], [])[0]:
    os.killpg(0, signal.SIGKILL)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os._exit(status if status >= 0 else 128 - status)
"""
_GUARD_COMMAND = [sys.executable, "-I", "-S", "-B", "-c", _GUARD]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """Result of a command; `status` as in a shell: 127 not found, 128 + n killed by signal n."""

    status: int
    timed_out: bool
    sandboxed: bool
    tail: tuple[str, ...]  # the last lines of its output
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.status == 0 and not self.timed_out

    def require_not_killed(self, program: str) -> None:
        """Raise UnavailableError if a signal from outside ended the program.

        The kernel kills when memory runs out, and an administrator may: that says nothing about
        the program's input.
        """
        if self.timed_out or self.status not in _KILLED:
            return
        raise UnavailableError(
            f"{program} was killed ({_KILLED[self.status]}).",
            hint="It is retried. If this happens again, the machine is short of memory: ask an "
            "administrator.",
            details={"status": self.status, "tail": self.tail},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a program may access that parses untrusted data; see `confinement.confine`."""

    readable: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    connect: Sequence[int] | None = None

    def arguments(self) -> dict[str, object]:
        return {
            "readable": [os.fspath(path) for path in self.readable],
            "writable": [os.fspath(path) for path in self.writable],
            "programs": [os.fspath(path) for path in confining.python_paths()],
            "connect": None if self.connect is None else list(self.connect),
        }


def run_tool(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    time_limit: timedelta,
    cancelled: Cancelled,
    on_line: Callable[[str], None],
    limits: Mapping[str, int] | None = None,
    sandbox: Sandbox | None = None,
    confinement: Confinement | None = None,
    output_limit: int = OUTPUT_LIMIT,
) -> ToolResult:
    """Run `command` to its end; call `on_line` with each line of its output and errors.

    Args:
        env: the complete environment; nothing is inherited. In a sandbox it is set inside only.
        limits: limits of the process, such as {"RLIMIT_AS": bytes}; see the module `resource`.
        sandbox: runs the command in bubblewrap; required for code of packages.
        confinement: for programs of condastore and of the system that parse untrusted data.
        output_limit: bytes that are passed to `on_line`; the rest is dropped.
    Raises:
        LeaseLostError: `cancelled` returned True; the command and its children were killed.
        SandboxUnavailableError: a sandbox is required but does not work here.
    """
    started = time.monotonic()
    deadline = started + time_limit.total_seconds()
    tail: deque[str] = deque(maxlen=TAIL)
    timed_out = False
    left = output_limit
    with _running(
        command, cwd=cwd, env=env, limits=limits or {}, sandbox=sandbox, confinement=confinement
    ) as process:
        for line in _lines(process):
            if line is None or left < 0:
                obey(cancelled)
                if time.monotonic() > deadline:
                    timed_out = True
                    break
            if line is None:
                continue
            tail.append(line)
            if left >= 0:
                left -= len(line) + 1
                on_line(line if left >= 0 else f"[output beyond {output_limit} bytes is omitted]")
    return ToolResult(
        status=process.returncode,
        timed_out=timed_out,
        sandboxed=sandbox is not None,
        tail=tuple(tail),
        seconds=time.monotonic() - started,
    )


class Output(Protocol):
    """Receiver of the bytes of one pipe."""

    def add(self, data: bytes) -> bool:
        """Receive data. Returning False refuses it and everything after it."""

    def end(self) -> None:
        """Receive the end of the pipe, if nothing was refused."""


def run_piped(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: Callable[[Sequence[int]], bytes],
    outputs: Sequence[Output],
    time_limit: timedelta,
    cancelled: Cancelled,
    limits: Mapping[str, int] | None = None,
    sandbox: Sandbox | None = None,
    background: bool = False,
) -> ToolResult:
    """Run `command` to its end, with a pipe for each of `outputs`.

    Args:
        stdin: returns the input of the command for the descriptor numbers of its pipe ends.
        cwd, env, limits, sandbox: see `run_tool`.
        background: True runs it with the lowest priority for processors and disks.
    Returns:
        The result, with the last lines of its output and errors.
    Raises:
        LeaseLostError, SandboxUnavailableError: see `run_tool`.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as ours:
        pipes = [open_pipe(ours) for _ in outputs]
        ends = [writer.fileno() for _, writer in pipes]
        given = ours.enter_context(memory_file(stdin(ends)))
        messages = ours.enter_context(memory_file(b""))
        process = ours.enter_context(
            _running(
                command,
                cwd=cwd,
                env=env,
                limits={"RLIMIT_FSIZE": 1 << 20, **(limits or {})},  # limits its messages
                sandbox=sandbox,
                confinement=None,
                background=background,
                streams={"stdin": given, "stdout": messages, "stderr": messages},
                pass_fds=ends,
            )
        )
        for _, writer in pipes:
            writer.close()
        open_pipes = {reader: output for (reader, _), output in zip(pipes, outputs, strict=True)}
        timed_out = not _collect(
            process, open_pipes, deadline=started + time_limit.total_seconds(), cancelled=cancelled
        )
        lines = os.pread(messages, 65_536, 0).splitlines()[-TAIL:]
    return ToolResult(
        status=process.returncode,
        timed_out=timed_out,
        sandboxed=sandbox is not None,
        tail=tuple(map(_text, lines)),
        seconds=time.monotonic() - started,
    )


def _collect(
    process: subprocess.Popen[bytes],
    outputs: Mapping[BinaryIO, Output],
    *,
    deadline: float,
    cancelled: Cancelled,
) -> bool:
    """Pass the bytes of pipes to their outputs until `process` ends; return False at `deadline`."""
    with selectors.DefaultSelector() as selector:
        for reader, output in outputs.items():
            selector.register(reader, selectors.EVENT_READ, output)
        while selector.get_map() or not _ended_within(process, POLL):
            ended = process.poll() is not None
            ready = selector.select(0 if ended else POLL)
            for key, _ in ready:
                reader = cast("BinaryIO", key.fileobj)
                data = reader.read(1 << 20)
                if not data:
                    key.data.end()
                if not data or not key.data.add(data):
                    selector.unregister(reader)
                    reader.close()
            obey(cancelled)
            if time.monotonic() > deadline:
                return False
            if ended and not ready:  # a background process of the command holds a pipe
                return True
    return True


def _running(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limits: Mapping[str, int],
    sandbox: Sandbox | None,
    confinement: Confinement | None,
    streams: Mapping[str, int] | None = None,
    pass_fds: Sequence[int] = (),
    background: bool = False,
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    streams = streams or STREAMS
    if sandbox is None:
        return _guarded(
            command,
            cwd=cwd,
            env=env,
            limits=limits,
            confinement=confinement,
            streams=streams,
            kept=pass_fds,
            background=background,
        )
    require_sandbox()
    return start_sandboxed(
        command,
        cwd=cwd,
        env=env,
        limits=limits,
        sandbox=sandbox,
        streams=streams,
        kept=pass_fds,
        background=background,
    )


@contextlib.contextmanager
def _guarded(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limits: Mapping[str, int],
    confinement: Confinement | None,
    streams: Mapping[str, int],
    kept: Sequence[int] = (),
    background: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` during the block; at its end the whole process group is killed and reaped."""
    start = {
        "command": [os.fspath(part) for part in command],
        "environment": dict(env),
        "limits": dict(limits),
        "confinement": confinement.arguments() if confinement else None,
        "module": confining.__file__,
        "kept": sorted(kept),
        "background": background,
    }
    alive, held = os.pipe()  # only this process has `held`: it closes when this process exits
    with memory_file(json.dumps(start).encode()) as given:
        try:
            process = start_process(
                [*_GUARD_COMMAND, str(alive), str(given)],
                cwd=cwd,
                pass_fds=[alive, given, *kept],
                streams=streams,
            )
        except BaseException:
            os.close(held)
            raise
        finally:
            os.close(alive)
    try:
        yield process
    finally:
        kill_group(process)
        os.close(held)


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield the output lines of `process`, and None at least every `POLL` seconds, to its end."""
    assert process.stdout is not None  # it was opened as a pipe
    pending = b""
    last_look = time.monotonic()
    ended = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(POLL)
            chunk = os.read(process.stdout.fileno(), 65_536) if ready else b""
            if ready and not chunk:  # the other end is closed everywhere
                break
            pending += chunk
            *complete, pending = pending.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            yield from map(_text, complete)
            if len(pending) > LINE_LENGTH * 4:
                yield _text(pending)
                pending = b""
            if not ready or time.monotonic() - last_look >= POLL:
                if ended:  # a background process of the command holds the pipe
                    break
                # Read once more: the last output may have come after the read above.
                ended = process.poll() is not None
                if not ended:
                    yield None
                    last_look = time.monotonic()
    if pending:
        yield _text(pending)
    while process.poll() is None and not _ended_within(process, POLL):
        yield None


def _text(line: bytes) -> str:
    text = line.decode(errors="replace").replace("\0", "\ufffd")  # databases reject NUL
    return text if len(text) <= LINE_LENGTH else f"{text[:LINE_LENGTH]} [cut]"
