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
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from condastore.errors import LeaseLostError, UnavailableError
from environments.domain.linking import (
    PackageContents,
    PathConflict,
    PythonInfo,
    prefix_path,
    replaced_paths,
)
from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.domain.records import CondaPackage
from environments.engine.packages.cache import CachedPackage
from environments.engine.system.confinement import sandbox_filter
from environments.engine.system.processes import Sandbox, run_piped

CONTENTS = "contents.json"
#: Part of the key; a change invalidates all entries.
_FORMAT = "3"
_TIME_LIMIT = timedelta(minutes=30)  # of one sandbox
#: Entries without use for this time are removed; prefixes keep their links.
_UNUSED = timedelta(days=30)
_INTERPRETERS = "interpreters"
_SHA256 = re.compile(r"[0-9a-f]{64}")

#: Runs in the bare interpreter with minimal imports. A job is the number of its pipe, its folder
#: and pairs (path, place), ended by an empty word. For each pair it writes the length of the
#: compiled file and the file; length 0 if the source does not compile, so that it cannot be
#: imported either.
_COMPILE = """
import sys, posix, _imp
from importlib import _bootstrap_external as files
try:
    magic = files._RAW_MAGIC_NUMBER
except AttributeError:
    magic = _imp.pyc_magic_number_token

def compile_all(pipe, folder, pairs):
    posix.closerange(0, pipe)
    posix.closerange(pipe + 1, 1 << 16)
    out = open(pipe, "wb")
    for path, place in pairs:
        try:
            with open(folder + "/" + path, "rb") as file:
                source = file.read()
            code = compile(source, place, "exec", dont_inherit=True, optimize=0)
            data = files._code_to_hash_pyc(code, _imp.source_hash(magic, source), False)
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            data = b""
        out.write(len(data).to_bytes(4, "big"))
        out.write(data)
    out.flush()

job = []
for word in sys.stdin.buffer.read().decode("utf-8", "surrogateescape").split("\\0"):
    if word:
        job.append(word)
    elif job:
        pipe = int(job[0])
        child = posix.fork()
        if not child:
            try:
                compile_all(pipe, job[1], zip(job[2::2], job[3::2]))
            finally:
                posix._exit(0)
        posix.close(pipe)
        posix.waitpid(child, 0)
        job = []
"""
#: Limits of a process that compiles.
_LIMITS = {"RLIMIT_AS": 4 << 30, "RLIMIT_CORE": 0}
#: Packages per sandbox: each has a pipe, and a process may have some hundred.
_PACKAGES_PER_SANDBOX = 32
#: Maximum size of a compiled file: a multiple of its source's size, plus a constant in bytes.
_GROWTH, _ALLOWANCE = 64, 1 << 20
#: Parts of the standard library that compiling does not need: a third of its files.
_LEFT_OUT = frozenset(
    {"ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonSources:
    """The Python files of one package that have no compiled form in it."""

    key: str  # digest of the package
    name: str
    folder: Path  # base of the paths in the package
    files: tuple[tuple[str, str], ...]  # (path in the package, path in the prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """CPython with all its dependencies in one lock: everything that takes part in compiling."""

    key: str
    tag: str  # part of the names of compiled files: cpython-311
    python: PythonInfo
    packages: tuple[CachedPackage, ...]

    @classmethod
    def of(cls, packages: Sequence[CachedPackage], python: PythonInfo) -> Interpreter | None:
        """Return the interpreter among the packages of a lock.

        Returns None if it is not CPython, or if one of its packages has no sha256: compiled files
        are shared by digest.
        """
        by_name = {cached.package.name: cached for cached in packages}
        tag = bytecode_tag(by_name["python"].package) if "python" in by_name else None
        if tag is None:
            return None
        found: dict[str, CachedPackage] = {}
        open_names = ["python"]
        while open_names:
            name = open_names.pop()
            if name not in by_name or name in found:  # not in the lock: virtual, such as __glibc
                continue
            found[name] = by_name[name]
            open_names += map(dependency_name, by_name[name].package.depends)
        digests = sorted(cached.folder.parent.name for cached in found.values())
        if not all(map(_SHA256.fullmatch, digests)):
            return None
        text = "\n".join([_FORMAT, tag, python.site_packages, *digests])
        return cls(
            key=hashlib.sha256(text.encode()).hexdigest(),
            tag=tag,
            python=python,
            packages=tuple(found[name] for name in sorted(found)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedBytecode:
    """Result of linking compiled files."""

    files: int  # files that have a compiled form in the prefix now
    #: For newly linked files: one file of each package -> bytes of all of the package's.
    samples: Mapping[str, int]
    missing: tuple[PythonSources, ...]  # sources that are not compiled yet


def bytecode_tag(python: CondaPackage) -> str | None:
    """Return the tag in the names of this Python's compiled files; None if it is not CPython."""
    if "pypy" in python.build or "graalpy" in python.build:
        return None
    return "cpython-" + "".join(python.version.split(".")[:2])


def dependency_name(dependency: str) -> str:
    """Return the name in `python >=3.11,<3.12.0a0` or `openssl[version=3]`."""
    match = re.match(r"[\w.-]+", dependency.rpartition("::")[2].strip())
    return match[0].lower() if match else ""


def python_sources(
    packages: Sequence[CachedPackage],
    python: PythonInfo,
    *,
    conflicts: Sequence[PathConflict] = (),
) -> list[PythonSources]:
    """Return the sources to compile in the site-packages of conda packages.

    Args:
        conflicts: paths where the prefix has another package's file; these are left out.
    """
    replaced = replaced_paths(conflicts)
    found: list[PythonSources] = []
    for cached in packages:
        gone = replaced.get(cached.contents.label, set())
        files = tuple(
            each for each in sources_among(cached.contents, python) if each[1] not in gone
        )
        if files:
            found.append(
                PythonSources(
                    key=cached.folder.parent.name,
                    name=cached.package.name,
                    folder=cached.folder,
                    files=files,
                )
            )
    return found


def sources_among(contents: PackageContents, python: PythonInfo) -> tuple[tuple[str, str], ...]:
    """Return (path in the package, path in the prefix) of the files to compile.

    Files with a prefix placeholder differ between prefixes, and are left out.
    """
    paths = [
        (file.path, file.placeholder)
        for file in contents.files
        if file.kind == "file" and file.path.endswith((".py", ".pyc"))
    ]
    compiled = {path for path, _ in paths if path.endswith(".pyc")}
    minor = python.version.replace(".", "")
    found: list[tuple[str, str]] = []
    for path, placeholder in paths:
        if placeholder or path in compiled or compiled_path(path, f"cpython-{minor}") in compiled:
            continue
        place = prefix_path(path, noarch_python=contents.noarch_python, python=python)
        if place.startswith(f"{python.site_packages}/"):
            found.append((path, place))
    return tuple(found)


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
            places = dict(each.files)
            for part, document in _parts(self.folder / interpreter.key / each.key, used=True):
                for number, (path, size) in enumerate(document["files"].items()):
                    if path in places:
                        compiled = f"{part}/{number}.pyc"
                        place = compiled_path(places.pop(path), interpreter.tag)
                        plan.append((compiled, f"{prefix}/{place}"))
                        sizes[compiled] = size
                for path in document["failed"]:
                    places.pop(path, None)
            if places:
                missing.append(replace(each, files=tuple(places.items())))
        links = set()
        for folder in {os.path.dirname(place) for _, place in plan}:  # noqa: PTH120
            try:
                os.mkdir(folder)  # noqa: PTH102  # called 10,000 times; the parent exists
            except FileExistsError:
                if os.path.islink(folder):  # noqa: PTH114  # a package's link may lead anywhere
                    links.add(folder)
        if links:
            plan = [each for each in plan if os.path.dirname(each[1]) not in links]  # noqa: PTH120
        with ThreadPoolExecutor(2) as pool:
            half = len(plan) // 2
            made = [*itertools.chain(*pool.map(_link_all, (plan[:half], plan[half:])))]
        samples: dict[str, tuple[str, int]] = {}
        for compiled in made:
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
        wanted = [
            rest
            for each in sources
            if _SHA256.fullmatch(each.key) and (rest := _rest_of(each, entries / each.key))
        ]
        if not wanted:
            return
        obey(cancelled)
        job = _Compilation(
            entries=entries,
            prefix=self._prefix(interpreter),
            work=self.folder / f".compiling-{secrets.token_hex(8)}",
            sandboxed=sandboxed,
            background=background,
            cancelled=cancelled,
            progress=progress,
            total=len(wanted),
        )
        entries.mkdir(exist_ok=True)
        job.work.mkdir()
        together = 1 if sandboxed and sandbox_filter() is None else _PACKAGES_PER_SANDBOX
        try:
            with ThreadPoolExecutor(processes) as pool:
                done = pool.map(job.attempt, _batches(wanted, processes, most=together))
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
            _link_interpreter(interpreter, work)
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


def _link_interpreter(interpreter: Interpreter, prefix: Path) -> None:
    """Hard-link what CPython needs to compile into the new folder `prefix`.

    Nothing is relocated: CPython finds its library relative to its program. Symbolic links come
    last, so that nothing is written through a link that leads out.
    """
    library = interpreter.python.site_packages.rpartition("/")[0]  # lib/python3.11
    files: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    for cached in interpreter.packages:
        if cached.contents.noarch_python:
            continue
        for file in cached.contents.files:
            if file.kind == "folder" or not _is_needed(file.path, library):
                continue
            if file.kind == "link":
                links.append((file.target, f"{prefix}/{file.path}"))
            else:
                files.append((f"{cached.folder}/{file.path}", f"{prefix}/{file.path}"))
    for folder in sorted({os.path.dirname(place) for _, place in (*files, *links)}):  # noqa: PTH120
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    _link_all(files)
    for target, place in links:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, place)  # noqa: PTH211


def _is_needed(path: str, library: str) -> bool:
    """Return True for programs, shared libraries and the needed part of the standard library."""
    folder, _, name = path.rpartition("/")
    if folder == "bin":
        return name.startswith("python")
    if folder == "lib":
        return ".so" in name or name.endswith(".dylib")
    if not path.startswith(f"{library}/"):
        return False
    return _LEFT_OUT.isdisjoint(path[len(library) + 1 :].split("/")[:-1])


def compiled_path(path: str, tag: str) -> str:
    """Return the path where Python expects the compiled form of a source."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}__pycache__/{name.removesuffix('.py')}.{tag}.pyc"


def _link_all(plan: Sequence[tuple[str, str]]) -> list[str]:
    """Link each (source, place) whose place is free; return the linked sources."""
    link = os.link
    made = []
    for source, place in plan:
        try:
            link(source, place)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno != errno.EMLINK:  # file systems limit an inode to about 65,000 links
                raise
            shutil.copyfile(source, place)
        made.append(source)
    return made


@dataclass(slots=True, kw_only=True)
class _Compilation:
    """Compilation of packages with one interpreter, and its progress."""

    entries: Path
    prefix: Path  # of the interpreter
    work: Path
    sandboxed: bool
    background: bool
    cancelled: Cancelled
    progress: Report
    total: int
    done: int = 0

    def attempt(self, batch: Sequence[PythonSources]) -> UnavailableError | None:
        """Create the entries of some packages; a failure of one does not affect the others."""
        try:
            return self.run(batch)
        except LeaseLostError:
            return None

    def run(self, batch: Sequence[PythonSources]) -> UnavailableError | None:
        obey(self.cancelled)
        prefix = Path("/interpreter") if self.sandboxed else self.prefix
        shown = {
            each.key: Path(f"/sources/{number}") if self.sandboxed else each.folder
            for number, each in enumerate(batch)
        }
        results = [_Result(self, each) for each in batch]

        def jobs(pipes: Sequence[int]) -> bytes:
            words: list[str] = []
            for pipe, each in zip(pipes, batch, strict=True):
                words += [str(pipe), os.fspath(shown[each.key])]
                words += [word for pair in each.files for word in pair]
                words.append("")
            return "\0".join([*words, ""]).encode(errors="surrogateescape")

        result = run_piped(
            [f"{prefix}/bin/python", "-I", "-S", "-B", "-W", "ignore", "-c", _COMPILE],
            cwd=prefix,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            stdin=jobs,
            outputs=results,
            time_limit=_TIME_LIMIT,
            cancelled=self.cancelled,
            limits=_LIMITS,
            background=self.background,
            sandbox=(
                Sandbox(
                    readable={
                        prefix: self.prefix,
                        **{shown[each.key]: each.folder for each in batch},
                    },
                    bare=True,
                )
                if self.sandboxed
                else None
            ),
        )
        failed = [each.sources.name for each in results if not each.whole]
        if not failed:
            return None
        return UnavailableError(
            f"The Python files of {', '.join(sorted(failed))} could not be compiled: "
            + (result.tail[-1] if result.tail else f"status {result.status}"),
            details={"status": result.status, "tail": result.tail},
        )

    def take(self, sources: PythonSources, folder: Path) -> None:
        """Move the compiled files of a package from `folder` to its entry."""
        entry = self.entries / sources.key
        with contextlib.suppress(OSError):  # the entry is removed concurrently
            entry.mkdir(exist_ok=True)
            folder.rename(entry / secrets.token_hex(8))
        self.done += 1
        self.progress(
            Progress(stage="compiling", done=self.done, total=self.total, current=sources.name)
        )


class _Result:
    """Receiver of one package's compiled files; refuses output beyond the expected sizes."""

    def __init__(self, job: _Compilation, sources: PythonSources) -> None:
        self.sources = sources
        self.whole = False
        self._job = job
        self._folder = job.work / sources.key
        self._folder.mkdir()
        self._number = 0  # index of the next source
        self._compiled: dict[str, int] = {}  # path -> bytes
        self._failed: list[str] = []
        self._pending = bytearray()

    def add(self, data: bytes) -> bool:
        self._pending += data
        while len(self._pending) >= 4:
            if self._number >= len(self.sources.files):
                return False
            size = int.from_bytes(self._pending[:4], "big")
            path = self.sources.files[self._number][0]
            if size and size > self._most(path):
                return False
            if len(self._pending) < 4 + size:
                break
            if size:
                with open(f"{self._folder}/{len(self._compiled)}.pyc", "xb") as file:  # noqa: PTH123
                    file.write(self._pending[4 : 4 + size])
                self._compiled[path] = size
            else:
                self._failed.append(path)
            del self._pending[: 4 + size]
            self._number += 1
        return True

    def _most(self, path: str) -> int:
        return _ALLOWANCE + _GROWTH * os.lstat(f"{self.sources.folder}/{path}").st_size

    def end(self) -> None:
        if self._pending or self._number < len(self.sources.files):
            return
        document = {"files": self._compiled, "failed": self._failed}
        (self._folder / CONTENTS).write_text(json.dumps(document))
        self._job.take(self.sources, self._folder)
        self.whole = True


def _batches(
    sources: Sequence[PythonSources], number: int, *, most: int
) -> list[list[PythonSources]]:
    """Split `sources` into parts of similar numbers of files, at most `most` packages each."""
    parts = max(min(number, len(sources)), -(-len(sources) // most))
    batches: list[list[PythonSources]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for each in sorted(sources, key=lambda each: len(each.files), reverse=True):
        free = (place for place in range(parts) if len(batches[place]) < most)
        place = min(free, key=sizes.__getitem__)
        batches[place].append(each)
        sizes[place] += len(each.files)
    return batches
