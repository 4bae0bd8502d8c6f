"""Cache of compiled Python files, which are hard-linked into prefixes.

A compiled file is only as trustworthy as everything that took part in compiling it. So the key of
an entry has the digests of the package and of the interpreter with all its dependencies, and no
other package takes part: each package is compiled by its own process, in a sandbox that shows only
an interpreter linked from these packages, and the sources, and where nothing can be written.
Results come back through one pipe per package; the parent checks their size and writes them.

One sandbox serves several packages: the interpreter forks for each before it reads a source, and
the fork closes all pipes but its own. Forks cannot reach each other: there is no /proc, and the
seccomp filter of the sandbox denies ptrace and similar calls. Without a filter each package has its
own sandbox.

    <folder>/<interpreter>/<package>/<part>/0.pyc, 1.pyc, ...
    <folder>/<interpreter>/<package>/<part>/contents.json    number -> source; mtime: last use
    <folder>/interpreters/<interpreter>/               its prefix; mtime: last use

`<interpreter>` is the key of an `Interpreter`, `<package>` the sha256 of a package or wheel. A part
is what one process compiled of it, so that modules that are imported first need not wait for the
rest. The files use the mode "unchecked hash": they stay valid in an archive or image whose times
are all zero, and Python compares nothing at import.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from environments.domain.progress import Cancelled, Report, ignore, never, obey
from environments.engine.prefix.compilation import CONTENTS, Compilation, batches
from environments.engine.prefix.interpreter import SHA256, Interpreter, link_all, link_interpreter
from environments.engine.prefix.python_sources import PythonSources, compiled_path
from environments.engine.system.confinement import sandbox_filter

#: Entries without use for this time are removed; prefixes keep their links.
_UNUSED = timedelta(days=30)
_INTERPRETERS = "interpreters"

#: Packages per sandbox: each has a pipe, and a process may have some hundred.
_PACKAGES_PER_SANDBOX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedBytecode:
    """Result of linking compiled files."""

    files: int  # files that have a compiled form in the prefix now
    #: For newly linked files: one file of each package -> bytes of all of the package's.
    samples: Mapping[str, int]
    missing: tuple[PythonSources, ...]  # sources that are not compiled yet


class BytecodeCache:
    """Compiled files of packages below one folder; any number of processes may use it at once."""

    def __init__(self, folder: Path, *, interpreters: Path | None = None) -> None:
        self.folder = folder
        self._interpreters = interpreters or folder / _INTERPRETERS
        self._swept = 0.0  # monotonic time of the last removal of unused entries

    def beside(self, folder: Path) -> BytecodeCache:
        """Return a cache with separate entries and the same interpreters."""
        return BytecodeCache(folder, interpreters=self._interpreters)

    def link(
        self, sources: Sequence[PythonSources], *, interpreter: Interpreter, prefix: Path
    ) -> LinkedBytecode:
        """Link compiled files into `prefix`, beside the sources; do not replace existing files.

        It can be repeated when more is compiled, even in a prefix that is in use.
        """
        missing: list[PythonSources] = []
        plan: list[tuple[str, str]] = []
        sizes: dict[str, int] = {}
        for each in sources:
            locations = dict(each.files)
            for part, document in _parts(self.folder / interpreter.key / each.key, used=True):
                for number, (path, size) in enumerate(document["files"].items()):
                    if path in locations:
                        compiled = f"{part}/{number}.pyc"
                        location = compiled_path(locations.pop(path), interpreter.tag)
                        plan.append((compiled, f"{prefix}/{location}"))
                        sizes[compiled] = size
                for path in document["failed"]:
                    locations.pop(path, None)
            if locations:
                missing.append(replace(each, files=tuple(locations.items())))
        links = set()
        for folder in {os.path.dirname(location) for _, location in plan}:  # noqa: PTH120
            try:
                os.mkdir(folder)  # noqa: PTH102  # called 10,000 times; the parent exists
            except FileExistsError:
                if os.path.islink(folder):  # noqa: PTH114  # a package's link may lead anywhere
                    links.add(folder)
        if links:
            plan = [each for each in plan if os.path.dirname(each[1]) not in links]  # noqa: PTH120
        with ThreadPoolExecutor(2) as pool:
            half = len(plan) // 2
            created = [*itertools.chain(*pool.map(link_all, (plan[:half], plan[half:])))]
        samples: dict[str, tuple[str, int]] = {}
        for compiled in created:
            part = compiled.rpartition("/")[0]
            sample, size = samples.get(part, (compiled, 0))
            samples[part] = sample, size + sizes[compiled]
        return LinkedBytecode(
            files=len(plan),
            samples=dict(samples.values()),
            missing=tuple(missing),
        )

    def compile(
        self,
        sources: Sequence[PythonSources],
        *,
        interpreter: Interpreter,
        cancelled: Cancelled = never,
        progress: Report = ignore,
        processes: int = 2,
        sandboxed: bool = True,
        background: bool = False,
    ) -> None:
        """Compile `sources`, each package in its own process, in a sandbox.

        Args:
            background: True runs with a low priority.
            sandboxed: False runs the interpreter, which is code of packages, with all rights of
                this process.
        Raises:
            SandboxUnavailableError: a sandbox is required but not available.
            UnavailableError: a package could not be compiled; all others are.
            LeaseLostError: `cancelled` returned True; finished entries stay.
        """
        entries = self.folder / interpreter.key
        requested = [
            rest
            for each in sources
            if SHA256.fullmatch(each.key) and (rest := _rest_of(each, entries / each.key))
        ]
        if not requested:
            return
        obey(cancelled)
        job = Compilation(
            entries=entries,
            prefix=self._prefix(interpreter),
            work=self.folder / f".compiling-{secrets.token_hex(8)}",
            sandboxed=sandboxed,
            background=background,
            cancelled=cancelled,
            progress=progress,
            total=len(requested),
        )
        entries.mkdir(exist_ok=True)
        job.work.mkdir()
        together = 1 if sandboxed and sandbox_filter() is None else _PACKAGES_PER_SANDBOX
        try:
            with ThreadPoolExecutor(processes) as pool:
                done = pool.map(job.attempt, batches(requested, processes, most=together))
                failed = [error for error in done if error]
        finally:
            shutil.rmtree(job.work, ignore_errors=True)
        obey(cancelled)
        if failed:
            raise failed[0]

    def _prefix(self, interpreter: Interpreter) -> Path:
        """Return the prefix of `interpreter`; link it from its packages if it is missing."""
        folder = self._interpreters
        prefix = folder / interpreter.key
        with contextlib.suppress(FileNotFoundError):
            os.utime(prefix)
            return prefix
        folder.mkdir(parents=True, exist_ok=True)
        work = folder / f".linking-{secrets.token_hex(8)}"
        work.mkdir()
        try:
            link_interpreter(interpreter, work)
            work.rename(prefix)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process linked it at the same time.
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return prefix

    def remove_leftovers(self, *, older_than: timedelta) -> None:
        """Remove unused interpreters, temporary files of killed processes, and old formats."""
        limit = time.time() - older_than.total_seconds()
        for path in (
            *self.folder.glob(".compiling-*"),
            *self.folder.glob(f"{_INTERPRETERS}/*"),
            *self.folder.glob(f"{_INTERPRETERS}/.linking-*"),
        ):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    self._remove(path)
        for pattern in (f"*/{CONTENTS}", f"*/*/{CONTENTS}"):  # layouts of older formats
            for contents in self.folder.glob(pattern):
                if not contents.parent.parent.name.startswith("."):  # a running process's folder
                    self._remove(contents.parent)
        if not self._swept or time.monotonic() - self._swept > 86_400:
            self._swept = time.monotonic()
            self._remove_unused(time.time() - _UNUSED.total_seconds())

    def _remove_unused(self, limit: float) -> None:
        for contents in self.folder.glob(f"*/*/*/{CONTENTS}"):
            with contextlib.suppress(FileNotFoundError):
                if contents.stat().st_mtime < limit:
                    self._remove(contents.parent)
                    with contextlib.suppress(OSError):  # not empty
                        contents.parent.parent.rmdir()
                        contents.parent.parent.parent.rmdir()

    def remove(self, digests: Iterable[str]) -> None:
        """Remove the entries of packages. Prefixes that were linked from them keep their files."""
        for digest in digests:
            for entry in self.folder.glob(f"*/{digest}"):
                if entry.parent.name != _INTERPRETERS:
                    self._remove(entry)

    def _remove(self, path: Path) -> None:
        """Hide a folder at once by a rename, then remove it."""
        doomed = self.folder / f".compiling-{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _parts(entry: Path, *, used: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (folder, contents) of each part of an entry.

    Args:
        used: True sets the time of their last use to now.
    Yields:
        The contents have `files`, {path in the package: size of the compiled file} in the order of
        numbers, and `failed`, paths that do not compile.
    """
    try:
        names = sorted(os.listdir(entry))  # noqa: PTH208  # 50 times per build
    except FileNotFoundError:
        return
    for name in names:
        contents = f"{entry}/{name}/{CONTENTS}"
        try:
            with open(contents, "rb") as file:  # noqa: PTH123
                document = json.load(file)
            found = {key: document[key] for key in ("files", "failed")}
            if used:
                os.utime(contents)
        except (FileNotFoundError, ValueError, KeyError):
            continue
        yield f"{entry}/{name}", found


def _rest_of(sources: PythonSources, entry: Path) -> PythonSources | None:
    """Return the part of `sources` that is missing in `entry`; None if nothing is missing."""
    there: set[str] = set()
    for _, document in _parts(entry):
        there.update(document["files"], document["failed"])
    files = tuple(file for file in sources.files if file[0] not in there)
    return replace(sources, files=files) if files else None
