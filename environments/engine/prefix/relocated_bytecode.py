"""Compiled forms of Python files in which a prefix is replaced, such as `_sysconfigdata`.

The text of these files differs from one prefix to the next, so what is compiled of them belongs to
one prefix and never enters the shared cache. It is made in the same way otherwise: each package by
a process of its own, in the sandbox of `bytecode`, from copies of the texts in the hidden prefix. A
compiled form that the package brings was made of another text, and is replaced.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from environments.domain.linking import PathConflict, PythonInfo, prefix_path, replaced_paths
from environments.domain.progress import Cancelled, never
from environments.engine.packages.cache import CachedPackage
from environments.engine.prefix.bytecode import (
    BytecodeCache,
    Interpreter,
    PythonSources,
    compiled_path,
)


def relocated_sources(
    packages: Sequence[CachedPackage],
    python: PythonInfo,
    *,
    conflicts: Sequence[PathConflict] = (),
) -> list[PythonSources]:
    """Return the Python files of conda packages that have the prefix in their text.

    Args:
        conflicts: where the prefix has another package's file, nothing is compiled of this one.
    """
    library = python.site_packages.rpartition("/")[0]  # lib/python3.11
    replaced = replaced_paths(conflicts)
    found: list[PythonSources] = []
    for cached in packages:
        gone = replaced.get(cached.contents.label, set())
        files = []
        for file in cached.contents.files:
            if file.placeholder and file.kind == "file" and file.path.endswith(".py"):
                place = prefix_path(
                    file.path, noarch_python=cached.contents.noarch_python, python=python
                )
                if place.startswith(f"{library}/") and place not in gone:
                    files.append((place, place))
        if files:
            found.append(
                PythonSources(
                    key=cached.folder.parent.name,
                    name=cached.package.name,
                    folder=cached.folder,
                    files=tuple(files),
                )
            )
    return found


def compile_relocated(
    cache: BytecodeCache,
    sources: Sequence[PythonSources],
    *,
    interpreter: Interpreter,
    prefix: Path,
    cancelled: Cancelled = never,
    sandboxed: bool = True,
) -> int:
    """Compile `sources` as they stand in a hidden prefix; return the bytes that are written.

    Raises:
        SandboxUnavailableError, UnavailableError, LeaseLostError: as `BytecodeCache.compile`.
    """
    work = cache.folder / f".compiling-{secrets.token_hex(8)}"
    own = cache.beside(work / "compiled")
    try:
        own.folder.mkdir(parents=True)
        copies = [
            _copied(each, prefix, work / "sources" / str(number))
            for number, each in enumerate(sources)
        ]
        own.compile(
            copies, interpreter=interpreter, cancelled=cancelled, processes=1, sandboxed=sandboxed
        )
        for place in (place for each in copies for _, place in each.files):
            _remove_stale(prefix / compiled_path(place, interpreter.tag), prefix)
        linked = own.link(copies, interpreter=interpreter, prefix=prefix)
        return sum(linked.samples.values())
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copied(sources: PythonSources, prefix: Path, folder: Path) -> PythonSources:
    """Copy the texts out of a prefix: its other files are none of this package's business."""
    files = []
    for path, place in sources.files:
        source, copy = prefix / place, folder / path
        # A folder on the way, or the file itself, may be a link of a package that leads out.
        if source.parent.resolve() != prefix.resolve() / Path(place).parent:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as text:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with copy.open("xb") as out:
                        shutil.copyfileobj(text, out)
                    files.append((path, place))
    folder.mkdir(parents=True, exist_ok=True)
    return replace(sources, folder=folder, files=tuple(files))


def _remove_stale(compiled: Path, prefix: Path) -> None:
    """Remove the compiled form that came with the package; nothing outside of the prefix."""
    if compiled.parent.resolve().is_relative_to(prefix.resolve()):
        compiled.unlink(missing_ok=True)
