"""How is a tool run so that it can be stopped at any moment and leaves nothing behind?"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from environments.domain.progress import Cancelled, obey

POLL = 0.1  # seconds between two looks at a cancel
LINE_LENGTH = 4_000  # characters; what is longer is cut
TAIL = 40  # lines kept for messages

#: Runs the command as its child in one group with it, and kills the group when the pipe to the
#: worker closes: however the worker dies, nothing it started lives on. (PR_SET_PDEATHSIG alone
#: does not reach the children of a child, and `preexec_fn` is unsafe in a process with threads.)
_GUARD = """
import json, os, select, signal, sys
alive, limits, command = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
child = os.fork()
if not child:
    os.close(alive)
    if limits:
        import resource
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
for inherited in (0, 1, 2):
    os.close(inherited)
ended = os.pidfd_open(child)
if alive in select.select([alive, ended], [], [])[0]:
    os.killpg(0, signal.SIGKILL)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os._exit(status if status >= 0 else 128 - status)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """`status` as a shell gives it: 127 not found, 128 + n killed by signal n."""

    status: int
    timed_out: bool
    sandboxed: bool
    tail: tuple[str, ...]  # the last lines of what it printed
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.status == 0 and not self.timed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What a command may see: the system's programs, `readable` and `writable`; no network.

    /tmp and HOME are its own and empty. Without bubblewrap the command runs as it is.
    A path may be shown at another place: {place: path}.
    """

    readable: Mapping[Path, Path] = field(default_factory=dict)
    writable: Mapping[Path, Path] = field(default_factory=dict)

    def wrap(self, command: Sequence[str], *, cwd: Path) -> list[str]:
        binds = [
            *(("--ro-bind", path, place) for place, path in self.readable.items()),
            *(("--bind", path, place) for place, path in self.writable.items()),
        ]
        return [
            shutil.which("bwrap") or "bwrap",
            *_BWRAP,
            *(os.fspath(part) for bind in binds for part in bind),
            *("--chdir", os.fspath(cwd), "--"),
            *command,
        ]


#: Enough of the system to run a program that was linked for it, and nothing of its users or of
#: ours: neither the database nor the settings nor another namespace's prefixes.
_SYSTEM = [
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"),
    *("/etc/alternatives", "/etc/fonts", "/etc/group", "/etc/hosts", "/etc/ld.so.cache"),
    *("/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf"),
    *("/etc/passwd", "/etc/ssl", "/etc/terminfo"),
]
_BWRAP = [
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *(part for path in _SYSTEM for part in ("--ro-bind-try", path, path)),
    *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/tmp/home"),  # noqa: S108
    *("--setenv", "HOME", "/tmp/home", "--setenv", "TMPDIR", "/tmp"),  # noqa: S108
]


@functools.cache
def can_sandbox() -> bool:
    """Whether bubblewrap is here and may make namespaces (many containers forbid it)."""
    if shutil.which("bwrap") is None:
        return False
    probe = subprocess.run(
        Sandbox().wrap(["true"], cwd=Path("/")), capture_output=True, timeout=20, check=False
    )
    return probe.returncode == 0


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
) -> ToolResult:
    """Run `command` to its end; `on_line` gets each line of its output and errors as it comes.

    Args:
        env: the whole environment; nothing is inherited.
        limits: of the process, as {"RLIMIT_AS": bytes}; see the module `resource`.
    Raises:
        LeaseLostError: `cancelled` said so; the command and all it started are gone.
    """
    sandboxed = sandbox is not None and can_sandbox()
    if sandbox is not None and sandboxed:
        command, cwd = sandbox.wrap(command, cwd=cwd), Path("/")  # `cwd` may be inside only
    started = time.monotonic()
    deadline = started + time_limit.total_seconds()
    tail: deque[str] = deque(maxlen=TAIL)
    timed_out = False
    with _guarded(command, cwd=cwd, env=env, limits=limits or {}) as process:
        for line in _lines(process):
            if line is None:
                obey(cancelled)
                if time.monotonic() > deadline:
                    timed_out = True
                    break
            else:
                tail.append(line)
                on_line(line)
    return ToolResult(
        status=process.returncode,
        timed_out=timed_out,
        sandboxed=sandboxed,
        tail=tuple(tail),
        seconds=time.monotonic() - started,
    )


@contextlib.contextmanager
def _guarded(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], limits: Mapping[str, int]
) -> Iterator[subprocess.Popen[bytes]]:
    """A running `command`; when the block ends, its whole group is dead and collected."""
    alive, held = os.pipe()  # `held` is ours alone: it closes when this process ends
    try:
        process = subprocess.Popen(
            [*_GUARD_COMMAND, str(alive), json.dumps(dict(limits)), *command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[alive],
        )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(alive)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(held)


_GUARD_COMMAND = [sys.executable, "-I", "-S", "-c", _GUARD]


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """The lines that `process` prints, and None at least every `POLL` seconds, until it ends."""
    assert process.stdout is not None  # it was opened as a pipe
    pending = b""
    last_look = time.monotonic()
    ended = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(POLL)
            chunk = os.read(process.stdout.fileno(), 65_536) if ready else b""
            if ready and not chunk:  # nobody holds the other end any more
                break
            pending += chunk
            *complete, pending = pending.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            yield from map(_text, complete)
            if len(pending) > LINE_LENGTH * 4:
                yield _text(pending)
                pending = b""
            if not ready or time.monotonic() - last_look >= POLL:
                if ended:  # what it left running holds the pipe
                    break
                # Once more: what it printed last may have come after the read above.
                ended = process.poll() is not None
                if not ended:
                    yield None
                    last_look = time.monotonic()
    if pending:
        yield _text(pending)
    while process.poll() is None and not _ended_within(process, POLL):
        yield None


def _text(line: bytes) -> str:
    text = line.decode(errors="replace").replace("\0", "\ufffd")  # databases take no null
    return text if len(text) <= LINE_LENGTH else f"{text[:LINE_LENGTH]} [cut]"
