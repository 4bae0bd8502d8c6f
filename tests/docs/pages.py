"""Code blocks and links of the documentation, as tests read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = sorted(
    {
        *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        *(page for page in (PROJECT / "docs").rglob("*.md") if "_build" not in page.parts),
    }
)
_FENCE = re.compile(r"^( *)```([\w{}-]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_TOUR = re.compile(r"<!-- tour: ([\w-]+) -->\n```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a page: where it is, and its words without variables before it."""

    page: str
    line: str
    words: tuple[str, ...]
    #: In a sentence, where arguments may be left out.
    prose: bool


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and content of every fenced block, and of indented ones as `text`."""
    for _, language, content in _FENCE.findall(text):
        yield language, content
    outside = _FENCE.sub("", text)
    for content in re.findall(r"(?:^    .*\n)+", outside, re.MULTILINE):
        yield "text", content


def lines(content: str) -> Iterator[str]:
    """Yield the lines of a shell block; a backslash at the end continues a line."""
    for line in content.replace("\\\n", " ").splitlines():
        if line.strip() and not line.strip().startswith("#"):
            yield line.strip()


def without_comment(line: str) -> str:
    return re.sub(r"\s+#\s.*$", "", line)


def commands(*programs: str) -> Iterator[Command]:
    """Yield every command in a block or in `code` that starts with one of `programs`."""
    for page in PAGES:
        text = page.read_text()
        name = str(page.relative_to(PROJECT))
        for language, content in blocks(text):
            if language in SHELL:
                for line in lines(content):
                    yield from _commands(name, line, programs, prose=False)
        spans = rf"(?<!`)`((?:{'|'.join(programs)}) [^`]+)`(?!`)"
        for line in re.findall(spans, _FENCE.sub("", text)):
            yield from _commands(name, line, programs, prose=True)


def _commands(page: str, line: str, programs: tuple[str, ...], *, prose: bool) -> Iterator[Command]:
    text = without_comment(" ".join(line.split())).replace("[:BUILD]", "")
    for part in re.split(r"\s(?:&&|\|\||\|)\s|\$\(", text):
        try:
            words = shlex.split(part.partition(")")[0] if "$(" in line else part)
        except ValueError:  # prose in a block has quotes without an end
            continue
        while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "$"):
            words.pop(0)
        if words and words[0] in programs:
            yield Command(page=page, line=line, words=tuple(words), prose=prose)


def tour(name: str) -> list[tuple[str, str]]:
    """Return (language, content) of the blocks that the pages mark as this tour, in order."""
    return [
        (language, content)
        for page in PAGES
        for found, language, content in _TOUR.findall(page.read_text())
        if found == name
    ]
