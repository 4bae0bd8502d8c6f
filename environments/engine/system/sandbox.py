"""Sandbox for code of packages: bubblewrap, with limits and a seccomp filter."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from condastore.errors import SandboxUnavailableError, UnavailableError
from environments.engine.system.confinement import SYSTEM, sandbox_filter
from environments.engine.system.subprocesses import (
    STREAMS,
    GuardedGroup,
    guarded_group,
    memory_file,
    open_pipe,
    start_process,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What code of packages may see: the system's programs, `readable` and `writable`; no network.

    /tmp, HOME and /dev/shm are private, empty, and of limited size; nothing else is writable. A
    path may be mounted at a different path: {place: path}. Paths must be folders of condastore, not
    below a folder that packages can change.

    A `bare` sandbox has only the system's libraries: no programs, /proc, /dev, /tmp or HOME.
    """

    readable: Mapping[Path, Path] = field(default_factory=dict)
    writable: Mapping[Path, Path] = field(default_factory=dict)
    bare: bool = False

    def options(self, *, cwd: Path, environment: Mapping[str, str]) -> list[str]:
        """Return bubblewrap's options; bubblewrap itself starts with an empty environment."""
        binds = [
            *(("--ro-bind", path, location) for location, path in self.readable.items()),
            *(("--bind", path, location) for location, path in self.writable.items()),
        ]
        own = {} if self.bare else {"HOME": SCRATCH, "TMPDIR": "/tmp"}  # noqa: S108
        variables = own | dict(environment)
        return [
            *_sandbox_options(bare=self.bare),
            *(os.fspath(part) for bind in binds for part in bind),
            *("--remount-ro", "/"),
            *(
                part
                for name, value in variables.items()
                if name and "=" not in name and "\0" not in name + value
                for part in ("--setenv", name, value)
            ),
            *("--chdir", os.fspath(cwd)),
        ]


SCRATCH = "/tmp/home"  # noqa: S108  # in the sandbox
#: Bytes that code in the sandbox may write to /tmp and to /dev/shm, both in memory.
_SCRATCH_SIZE, _SHARED_SIZE = 1 << 30, 512 << 20

#: Limits of a process in the sandbox; its memory is half of the machine's, at least 2 GiB.
#: RLIMIT_NPROC counts the processes and threads of one sandbox.
_SANDBOX_LIMITS = {
    "RLIMIT_CORE": 0,
    "RLIMIT_DATA": max(2 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2),
    "RLIMIT_FSIZE": _SCRATCH_SIZE,
    "RLIMIT_NPROC": 1024 + 16 * (os.cpu_count() or 1),
}

#: Kernel version since which RLIMIT_NPROC is counted by user namespace.
_COUNTS_BY_NAMESPACE = (5, 14)


@functools.cache
def _bubblewrap_knows() -> frozenset[str]:
    """Return the options that the installed bubblewrap supports on this machine.

    Raises:
        UnavailableError: bubblewrap was killed or timed out. Nothing is cached then.
    """

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [shutil.which("bwrap") or "bwrap", *arguments]
        try:
            with guarded_group() as group:
                done = subprocess.run(
                    command,
                    env={},
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                    process_group=group.id,
                )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError("bubblewrap does not answer.") from error
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            raise UnavailableError(f"bubblewrap was ended by {name}.")
        return done

    known = frozenset(re.findall(r"^ +(--[a-z-]+)", run("--help").stdout, re.MULTILINE))
    locked = ("--unshare-user", "--disable-userns", "--ro-bind", "/", "/", "/bin/true")
    if "--disable-userns" in known and run(*locked).returncode:  # bubblewrap is setuid
        known -= {"--disable-userns"}
    return known


def _sandbox_options(*, bare: bool) -> list[str]:
    known = _bubblewrap_knows()

    def tmpfs(place: str, size: int) -> list[str]:
        return [*(("--size", str(size)) if "--size" in known else ()), "--tmpfs", place]

    options = [
        *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *(("--unshare-user", "--disable-userns") if "--disable-userns" in known else ()),
    ]
    if bare:
        return options + [part for path in _LIBRARIES for part in ("--ro-bind-try", path, path)]
    return [
        *options,
        *(part for path in VISIBLE_PATHS for part in ("--ro-bind-try", path, path)),
        *("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"),
        *(*tmpfs("/dev/shm", _SHARED_SIZE), *tmpfs("/tmp", _SCRATCH_SIZE)),  # noqa: S108
        *("--dir", SCRATCH),
    ]


#: System paths that a program with its own libraries needs: libc and its loader.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store")
#: System paths that suffice to run a program linked for the system, without data of users or of
#: condastore: no database, no settings, no prefixes of other namespaces.
VISIBLE_PATHS = tuple(
    path for path in SYSTEM if path.startswith(("/usr", "/bin", "/sbin", "/lib", "/nix"))
)


