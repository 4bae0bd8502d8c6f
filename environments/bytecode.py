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
from environments.domain.linking import PythonInfo
from environments.engine.bytecode import PythonSources, bytecode_tag, python_sources
from environments.engine.linking import python_of
from environments.engine.pypi_install import CachedWheel
from environments.models import Build
from environments.tools import tools

if TYPE_CHECKING:
    from environments.leases import Run

logger = structlog.get_logger(__name__)
#: Files that a build waits for, about half a second of work.
FEW = 300


def prepare(run: Run, sources: Sequence[PythonSources]) -> None:
    """Link what is compiled into the hidden prefix; compile the rest if it is small."""
    tag = _tag(run.build)
    if not settings.LINK_BYTECODE or tag is None:
        return
    linked = run.tools.bytecode.link(sources, tag=tag, prefix=run.hidden_prefix)
    rest = sum(len(each.files) for each in linked.missing)
    if 0 < rest <= FEW:
        run.tools.bytecode.compile(
            linked.missing, tag=tag, prefix=run.hidden_prefix, cancelled=run.cancelled
        )
        run.tools.bytecode.link(linked.missing, tag=tag, prefix=run.hidden_prefix)
    elif rest:
        run.compile_later = True
        run.log(f"{rest} Python files are compiled after the build")


def complete(build_id: int) -> None:
    """Compile and link what is missing in a published prefix. Done twice, it does nothing."""
    build = Build.objects.select_related("lock", "prefix", "environment__namespace").get(
        pk=build_id
    )
    prefix, tag = folders.prefix_path(build), _tag(build)
    part = build.lock.value().on(build.platform) if build.lock else None
    if part is None or tag is None or prefix is None or not prefix.is_dir():
        return
    python = python_of(part.conda, part.platform)
    assert python is not None, "it has a tag"
    engine = tools()
    sources = python_sources(engine.packages.ensure(part.conda), python)
    sources += _in_wheels(engine.wheels.ensure(part.pypi), python)
    missing = engine.bytecode.link(sources, tag=tag, prefix=prefix).missing
    engine.bytecode.compile(missing, tag=tag, prefix=prefix)
    linked = engine.bytecode.link(missing, tag=tag, prefix=prefix)
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


def _tag(build: Build) -> str | None:
    assert build.lock is not None
    part = build.lock.value().on(build.platform)
    python = next((p for p in part.conda if p.name == "python"), None) if part else None
    return bytecode_tag(python) if python else None
