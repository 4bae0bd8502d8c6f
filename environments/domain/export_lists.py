"""Lists that `conda list --export` writes: one `NAME=VERSION=BUILD` per line, without channels."""

from __future__ import annotations

import re

from environments.domain.yaml_text import Node

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)=(?P<version>[^=\s#]+)=(?P<build>[^=\s#]+)"
)
_PLATFORM = re.compile(r"#\s*platform:\s*(\S+)")
#: Build string of packages that pip installed.
_PIP_BUILD = re.compile(r"pypi_\d+|<pip>")


def is_export_list(text: str) -> bool:
    """Whether every line of `text` is empty, a comment or `NAME=VERSION=BUILD`, and one is that."""
    found = False
    for line in text.splitlines():
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            if _LINE.fullmatch(stripped) is None:
                return False
            found = True
    return found


def export_list_root(text: str) -> Node:
    """Return the environment file that requires the packages of an export list.

    Packages of pip, whose build is `pypi_0`, become PyPI requirements.

    Args:
        text: an export list (`is_export_list`).
    """
    conda: list[Node] = []
    pip: list[Node] = []
    platforms: list[Node] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if platform := _PLATFORM.fullmatch(stripped):
            platforms = [_text(platform[1], number)]
        elif match := _LINE.fullmatch(stripped):
            if _PIP_BUILD.fullmatch(match["build"]):
                pip.append(_text(f"{match['name']}=={match['version']}", number))
            else:
                conda.append(_text(stripped, number))
    if pip:
        conda.append(_mapping(pip=pip))
    return _mapping(dependencies=conda, platforms=platforms)


def _text(text: str, line: int) -> Node:
    return Node(kind="text", line=line, text=text)


def _mapping(**lists: list[Node]) -> Node:
    pairs = []
    for key, items in lists.items():
        line = items[0].line if items else 0
        pairs.append((_text(key, line), Node(kind="list", line=line, items=items)))
    return Node(kind="mapping", line=1, pairs=pairs)
