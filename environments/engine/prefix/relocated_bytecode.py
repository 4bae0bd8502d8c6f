"""Compiled forms of Python files with a prefix placeholder, such as `_sysconfigdata`.

The text of these files differs between prefixes, so their compiled form belongs to one prefix and
never enters the shared cache. It is created in the same way otherwise: each package by its own
process, in the sandbox of `bytecode`, from copies of the texts in the unpublished prefix. A
compiled form in the package was made from a different text, and is replaced.
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
from environments.engine.prefix.bytecode import BytecodeCache
from environments.engine.prefix.interpreter import Interpreter
from environments.engine.prefix.python_sources import PythonSources, compiled_path


def relocated_sources(
    packages: Sequence[CachedPackage],
    python: PythonInfo,
    *,
    conflicts: Sequence[PathConflict] = (),
) -> list[PythonSources]:
    """Return the Python files of conda packages that have the prefix in their text.

    Args:
        conflicts: paths where the prefix has another package's file; these are left out.
    """
    library = python.site_packages.rpartition("/")[0]  # lib/python3.11
    replaced = replaced_paths(conflicts)
    found: list[PythonSources] = []
    for cached in packages:
        gone = replaced.get(cached.contents.label, set())
        files = []
        for file in cached.contents.files:
            if file.placeholder and file.kind == "file" and file.path.endswith(".py"):
                location = prefix_path(
                    file.path, noarch_python=cached.contents.noarch_python, python=python
                )
                if location.startswith(f"{library}/") and location not in gone:
                    files.append((location, location))
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
    """Compile `sources` in an unpublished prefix; return the number of bytes written.

    Raises:
        SandboxUnavailableError, UnavailableError, LeaseLostError: see `BytecodeCache.compile`.
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
        for location in (location for each in copies for _, location in each.files):
            _remove_stale(prefix / compiled_path(location, interpreter.tag), prefix)
        linked = own.link(copies, interpreter=interpreter, prefix=prefix)
        return sum(linked.samples.values())
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copied(sources: PythonSources, prefix: Path, folder: Path) -> PythonSources:
    """Copy the texts out of a prefix, so that the process cannot see its other files."""
    files = []
    for path, location in sources.files:
        source, copy = prefix / location, folder / path
        # A parent folder, or the file itself, may be a package's link that leads out.
        if source.parent.resolve() != prefix.resolve() / Path(location).parent:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as text:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with copy.open("xb") as out:
                        shutil.copyfileobj(text, out)
                    files.append((path, location))
    folder.mkdir(parents=True, exist_ok=True)
    return replace(sources, folder=folder, files=tuple(files))


def _remove_stale(compiled: Path, prefix: Path) -> None:
    """Remove the compiled form that came with the package, unless it is outside the prefix."""
    if compiled.parent.resolve().is_relative_to(prefix.resolve()):
        compiled.unlink(missing_ok=True)
