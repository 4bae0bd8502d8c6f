"""How does a read-only environment start fast: who compiles its Python files, and when?

What a package's files compile to depends on nothing but the package and the minor version of
Python: Python corrects the path that a compiled file records. So each package is compiled once,
and every prefix gets hard links to the results.

    <folder>/<digest>-<tag>/0.pyc, 1.pyc, ...
    <folder>/<digest>-<tag>/contents.json      which is of which file; its time is the last use

The files say "unchecked hash": they hold in an archive or image whose times are all zero, and
Python compares nothing at import.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from environments.domain.errors import UnavailableError
from environments.domain.linking import PackageContents, PythonInfo, prefix_path
from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.domain.records import CondaPackage
from environments.engine.package_cache import CachedPackage
from environments.engine.processes import Sandbox, run_tool

CONTENTS = "contents.json"
_TIME_LIMIT = timedelta(minutes=30)

#: Runs in the environment's own Python, without its site-packages. A job is one package; a file
#: that does not compile is left out: it could not be imported either.
_COMPILE = """
import json, sys
from importlib import _bootstrap_external, util
for job in json.load(open(sys.argv[1])):
    done = []
    for path, place in job["files"]:
        try:
            with open(job["source"] + "/" + path, "rb") as file:
                source = file.read()
            code = compile(source, place, "exec", dont_inherit=True, optimize=0)
            data = _bootstrap_external._code_to_hash_pyc(code, util.source_hash(source), False)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            continue
        with open(job["target"] + "/" + str(len(done)) + ".pyc", "xb") as file:
            file.write(data)
        done.append(path)
    with open(job["target"] + "/contents.json", "w") as file:
        json.dump({"version": 1, "files": done}, file)
    print(job["key"], flush=True)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonSources:
    """The Python files of one package that bring no compiled form."""

    key: str  # digest of the package
    name: str
    folder: Path  # what `files` are relative to
    files: tuple[tuple[str, str], ...]  # (path in the package, path in the prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedBytecode:
    files: int
    missing: tuple[PythonSources, ...]  # packages that nobody compiled yet


def bytecode_tag(python: CondaPackage) -> str | None:
    """What names the compiled files of this Python; None where it is no CPython."""
    if "pypy" in python.build or "graalpy" in python.build:
        return None
    return "cpython-" + "".join(python.version.split(".")[:2])


def python_sources(packages: Sequence[CachedPackage], python: PythonInfo) -> list[PythonSources]:
    """What there is to compile in the site-packages of conda packages."""
    found: list[PythonSources] = []
    for cached in packages:
        files = sources_among(cached.contents, python)
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
    """(path in the package, path in the prefix) of the files to compile.

    Files in which the prefix is replaced differ from one prefix to the next, and are left out.
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
        if placeholder or path in compiled or _compiled_path(path, f"cpython-{minor}") in compiled:
            continue
        place = prefix_path(path, noarch_python=contents.noarch_python, python=python)
        if place.startswith(f"{python.site_packages}/"):
            found.append((path, place))
    return tuple(found)


class BytecodeCache:
    """The compiled files of packages, below one folder; any number of processes may use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def link(self, sources: Sequence[PythonSources], *, tag: str, prefix: Path) -> LinkedBytecode:
        """Link what is compiled into `prefix`, beside the sources; files that are there stay.

        It may be done again when more is compiled, in a prefix that is in use too.
        """
        missing: list[PythonSources] = []
        plan: list[tuple[str, str]] = []
        for each in sources:
            entry = self.folder / f"{each.key}-{tag}"
            try:
                compiled = json.loads((entry / CONTENTS).read_bytes())["files"]
                os.utime(entry / CONTENTS)
            except (FileNotFoundError, ValueError, KeyError):
                missing.append(each)
                continue
            places = dict(each.files)
            plan += (
                (f"{entry}/{number}.pyc", f"{prefix}/{_compiled_path(places[path], tag)}")
                for number, path in enumerate(compiled)
                if path in places
            )
        for folder in {os.path.dirname(place) for _, place in plan}:  # noqa: PTH120
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102  # 10,000 times, and its parent is there
        with ThreadPoolExecutor(2) as pool:
            half = len(plan) // 2
            list(pool.map(_link_all, (plan[:half], plan[half:])))
        return LinkedBytecode(files=len(plan), missing=tuple(missing))

    def compile(
        self,
        sources: Sequence[PythonSources],
        *,
        tag: str,
        prefix: Path,
        cancelled: Cancelled = never,
        progress: Report = ignore,
        processes: int = 2,
    ) -> None:
        """Compile `sources` with the Python of `prefix`, in a sandbox where there is one.

        Raises:
            LeaseLostError: `cancelled` said so; what was finished stays.
        """
        wanted = [each for each in sources if not (self.folder / f"{each.key}-{tag}").exists()]
        if not wanted:
            return
        work = self.folder / f".compiling-{secrets.token_hex(8)}"
        work.mkdir(parents=True)
        counter = _Counter({each.key: each for each in wanted}, work, self.folder, tag, progress)
        try:
            batches = _batches(wanted, processes)
            with ThreadPoolExecutor(processes) as pool:
                running = [
                    pool.submit(_run, batch, work, number, tag, prefix, cancelled, counter.take)
                    for number, batch in enumerate(batches)
                ]
                for each in running:
                    each.result()
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _compiled_path(path: str, tag: str) -> str:
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}__pycache__/{name.removesuffix('.py')}.{tag}.pyc"


