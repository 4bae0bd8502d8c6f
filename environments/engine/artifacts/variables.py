"""Environment variables that packages set at activation (`etc/conda/env_vars.d`)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from environments.domain.json_text import parse_json
from environments.engine.packages.cache import CachedPackage

_FILE = re.compile(r"etc/conda/env_vars\.d/[^/]+\.json")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_BYTES = 1 << 20  # of a file of variables


def variables_of(packages: Sequence[CachedPackage]) -> dict[str, str]:
    """Return the variables of `packages`, given in link order.

    As in conda, files are read in the order of their names, and later ones override. Files that are
    not JSON objects, and names that a shell does not accept, are ignored.
    """
    files = {
        file.path: package.folder / file.path
        for package in packages
        for file in package.contents.files
        if file.kind == "file" and _FILE.fullmatch(file.path) and file.size < _MAX_BYTES
    }
    found: dict[str, str] = {}
    for path in sorted(files):
        try:
            content = parse_json(files[path].read_bytes())
        except ValueError:
            continue  # conda ignores it as well
        if isinstance(content, dict):
            found |= {
                name: str(value)
                for name, value in content.items()
                if _NAME.fullmatch(name) and "\0" not in str(value)
            }
    return found


def exports(variables: Mapping[str, str]) -> str:
    """Return lines of a shell script that set `variables`, with their values quoted."""
    return "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())
    )
