"""Compilation of packages with one interpreter, in a sandbox, with bounded results."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from condastore.errors import LeaseLostError, UnavailableError
from environments.domain.progress import Cancelled, Progress, Report, obey
from environments.engine.prefix.python_sources import PythonSources
from environments.engine.system.processes import run_piped
from environments.engine.system.sandbox import Sandbox

CONTENTS = "contents.json"
_TIME_LIMIT = timedelta(minutes=30)  # of one sandbox

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
#: Maximum size of a compiled file: a multiple of its source's size, plus a constant in bytes.
_GROWTH, _ALLOWANCE = 64, 1 << 20


@dataclass(slots=True, kw_only=True)
class Compilation:
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

    def __init__(self, job: Compilation, sources: PythonSources) -> None:
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


def batches(
    sources: Sequence[PythonSources], number: int, *, most: int
) -> list[list[PythonSources]]:
    """Split `sources` into parts of similar numbers of files, at most `most` packages each."""
    parts = max(min(number, len(sources)), -(-len(sources) // most))
    batches: list[list[PythonSources]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for each in sorted(sources, key=lambda each: len(each.files), reverse=True):
        free = (location for location in range(parts) if len(batches[location]) < most)
        location = min(free, key=sizes.__getitem__)
        batches[location].append(each)
        sizes[location] += len(each.files)
    return batches