def _link_all(plan: Sequence[tuple[str, str]]) -> None:
    link = os.link
    for source, place in plan:
        try:
            link(source, place)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno != errno.EMLINK:  # a file system counts links up to some 65,000
                raise
            shutil.copyfile(source, place)


def _batches(sources: Sequence[PythonSources], number: int) -> list[list[PythonSources]]:
    """`sources` in `number` parts of about as many files, the largest packages first."""
    batches: list[list[PythonSources]] = [[] for _ in range(number)]
    for each in sorted(sources, key=lambda each: len(each.files), reverse=True):
        min(batches, key=lambda batch: sum(len(one.files) for one in batch)).append(each)
    return [batch for batch in batches if batch]


@dataclass(slots=True)
class _Counter:
    """Makes an entry of each package that is compiled, and tells the progress."""

    wanted: dict[str, PythonSources]
    work: Path
    folder: Path
    tag: str
    progress: Report
    done: int = 0

    def take(self, key: str) -> None:
        if key not in self.wanted:
            return  # a warning of the compiler
        with contextlib.suppress(OSError):  # another process compiled it too
            (self.work / key).rename(self.folder / f"{key}-{self.tag}")
        self.done += 1
        self.progress(
            Progress(
                stage="compiling",
                done=self.done,
                total=len(self.wanted),
                current=self.wanted[key].name,
            )
        )


def _run(
    batch: Sequence[PythonSources],
    work: Path,
    number: int,
    tag: str,
    prefix: Path,
    cancelled: Cancelled,
    on_line: Callable[[str], None],
) -> None:
    obey(cancelled)
    jobs = work / f"{number}.json"
    for each in batch:
        (work / each.key).mkdir()
    jobs.write_text(
        json.dumps(
            [
                {
                    "key": each.key,
                    "source": str(each.folder),
                    "target": str(work / each.key),
                    "files": each.files,
                }
                for each in batch
            ]
        )
    )
    python = prefix / "bin" / "python"
    result = run_tool(
        [str(python), "-I", "-S", "-B", "-W", "ignore", "-c", _COMPILE, str(jobs)],
        cwd=work,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        time_limit=_TIME_LIMIT,
        cancelled=cancelled,
        on_line=on_line,
        sandbox=Sandbox(
            readable={prefix: prefix, **{each.folder: each.folder for each in batch}},
            writable={work: work},
        ),
    )
    if not result.succeeded:
        raise UnavailableError(
            "The Python files could not be compiled: " + (result.tail[-1] if result.tail else ""),
            details={"status": result.status, "tail": result.tail},
        )
