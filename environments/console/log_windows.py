"""Windows of a build's log: some lines at a time, and the lines that contain a text."""

from __future__ import annotations

from dataclasses import dataclass

from environments.models import Build

#: Lines of one window.
WINDOW = 500
#: Matches that a search shows at most.
MATCHES = 200
_EVERYTHING = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line; `parts` alternate between other text and matches of a search."""

    number: int  # from 1
    text: str
    parts: tuple[tuple[str, bool], ...] = ()

    @property
    def kind(self) -> str:
        lower = self.text.lower()
        if self.text.startswith("--- "):
            return "stage"
        if lower.startswith(("error", "failed")):
            return "errline"
        return "warnline" if "warning" in lower[:40] else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Lines `first` to `last` of `total`, counted from 1; `last` is 0 for an empty log."""

    lines: tuple[Line, ...]
    total: int

    @property
    def first(self) -> int:
        return self.lines[0].number if self.lines else 0

    @property
    def last(self) -> int:
        return self.lines[-1].number if self.lines else 0

    @property
    def earlier(self) -> int:
        """Return a line of the window before this one; 0 for none."""
        return max(1, self.first - WINDOW) if self.first > 1 else 0

    @property
    def later(self) -> int:
        """Return a line of the window after this one; 0 for none."""
        return self.last + 1 if self.last < self.total else 0

    @property
    def at_end(self) -> bool:
        return self.last == self.total


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    lines: tuple[Line, ...]
    total: int


def total_of(build: Build) -> int:
    return build.log_lines or (build.origin.log_lines if build.origin else 0)


def window_of(build: Build, line: int | None = None) -> Window:
    """Return the window that begins shortly before `line`, or the end of the log."""
    total = total_of(build)
    start = total - WINDOW if line is None else min(line, total) - 1 - WINDOW // 10
    return lines_from(build, max(0, start), total=total)


def lines_from(build: Build, start: int, *, total: int, limit: int = WINDOW) -> Window:
    texts = build.log_from(start, limit=limit)
    lines = tuple(
        Line(number=start + index, text=text) for index, text in enumerate(texts, start=1)
    )
    return Window(lines=lines, total=max(total, start + len(lines)))


def search(build: Build, text: str) -> Matches:
    """Return the first lines that contain `text` in upper or lower case, and their number."""
    wanted = text.lower()
    found: list[Line] = []
    total = 0
    for number, line in enumerate(build.log_from(limit=_EVERYTHING), start=1):
        if wanted in line.lower():
            total += 1
            if len(found) < MATCHES:
                found.append(Line(number=number, text=line, parts=_parts(line, wanted)))
    return Matches(lines=tuple(found), total=total)


def _parts(line: str, wanted: str) -> tuple[tuple[str, bool], ...]:
    lower = line.lower()
    if len(lower) != len(line):  # positions in the two differ: the line is shown unmarked
        return ((line, False),)
    parts: list[tuple[str, bool]] = []
    position = 0
    while (at := lower.find(wanted, position)) >= 0:
        parts += [(line[position:at], False), (line[at : at + len(wanted)], True)]
        position = at + len(wanted)
    return tuple(part for part in (*parts, (line[position:], False)) if part[0])
