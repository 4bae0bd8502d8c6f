"""Selection of the Python files to compile first: those that the first imports load."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from environments.domain.linking import PythonInfo
from environments.domain.python_imports import import_closure
from environments.engine.prefix.python_sources import PythonSources

#: Bytes of a source that are searched for imports, and of all sources together.
_LARGEST_SOURCE, _LARGEST_TOTAL = 2 << 20, 128 << 20
_MAX_MODULES = 5_000  # modules to select


def imported_by(
    roots: Iterable[str], sources: Sequence[PythonSources], python: PythonInfo
) -> list[PythonSources]:
    """Return the part of `sources` that importing `roots` loads, from static analysis.

    Imports by extension modules are not found.

    Args:
        roots: dotted names of modules.
    """
    locations = {}
    modules = {}
    start = f"{python.site_packages}/"
    for each in sources:
        for path, location in each.files:
            if location.startswith(start):
                modules[_module_name(location[len(start) :])] = location
                locations[location] = f"{each.folder}/{path}"
    left = _LARGEST_TOTAL

    def read(module: str) -> bytes:
        nonlocal left
        try:
            descriptor = os.open(locations[modules[module]], os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                source = file.read(min(_LARGEST_SOURCE, left))
        except OSError:
            return b""
        left -= len(source)
        return source

    found = import_closure(roots, modules, read, most=_MAX_MODULES)
    return at_places({modules[name] for name in found}, sources)


def at_places(places: Collection[str], sources: Sequence[PythonSources]) -> list[PythonSources]:
    """Return the part of `sources` whose files have one of these paths in the prefix."""
    selected = (
        replace(each, files=tuple(file for file in each.files if file[1] in places))
        for each in sources
    )
    return [each for each in selected if each.files]


def top_level_modules(
    packages: Collection[str], sources: Sequence[PythonSources], python: PythonInfo
) -> list[str]:
    """Return the names of the modules that these packages have in site-packages."""
    start = f"{python.site_packages}/"
    found: dict[str, None] = {}
    for each in sources:
        if each.name in packages:
            for _, location in each.files:
                first, _, rest = location.removeprefix(start).partition("/")
                if not rest or rest == "__init__.py":
                    found[first.removesuffix(".py")] = None
    return list(found)


def _module_name(path: str) -> str:
    """Return the dotted name of a file below site-packages."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
