"""Python files of packages that have no compiled form, and where that form belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environments.domain.linking import (
    PackageContents,
    PathConflict,
    PythonInfo,
    prefix_path,
    replaced_paths,
)
from environments.engine.packages.cache import CachedPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonSources:
    """The Python files of one package that have no compiled form in it."""

    key: str  # digest of the package
    name: str
    folder: Path  # base of the paths in the package
    files: tuple[tuple[str, str], ...]  # (path in the package, path in the prefix)


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
        location = prefix_path(path, noarch_python=contents.noarch_python, python=python)
        if location.startswith(f"{python.site_packages}/"):
            found.append((path, location))
    return tuple(found)


def compiled_path(path: str, tag: str) -> str:
    """Return the path where Python expects the compiled form of a source."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
