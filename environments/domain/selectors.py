"""Selectors of platforms in environment files: `- pywin32  # [win]` and `- sel(win): pywin32`.

Selectors in comments are read as conda-lock does (`conda_lock.src_parser.selectors`), line by
line; a test compares both. It is implemented here because importing conda-lock takes seconds and
much memory, and this runs in the web process.
"""

from __future__ import annotations

import re

from condastore.errors import FaultError
from environments.domain.names import KNOWN_PLATFORMS, printable
from environments.domain.yaml_text import Node

_BRACKETS = re.compile(r"\[([^\[\]]+)\]")
_WORDS = {
    "linux-64": {"linux64", "unix", "linux"},
    "linux-aarch64": {"aarch64", "unix", "linux"},
    "linux-ppc64le": {"ppc64le", "unix", "linux"},
    "osx-64": {"osx64", "osx", "unix"},
    "osx-arm64": {"arm64", "osx", "unix"},
    "win-64": {"win", "win64"},
    # conda-lock has no selectors for the platforms that follow.
    "linux-armv7l": {"unix", "linux"},
    "linux-riscv64": {"unix", "linux"},
    "linux-s390x": {"unix", "linux"},
    "win-arm64": {"win"},
}
_KNOWN = frozenset().union(*_WORDS.values())


#: mamba's form, `- sel(linux): gdb`: the platforms for which each selector holds.
MAMBA_SELECTORS = {
    "sel(linux)": frozenset(name for name in KNOWN_PLATFORMS if name.startswith("linux-")),
    "sel(osx)": frozenset(name for name in KNOWN_PLATFORMS if name.startswith("osx-")),
    "sel(unix)": frozenset(name for name in KNOWN_PLATFORMS if not name.startswith("win-")),
    "sel(win)": frozenset(name for name in KNOWN_PLATFORMS if name.startswith("win-")),
}


def is_mamba_selector(item: Node) -> bool:
    """Whether an entry of `dependencies` has a key such as `sel(linux)`."""
    return any(name.text.startswith("sel(") for name, _ in item.pairs)


def mamba_selector(text: str) -> frozenset[str] | None:
    """Return the platforms of `sel(linux)`; None where that is not a selector."""
    return MAMBA_SELECTORS.get(text)


def lines_for(text: str, platform: str) -> str:
    """Blank out the lines of other platforms in `text`; line numbers stay the same."""
    if not _has_selectors(text):
        return text
    return "\n".join(
        "" if (condition := _condition(line)) and condition not in _WORDS[platform] else line
        for line in text.splitlines()
    )


def selector_faults(text: str, lines: range) -> list[FaultError]:
    """Yield faults for conditions that only conda-lock reads as a selector.

    conda-lock drops such a line on every platform, conda keeps it, so the meaning is ambiguous.
    """
    return [
        FaultError(
            f"[{printable(condition)[1:-1]}] is not a known selector.",
            where=f"line {number}",
            hint=f"Use one word of {', '.join(sorted(_KNOWN))}; a comment holds no brackets.",
        )
        for number, condition in _conditions(text)
        if number in lines and condition not in _KNOWN
    ]


def idle_selectors(text: str, lines: range) -> list[int]:
    """Return the numbers of lines outside of `lines` that have a selector without effect."""
    return [
        number
        for number, condition in _conditions(text)
        if number not in lines and condition in _KNOWN
    ]


def _conditions(text: str) -> list[tuple[int, str]]:
    if not _has_selectors(text):
        return []
    found = ((number, _condition(line)) for number, line in enumerate(text.splitlines(), start=1))
    return [(number, condition) for number, condition in found if condition]


def _has_selectors(text: str) -> bool:
    return "#" in text and "[" in text


def _condition(line: str) -> str:
    """Return the text in the last brackets of the comment, if no parenthesis follows."""
    # One pass: conda-lock's pattern takes quadratic time on hostile lines.
    comment = line.find("#", 1)
    if comment < 0 or line.lstrip().startswith("#"):
        return ""
    found = list(_BRACKETS.finditer(line, comment))
    return found[-1][1] if found and not re.search(r"[()]", line[found[-1].end() :]) else ""


assert set(_WORDS) == set(KNOWN_PLATFORMS)
