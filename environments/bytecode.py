"""Compiled Python files of a prefix: linked where they are known, made where they are few.

Compiling a scientific stack takes longer than everything else in a cold build. So a build waits
only for a small rest; the larger one is compiled when the build is READY, and linked into the
prefix then. Both happen once for each package, whatever number of environments has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
from django.conf import settings

from environments import folders
from environments.domain.errors import SandboxUnavailableError, UnavailableError
from environments.domain.linking import PythonInfo
from environments.engine.bytecode import Interpreter, PythonSources, python_sources
from environments.engine.linking import python_of
from environments.engine.processes import sandbox_problem
from environments.engine.pypi_install import CachedWheel
from environments.isolation import sandboxed
from environments.models import Build
from environments.tools import tools

if TYPE_CHECKING:
    from environments.leases import Run

logger = structlog.get_logger(__name__)
#: Files that a build waits for, about half a second of work.
FEW = 300


def prepare(run: Run, sources: Sequence[PythonSources], python: PythonInfo) -> None:
    """Link what is compiled into the hidden prefix; compile the rest if it is small.

    An environment works without compiled files too, only slower: what keeps them from being made
    is said in the log.
    """
    interpreter = Interpreter.of(run.packages, python)
    if not settings.LINK_BYTECODE or interpreter is None:
        return
    cache = run.tools.bytecode
    linked = cache.link(sources, interpreter=interpreter, prefix=run.hidden_prefix)
    rest = sum(len(each.files) for each in linked.missing)
    if rest and sandboxed() and (problem := sandbox_problem()):
        run.log(f"{rest} Python files are not compiled: this worker has no sandbox. {problem}")
    elif 0 < rest <= FEW:
        try:
            cache.compile(
                linked.missing,
                interpreter=interpreter,
                cancelled=run.cancelled,
                sandboxed=sandboxed(),
            )
        except (SandboxUnavailableError, UnavailableError) as error:
            run.log(f"Not all Python files are compiled. {error.message}")
        cache.link(linked.missing, interpreter=interpreter, prefix=run.hidden_prefix)
    elif rest:
        run.compile_later = True
        run.log(f"{rest} Python files are compiled after the build")


def complete(build_id: int) -> None:
    """Compile and link what is missing in a published prefix. Done twice, it does nothing."""
    build = Build.objects.select_related("lock", "prefix", "environment__namespace").get(
        pk=build_id
    )
    prefix = folders.prefix_path(build)
    part = build.lock.value().on(build.platform) if build.lock else None
    python = python_of(part.conda, part.platform) if part else None
    if part is None or python is None or prefix is None or not prefix.is_dir():
        return
    engine = tools()
    packages = engine.packages.ensure(part.conda)
    interpreter = Interpreter.of(packages, python)
    if interpreter is None:
        return
    sources = python_sources(packages, python)
    sources += _in_wheels(engine.wheels.ensure(part.pypi), python)
    missing = engine.bytecode.link(sources, interpreter=interpreter, prefix=prefix).missing
    try:
        engine.bytecode.compile(missing, interpreter=interpreter, sandboxed=sandboxed())
    except (SandboxUnavailableError, UnavailableError) as error:
        logger.warning("not compiled", build=build.pk, error=error.message)
    linked = engine.bytecode.link(missing, interpreter=interpreter, prefix=prefix)
    folders.measure(build)
    logger.info("compiled", build=build.pk, files=linked.files)


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