VISIBLE_PATHS += (
    *("/etc/alternatives", "/etc/ca-certificates", "/etc/fonts", "/etc/group", "/etc/hosts"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime"),
    *("/etc/nsswitch.conf", "/etc/passwd", "/etc/pki/ca-trust", "/etc/pki/tls/certs"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/terminfo"),
)


#: A check that was killed, or ran out of time, is repeated this often before its result is open.
_ATTEMPTS = 3


@functools.cache
def check_sandbox() -> str:
    """Return why code of packages cannot run on this machine, as a sentence; "" if it can.

    Raises:
        UnavailableError: bubblewrap was killed or timed out, which says nothing about the machine.
            The next call checks again; only a result is cached.
    """
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed."
    inconclusive = ""
    for _ in range(_ATTEMPTS):
        try:
            status, output = _run_in_sandbox("true")
        except FileNotFoundError as error:
            return f"bubblewrap does not start: {error}."
        except (OSError, subprocess.TimeoutExpired) as error:  # no memory, no processes, no time
            inconclusive = f"bubblewrap does not start: {error}."
            continue
        if status == 0:
            return ""
        if status > 0:
            return f"bubblewrap does not work here: {output or f'status {status}'}."
        inconclusive = f"bubblewrap was ended by {signal.Signals(-status).name}."
    raise UnavailableError(f"Whether code of packages can run here is not known: {inconclusive}")


def _run_in_sandbox(program: str) -> tuple[int, str]:
    """Return the status of a program in a sandbox, and the last line of its output."""
    with start_sandboxed(
        [program], cwd=Path("/"), env={}, limits={}, sandbox=Sandbox(), streams=STREAMS
    ) as process:
        output, _ = process.communicate(timeout=30)
    lines = output.decode(errors="replace").strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


def sandbox_problem() -> str:
    """Return why code of packages cannot run now, as a sentence; "" if it can."""
    try:
        return check_sandbox()
    except UnavailableError as error:
        return error.message


def can_sandbox() -> bool:
    """Return True if bubblewrap works here (many containers forbid namespaces)."""
    return not sandbox_problem()


def require_sandbox() -> None:
    """Raise an error if code of packages cannot be sandboxed.

    Raises:
        SandboxUnavailableError: this machine has no working bubblewrap.
        UnavailableError: the check was killed or timed out; to be repeated.
    """
    if problem := check_sandbox():
        raise SandboxUnavailableError(
            f"Code of packages runs in a sandbox only, and this worker has none: {problem}"
        )


@contextlib.contextmanager
def start_sandboxed(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limits: Mapping[str, int],
    sandbox: Sandbox,
    streams: Mapping[str, int],
    kept: Sequence[int] = (),
    background: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` in bubblewrap during the block; at its end the whole sandbox is gone.

    The kernel kills a PID namespace with its first process, so killing that process is sufficient.
    `--die-with-parent` ties it to bubblewrap only when the sandbox is set up. Before, it waits
    forever for a killed bubblewrap, or takes a closed `--block-fd` for permission to run `command`.
    Until its release it is therefore killed with the process group of bubblewrap, whose guard holds
    `--block-fd` open; afterwards it is in its own session, and killed by its number.

    The options come through a file descriptor, so that variables do not appear in /proc/*/cmdline
    and are not subject to the limits of a command line.
    """
    filtering = sandbox_filter()
    options = sandbox.options(cwd=cwd, environment=env)
    with contextlib.ExitStack() as lasting, contextlib.ExitStack() as ours:
        passed = []
        if filtering is not None:
            passed.append(ours.enter_context(memory_file(filtering)))
            options += ["--seccomp", str(passed[-1])]
        info, info_end = open_pipe(ours)
        block, release = open_pipe(ours)
        passed += [info_end.fileno(), block.fileno()]
        options += ["--info-fd", str(info_end.fileno()), "--block-fd", str(block.fileno())]
        text = "".join(f"{option}\0" for option in options)
        given = ours.enter_context(memory_file(text.encode(errors="surrogateescape")))
        group = lasting.enter_context(guarded_group(release.fileno()))
        process = start_process(
            [shutil.which("bwrap") or "bwrap", "--args", str(given), "--", *command],
            cwd=Path("/"),
            pass_fds=[*passed, given, *kept],
            streams=streams,
            process_group=group.id,
        )
        lasting.callback(_end, process, group)
        info_end.close()
        first = _first_process(info)
        if first is not None:  # else it failed, or is never released
            group.add(first)
            _limit(first, {**_SANDBOX_LIMITS, **limits})
            if background:
                _lower_priority(first)
            release.write(b".")
        ours.close()
        yield process


def _end(process: subprocess.Popen[bytes], group: GuardedGroup) -> None:
    """Kill a sandbox, and reap bubblewrap."""
    group.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _first_process(info: BinaryIO) -> int | None:
    """Return the first process of a sandbox from bubblewrap's report; None if there is none."""
    text = b""
    deadline = time.monotonic() + 30
    while b"}" not in text and select.select([info], [], [], deadline - time.monotonic())[0]:
        chunk = info.read(4096)
        if not chunk:
            break
        text += chunk
    try:
        return int(json.loads(text)["child-pid"])
    except (ValueError, KeyError):
        return None


def _limit(pid: int, limits: Mapping[str, int]) -> None:
    """Limit a waiting process, and make it the first victim of the kernel's OOM killer."""
    for name, value in limits.items():
        if name == "RLIMIT_NPROC" and not _counts_processes_by_sandbox():
            continue
        kind = getattr(resource, name)
        with contextlib.suppress(OSError, ValueError):
            hard = resource.prlimit(pid, kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, kind, (most, most))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")


def _lower_priority(pid: int) -> None:
    """Give a process and its children only idle processor and disk time.

    The kernel derives the I/O priority from the processor priority.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _counts_processes_by_sandbox() -> bool:
    """Return True if RLIMIT_NPROC counts one sandbox instead of all processes of this user."""
    version = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    return version >= _COUNTS_BY_NAMESPACE and "--disable-userns" in _bubblewrap_knows()
