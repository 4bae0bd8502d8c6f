"""Variables that packages ask for while their environment is active (`etc/conda/env_vars.d`)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from environments.domain.json_text import parse_json
from environments.engine.packages.cache import CachedPackage

_FILE = re.compile(r"etc/conda/env_vars\.d/[^/]+\.json")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MOST = 1 << 20  # bytes of such a file


def variables_of(packages: Sequence[CachedPackage]) -> dict[str, str]:
    """The variables of `packages`, which are in the order in which they are linked.

    As conda reads them: file by file in the order of their names, the later one holds. What is no
    JSON object, and names that a shell does not take, are left out.
    """
    files = {
        file.path: package.folder / file.path
        for package in packages
        for file in package.contents.files
        if file.kind == "file" and _FILE.fullmatch(file.path) and file.size < _MOST
    }
    found: dict[str, str] = {}
    for path in sorted(files):
        try:
            content = parse_json(files[path].read_bytes())
        except ValueError:
            continue  # conda too goes on without it
        if isinstance(content, dict):
            found |= {
                name: str(value)
                for name, value in content.items()
                if _NAME.fullmatch(name) and "\0" not in str(value)
            }
    return found


def exports(variables: Mapping[str, str]) -> str:
    """Lines of a shell script that set `variables`, whatever their values hold."""
    return "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())
    )
