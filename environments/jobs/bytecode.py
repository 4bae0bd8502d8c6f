"""Compiled Python files of a prefix: linked from the cache, or compiled if they are few.

Compiling a scientific stack takes longer than everything else in a cold build. So a build waits
only for a small rest, and for the modules that its smoke tests import: the tests would compile
these in memory otherwise, more slowly. The rest is compiled once the build is READY, with the
lowest priority, and linked into the prefix then, beginning with what the requested packages
import. Each package is compiled once, in however many environments it is.

What a smoke test itself compiles is never kept. Code of any package runs in the test, and so does
the command of the submitter of the build: either could write a file that says to be the compiled
form of another package. The test only names the modules that it had to compile; they are compiled
again, each package alone.

Files in which the prefix is replaced are compiled for each prefix anew, meanwhile the others are
linked (`engine/prefix_bytecode.py`): CPython has one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from django.conf import settings
from django.db.models import F

from condastore.errors import SandboxUnavailableError, UnavailableError
from environments.domain.linking import PythonInfo
from environments.engine.prefix.import_order import at_places, imported_by, top_level_modules
from environments.engine.prefix.interpreter import Interpreter, dependency_name
from environments.engine.prefix.linking import python_of
from environments.engine.prefix.python_sources import PythonSources, python_sources
from environments.engine.prefix.relocated_bytecode import compile_relocated, relocated_sources
from environments.engine.prefix.sizes import PrefixSize
from environments.engine.pypi.install import CachedWheel
from environments.engine.system.sandbox import sandbox_problem
from environments.models import Build, LockConflicts, Prefix
from environments.services import folders
from environments.services.engine_context import get_engine, source_of
from environments.services.isolation import sandboxed
from environments.services.solving import credentials_for, source_urls

if TYPE_CHECKING:
    from environments.jobs.build_run import LinkRun

logger = structlog.get_logger(__name__)
#: Files that are compiled before a build becomes READY; about half a second of work.
MAX_FILES_IN_BUILD = 300


def prepare(run: LinkRun[Any], sources: Sequence[PythonSources], python: PythonInfo) -> None:
    """Link compiled files into the hidden prefix; compile the rest if it is small.

    An environment works without compiled files too, only slower: what keeps them from being made
    is said in the log.
    """
    interpreter = Interpreter.from_packages(run.packages, python)
    if not settings.LINK_BYTECODE or interpreter is None:
        return
    conflicts = run.paths.conflicts if run.paths else ()
    relocated = relocated_sources(run.packages, python, conflicts=conflicts)
    if _count(relocated) > MAX_FILES_IN_BUILD:
        run.log(f"{_count(relocated)} Python files have the prefix in them; they are not compiled.")
        relocated = []
    problem = sandbox_problem() if relocated and sandboxed() else ""
    with ThreadPoolExecutor(1) as pool:
        own = None
        if relocated and not problem:
            own = pool.submit(
                compile_relocated,
                run.tools.bytecode,
                relocated,
                interpreter=interpreter,
                prefix=run.hidden_prefix,
                cancelled=run.cancelled,
                sandboxed=sandboxed(),
            )
        linked = run.tools.bytecode.link(sources, interpreter=interpreter, prefix=run.hidden_prefix)
    run.size.add_compiled(linked)
    if own is not None:
        try:
            run.size.add_own(own.result())
        except (SandboxUnavailableError, UnavailableError) as error:
            run.log(f"Not all Python files are compiled. {error.message}")
    rest = _count(linked.missing)
    if rest and sandboxed() and (problem := sandbox_problem()):
        run.log(f"{rest} Python files are not compiled: this worker has no sandbox. {problem}")
        return
    run.uncompiled = Uncompiled(interpreter, linked.missing)
    if 0 < rest <= MAX_FILES_IN_BUILD:
        run.uncompiled.compile(run, linked.missing)
    elif rest:
        run.compile_later = True


@dataclass(slots=True)
class Uncompiled:
    """The Python files of a hidden prefix that are not compiled yet."""

    interpreter: Interpreter
    sources: Sequence[PythonSources]

    def compile_imported(self, run: LinkRun[Any], modules: Sequence[str]) -> None:
        """Compile what importing `modules` loads."""
        if self.sources:
            self.compile(run, imported_by(modules, self.sources, self.interpreter.python))

    def compile_places(self, run: LinkRun[Any], places: Collection[str]) -> None:
        """Compile the files at these paths in the prefix, where they are few."""
        sources = at_places(places, self.sources)
        if _count(sources) <= MAX_FILES_IN_BUILD:
            self.compile(run, sources)

    def compile(self, run: LinkRun[Any], sources: Sequence[PythonSources]) -> None:
        """Compile `sources` and link them into the hidden prefix."""
        if not sources:
            return
        cache, interpreter = run.tools.bytecode, self.interpreter
        try:
            cache.compile(
                sources, interpreter=interpreter, cancelled=run.cancelled, sandboxed=sandboxed()
            )
        except (SandboxUnavailableError, UnavailableError) as error:
            run.log(f"Not all Python files are compiled. {error.message}")
        linked = cache.link(sources, interpreter=interpreter, prefix=run.hidden_prefix)
        run.size.add_compiled(linked)


def complete(build_id: int) -> None:
    """Compile and link missing files of a published prefix. Idempotent.

    A build that is archived, deleted or recalled meanwhile is left as it is.
    """
    try:
        _complete(build_id)
    except FileNotFoundError as error:
        location = error.filename2 or error.filename
        if location is None or not Path(location).is_relative_to(folders.data() / "prefixes"):
            raise
        logger.info("not compiled, as the folder is gone", build=build_id)


def _complete(build_id: int) -> None:
    build = Build.objects.select_related(
        "lock", "prefix", "specification", "environment__namespace"
    ).get(pk=build_id)
    prefix = folders.prefix_path(build)
    part = build.lock.value().on(build.platform) if build.lock else None
    python = python_of(part.conda, part.platform) if part else None
    if part is None or python is None or build.prefix is None or prefix is None:
        return
    if not prefix.is_dir():
        return
    engine = get_engine()
    specification = build.specification.value()
    known = credentials_for(build.environment.namespace, source_urls(specification))
    packages = engine.packages.ensure(part.conda, credentials=source_of(known))
    interpreter = Interpreter.from_packages(packages, python)
    if interpreter is None:
        return
    conflicts = LockConflicts.of(build.lock_id or 0, build.platform)
    sources = python_sources(packages, python, conflicts=conflicts)
    sources += _in_wheels(engine.wheels.ensure(part.pypi), python)
    linked = engine.bytecode.link(sources, interpreter=interpreter, prefix=prefix)
    missing, added = linked.missing, PrefixSize()
    added.add_compiled(linked)
    requested = {
        dependency_name(text)
        for texts in (specification.dependencies, specification.pip)
        for text in texts.get(part.platform, ())
    }
    roots = [
        *specification.smoke_tests.imports,
        *top_level_modules(requested, sources, python),
    ]
    for batch in (imported_by(roots, missing, python), missing):
        try:
            engine.bytecode.compile(
                batch, interpreter=interpreter, sandboxed=sandboxed(), background=True
            )
        except (SandboxUnavailableError, UnavailableError) as error:
            logger.warning("not compiled", build=build.pk, error=error.message)
        linked = engine.bytecode.link(batch, interpreter=interpreter, prefix=prefix)
        added.add_compiled(linked)
    Prefix.objects.filter(pk=build.prefix.pk).update(
        apparent_size=F("apparent_size") + added.apparent,
        unique_size=F("unique_size") + added.unique,
        share_size=F("share_size") + added.share,
    )
    logger.info("compiled", build=build.pk, files=linked.files)


def _count(sources: Sequence[PythonSources]) -> int:
    return sum(len(each.files) for each in sources)


def _in_wheels(wheels: Sequence[CachedWheel], python: PythonInfo) -> list[PythonSources]:
    return [
        PythonSources(
            key=wheel.folder.parent.name,
            name=wheel.package.name,
            folder=wheel.folder,
            files=tuple(
                (entry.path, f"{python.site_packages}/{entry.path}")
                for entry in wheel.entries
                if entry.path.endswith(".py") and ".data/" not in entry.path
            ),
        )
        for wheel in wheels
    ]
