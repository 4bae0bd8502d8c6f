"""Smoke tests of a finished prefix: the imports and commands that its owner named."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from condastore.errors import SmokeTestError
from environments.domain.json_text import parse_json
from environments.domain.progress import Cancelled, never
from environments.engine.system.processes import SCRATCH, Sandbox, ToolResult, run_tool

#: Activation as conda's: the scripts of packages, then the command.
_ACTIVATED = """
for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    if [ -r "$script" ]; then . "$script"; fi
done
exec "$@"
"""

#: All imports in one process. What goes wrong is told apart by a word that no module can know.
#: Then the sources that it had to compile are named.
_IMPORT = """
import importlib, os, sys, traceback
word, names = sys.argv[1], sys.argv[2:]
for name in names:
    print(word, "start", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        print(word, "failed", name, flush=True)
    else:
        print(word, "passed", name, flush=True)
for module in list(sys.modules.values()):
    try:
        spec = module.__spec__
        if spec.has_location and spec.cached and not os.path.exists(spec.cached):
            print(word, "uncompiled", spec.origin)
    except BaseException:  # of a module that is something else
        pass
"""


#: Sources that the tests may name as compiled by them.
_MOST_UNCOMPILED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeReport:
    tests: int
    sandboxed: bool  # without network and write access
    seconds: float
    #: Paths in the prefix of sources that the imports compiled: as their code says, so a hint.
    uncompiled: frozenset[str] = frozenset()


def run_smoke_tests(
    prefix: Path,
    *,
    final_prefix: Path,
    imports: Sequence[str] = (),
    commands: Sequence[str] = (),
    time_limit: timedelta,
    cancelled: Cancelled = never,
    on_line: Callable[[str], None],
    sandboxed: bool = True,
) -> SmokeReport:
    """Import `imports` and run `commands` in the activated `prefix`, as if it were `final_prefix`.

    Args:
        commands: lines for a shell, each run alone, in an empty folder.
        time_limit: of all tests together.
        sandboxed: False runs what packages bring with all rights of the worker.
    Raises:
        SandboxUnavailableError: there is no sandbox, and one is asked for.
        SmokeTestError: a test failed or took too long; all failed imports are named.
        LeaseLostError: `cancelled` said so.
    """
    started = time.monotonic()
    if not imports and not commands:
        return SmokeReport(tests=0, sandboxed=sandboxed, seconds=0.0)
    deadline = started + time_limit.total_seconds()
    shell = shutil.which("bash") or "/bin/sh"
    with _in_place(prefix, final_prefix, sandboxed=sandboxed) as scratch:
        environment = _environment(prefix, final_prefix, scratch)
        uncompiled: frozenset[str] = frozenset()

        def run(command: Sequence[str], look: Callable[[str], None]) -> ToolResult:
            return run_tool(
                [shell, "-c", _ACTIVATED, "activate", *command],
                cwd=scratch,
                env=environment,
                time_limit=timedelta(seconds=max(deadline - time.monotonic(), 0.1)),
                cancelled=cancelled,
                on_line=look,
                sandbox=Sandbox(readable={final_prefix: prefix}) if sandboxed else None,
            )

        if imports:
            uncompiled = _check_imports(final_prefix, imports, run, on_line, time_limit)
        for command in commands:
            on_line(f"$ {command}")
            result = run([shell, "-c", command], on_line)
            if not result.succeeded:
                raise _failure(f"the command {command!r}", result, time_limit)
    return SmokeReport(
        tests=len(imports) + len(commands),
        sandboxed=sandboxed,
        seconds=time.monotonic() - started,
        uncompiled=uncompiled,
    )


def _check_imports(
    final_prefix: Path,
    imports: Sequence[str],
    run: Callable[[Sequence[str], Callable[[str], None]], ToolResult],
    on_line: Callable[[str], None],
    time_limit: timedelta,
) -> frozenset[str]:
    """Import `imports` in one process; the paths of sources that it compiled."""
    word = secrets.token_hex(8)
    failed: list[str] = []
    uncompiled: set[str] = set()
    last: list[str] = []

    def look(line: str) -> None:
        found, _, rest = line.partition(" ")
        if found != word:
            on_line(line)
            return
        outcome, _, name = rest.partition(" ")
        if outcome == "uncompiled":
            if len(uncompiled) < _MOST_UNCOMPILED:
                uncompiled.add(name.removeprefix(f"{final_prefix}/"))
            return
        if outcome == "start":
            on_line(f"import {name}")
            last[:] = [name]
            return
        last.clear()
        if outcome == "failed":
            failed.append(name)

    python = str(final_prefix / "bin" / "python")
    result = run([python, "-c", _IMPORT, word, *imports], look)
    if last:  # it hung, or took the interpreter down with it
        raise _failure(f"import {last[0]}", result, time_limit, hidden=word)
    if failed:
        raise _failure(
            " and ".join(f"import {name}" for name in failed), result, time_limit, hidden=word
        )
    if not result.succeeded:
        raise _failure("the interpreter", result, time_limit, hidden=word)
    return frozenset(uncompiled)


def _failure(
    test: str, result: ToolResult, time_limit: timedelta, *, hidden: str = "\0"
) -> SmokeTestError:
    lines = [line for line in result.tail if hidden not in line]
    why = (
        f"took longer than the {time_limit.total_seconds():g} seconds that all tests have"
        if result.timed_out
        else f"failed (status {result.status})"
        if result.status
        else "failed"
    )
    said = "\n".join(lines[-10:])
    return SmokeTestError(
        f"{test[0].upper()}{test[1:]} {why}." + (f" It said:\n{said}" if said else ""),
        details={"test": test, "status": result.status, "tail": lines},
    )


@contextlib.contextmanager
def _in_place(prefix: Path, final_prefix: Path, *, sandboxed: bool) -> Iterator[Path]:
    """`prefix` can be found at `final_prefix`; gives a folder that the tests may write to.

    A sandbox shows it there. Without one a link does, for as long as the tests run: scripts name
    their interpreter by the final path.
    """
    if sandboxed:
        yield Path(SCRATCH)
        return
    scratch = prefix.with_name(f"{prefix.name}-scratch-{secrets.token_hex(4)}")
    scratch.mkdir()
    linked = final_prefix != prefix and not os.path.lexists(final_prefix)
    if linked:
        final_prefix.parent.mkdir(parents=True, exist_ok=True)
        final_prefix.symlink_to(prefix)
    try:
        yield scratch
    finally:
        if linked:
            final_prefix.unlink()
        shutil.rmtree(scratch, ignore_errors=True)


def _environment(prefix: Path, final_prefix: Path, scratch: Path) -> Mapping[str, str]:
    """What an activated shell has: the variables of packages, then those of the environment."""
    environment = {
        "PATH": f"{final_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "CONDA_PREFIX": str(final_prefix),
        "CONDA_DEFAULT_ENV": final_prefix.name,
        "CONDA_SHLVL": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
    }
    for path in sorted((prefix / "etc" / "conda" / "env_vars.d").glob("*.json")):
        environment |= _variables(prefix, path)
    environment |= _variables(prefix, prefix / "conda-meta" / "state", "env_vars")
    return environment


#: Bytes of a file of variables.
_LARGEST_VARIABLES = 1 << 20


def _variables(prefix: Path, path: Path, key: str | None = None) -> dict[str, str]:
    """Return what a JSON file of `prefix` sets; nothing of a file that is outside or too large."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(prefix.resolve()) or real.stat().st_size > _LARGEST_VARIABLES:
            return {}
        document = parse_json(real.read_bytes())
        found = document.get(key, {}) if key else document
    except (OSError, ValueError, AttributeError):
        return {}
    variables = {str(name): str(value) for name, value in found.items()}
    return {name: value for name, value in variables.items() if _can_be_set(name, value)}


def _can_be_set(name: str, value: str) -> bool:
    """Return whether the system takes such a variable; packages may name any."""
    try:
        return bool(name) and "=" not in name and b"\0" not in os.fsencode(name + value)
    except UnicodeEncodeError:
        return False
