"""Smoke tests of a finished prefix: the imports and commands of its specification."""

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
from environments.engine.system.processes import ToolResult, run_tool
from environments.engine.system.sandbox import SCRATCH, Sandbox

#: Activates like conda: runs the packages' scripts, then the command.
_ACTIVATED = """
for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    if [ -r "$script" ]; then . "$script"; fi
done
exec "$@"
"""

#: Imports all modules in one process. A random word that no module can know marks the outcomes.
#: At the end it names the sources that had no compiled form.
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
    except BaseException:  # an entry of sys.modules that is not a module
        pass
"""

#: Maximum number of sources that the tests may report as not compiled.
_MAX_UNCOMPILED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeReport:
    """Result of successful smoke tests."""

    tests: int
    sandboxed: bool  # without network and write access
    seconds: float
    #: Paths in the prefix of sources without a compiled form; reported by the tested code: a hint.
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
    """Import `imports` and run `commands` in the activated `prefix`, placed at `final_prefix`.

    Args:
        commands: shell command lines, each run separately, in an empty folder.
        time_limit: time limit of all tests together.
        sandboxed: False runs code of packages with all rights of the worker.
    Raises:
        SandboxUnavailableError: a sandbox is required but not available.
        SmokeTestError: a test failed or took too long; names all failed imports.
        LeaseLostError: `cancelled` returned True.
    """
    started = time.monotonic()
    if not imports and not commands:
        return SmokeReport(tests=0, sandboxed=sandboxed, seconds=0.0)
    deadline = started + time_limit.total_seconds()
    shell = shutil.which("bash") or "/bin/sh"
    with _in_place(prefix, final_prefix, sandboxed=sandboxed) as scratch:
        environment = _environment(prefix, final_prefix, scratch)
        uncompiled: frozenset[str] = frozenset()

        def run(command: Sequence[str], handle_line: Callable[[str], None]) -> ToolResult:
            return run_tool(
                [shell, "-c", _ACTIVATED, "activate", *command],
                cwd=scratch,
                env=environment,
                time_limit=timedelta(seconds=max(deadline - time.monotonic(), 0.1)),
                cancelled=cancelled,
                on_line=handle_line,
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
    """Import `imports` in one process; return the paths of sources without a compiled form."""
    word = secrets.token_hex(8)
    failed: list[str] = []
    uncompiled: set[str] = set()
    last: list[str] = []

    def handle_line(line: str) -> None:
        found, _, rest = line.partition(" ")
        if found != word:
            on_line(line)
            return
        outcome, _, name = rest.partition(" ")
        if outcome == "uncompiled":
            if len(uncompiled) < _MAX_UNCOMPILED:
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
    result = run([python, "-c", _IMPORT, word, *imports], handle_line)
    if last:  # the import hung, or crashed the interpreter
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
        f"took longer than {time_limit.total_seconds():g} seconds, the limit of all tests together"
        if result.timed_out
        else f"failed (status {result.status})"
        if result.status
        else "failed"
    )
    output = "\n".join(lines[-10:])
    return SmokeTestError(
        f"{test[0].upper()}{test[1:]} {why}." + (f" Its output:\n{output}" if output else ""),
        details={"test": test, "status": result.status, "tail": lines},
    )


@contextlib.contextmanager
def _in_place(prefix: Path, final_prefix: Path, *, sandboxed: bool) -> Iterator[Path]:
    """Make `prefix` visible at `final_prefix`; yield a folder that the tests may write to.

    In a sandbox it is mounted there. Without one a symbolic link exists during the tests, because
    scripts name their interpreter by the final path.
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
    """Return the environment of an activated shell: packages' variables, then the own ones."""
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


#: Size limit of a file of variables, in bytes.
_LARGEST_VARIABLES = 1 << 20


def _variables(prefix: Path, path: Path, key: str | None = None) -> dict[str, str]:
    """Return the variables in a JSON file of `prefix`; {} if it is outside or too large."""
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
    """Return True if the system accepts such a variable; packages may name any."""
    try:
        return bool(name) and "=" not in name and b"\0" not in os.fsencode(name + value)
    except UnicodeEncodeError:
        return False
