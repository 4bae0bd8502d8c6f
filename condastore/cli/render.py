"""Output of commands: tables, summaries and explanations, or JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from condastore.cli.client import Json, Nodes
from condastore.terminal import console, one_line, to_json

_COLOURS = {
    "READY": "green",
    "FAILED": "red",
    "RECALLED": "red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "HELD": "yellow",
    "ARCHIVED": "dim",
}


def answer(
    document: Any, as_json: bool, human: Callable[[], None], *, every: str = "--limit 0"
) -> None:
    """Print `document` for a program, or what `human` prints.

    Args:
        every: option that lifts the limit of a list.
    """
    if as_json:
        sys.stdout.write(to_json(document, indent=2) + "\n")
        return
    human()
    if isinstance(document, Nodes) and document and document.total > len(document):
        sys.stdout.flush()
        warn(f"{document.total - len(document):,} more are not shown; {every} shows all.")


def json_line(document: Any) -> None:
    sys.stdout.write(to_json(document) + "\n")
    sys.stdout.flush()


def say(text: str = "") -> None:
    """Print text for a person; what would steer a terminal is neutralised by the stream."""
    sys.stdout.write(text + "\n")


def document(text: str) -> None:
    """Print a document byte for byte; neutralised where stdout is a terminal."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def warn(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


#: Narrowest width of a column of free text, and the spaces between two columns.
_NARROWEST, _GAP = 16, 2


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows in columns that fit the terminal; names are never broken.

    Args:
        columns: headings. `#` before one aligns numbers to the right; `~` marks free text, which
            wraps at words; `-` marks a column that is left out where the terminal is too narrow,
            the last one first. Empty columns are left out on a terminal.
        empty: text to print if there are no rows.
    """
    cells = [[one_line("" if cell is None else str(cell)) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    from rich.text import Text

    target = console()
    headings = [column.lstrip("#~-") for column in columns]
    shown = list(range(len(columns)))
    if target.is_terminal:
        shown = [at for at in shown if any(row[at] for row in cells)]
    widths = {at: max(_width(text) for text in (headings[at], *_column(cells, at))) for at in shown}
    texts = {at for at in shown if "~" in _marks(columns[at])}
    for at in [at for at in reversed(shown) if "-" in _marks(columns[at])]:
        if _least(widths, texts) <= target.width:
            break
        shown.remove(at)
        del widths[at]
        texts.discard(at)
    _shrink(widths, texts, target.width)

    def line(row: Sequence[str], style: str = "") -> None:
        parts = {at: _wrapped(row[at], widths[at]) if at in texts else [row[at]] for at in shown}
        for number in range(max(map(len, parts.values()))):
            text = Text()
            for at in shown:
                cell = parts[at][number] if number < len(parts[at]) else ""
                pad = " " * (widths[at] - _width(cell))
                right = "#" in _marks(columns[at])
                text.append(pad if right else "")
                text.append(cell, style or _COLOURS.get(cell, ""))
                text.append(("" if right else pad) + " " * _GAP)
            text.rstrip()
            target.print(text, soft_wrap=True)

    line(headings, "bold")
    for row in cells:
        line(row)


def _column(cells: Sequence[Sequence[str]], at: int) -> list[str]:
    return [row[at] for row in cells]


def _marks(column: str) -> str:
    return column[: len(column) - len(column.lstrip("#~-"))]


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _least(widths: Mapping[int, int], texts: set[int]) -> int:
    """Return the width of a table whose free text is as narrow as it may be."""
    least = [min(width, _NARROWEST) if at in texts else width for at, width in widths.items()]
    return sum(least) + _GAP * (len(least) - 1)


def _shrink(widths: dict[int, int], texts: set[int], available: int) -> None:
    """Narrow the columns of free text, the widest first, until the table fits."""
    excess = sum(widths.values()) + _GAP * (len(widths) - 1) - available
    while excess > 0 and texts:
        widest = max(texts, key=lambda at: widths[at])
        if widths[widest] <= _NARROWEST:
            return
        widths[widest] -= 1
        excess -= 1


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of `text`, broken at words; a longer word is broken."""
    if _width(text) <= width:
        return [text]
    from rich.cells import chop_cells

    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines += chop_cells(word, width)
    return lines


def pairs(rows: Iterable[tuple[str, Any]]) -> None:
    """`name  value` lines; empty values are left out."""
    kept = [(name, value) for name, value in rows if value not in (None, "", [], ())]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        say(f"{name:<{width}}  {one_line(str(value))}")


# --- values ---------------------------------------------------------------------------------------


def number(count: int, noun: str) -> str:
    """Return such as "1 build" or "2,000 builds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: Any) -> str:
    """Bytes, for people; "" for an unknown count."""
    if count in (None, ""):
        return ""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def signed_size(count: Any) -> str:
    return ("+" if int(count) >= 0 else "-") + size(abs(int(count)))


def moment(text: str | None) -> str:
    """A time of the API, in this machine's time zone."""
    if not text:
        return ""
    return _instant(text).astimezone().strftime("%Y-%m-%d %H:%M")


def when(text: str | None) -> str:
    """Return a time of the API: relative to now on a terminal, absolute elsewhere."""
    if not text or not sys.stdout.isatty():
        return moment(text)
    age = (datetime.now(UTC) - _instant(text)).total_seconds()
    if age < 60:
        return "just now" if age > -60 else moment(text)
    for limit, length, unit in ((3600, 60, "min"), (86400, 3600, "h"), (14 * 86400, 86400, "day")):
        if age < limit:
            count = int(age // length)
            return f"{count} {unit}{'s' if unit == 'day' and count > 1 else ''} ago"
    return moment(text)[:10]


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def seconds(amount: float) -> str:
    if amount < 10:
        return f"{amount:.1f} s"
    if amount < 120:
        return f"{amount:.0f} s"
    return f"{amount // 60:.0f} min {amount % 60:.0f} s"


def between(start: str | None, end: str | None) -> str:
    if not start or not end:
        return ""
    return seconds((_instant(end) - _instant(start)).total_seconds())


def tags(build: Json) -> str:
    return ", ".join(tag["name"] for tag in build.get("tags") or ())


def name_of(environment: Json) -> str:
    return f"{environment['namespace']['name']}/{environment['name']}"


# --- builds ---------------------------------------------------------------------------------------


def state_of(build: Json) -> str:
    """Return the state of a build, or RECALLED where a recall stopped serving it."""
    return "RECALLED" if build.get("recalled") else str(build["state"])


def worked(build: Json) -> str:
    """Return how long the last attempt of a build took, without its time in the queue or held."""
    spent = sum(item["seconds"] for item in build.get("timings") or ())
    return seconds(spent) if spent else ""


def build_lines(build: Json) -> list[str]:
    """Summarize a finished build, for the end of `env build` and `env wait`."""
    took = worked(build)
    head = f"{build['ref']} is {build['state']}" + (f" after {took}" if took else "")
    lines = [head]
    if timings := build.get("timings"):
        lines.append(
            "  "
            + ", ".join(f"{item['stage'].lower()} {seconds(item['seconds'])}" for item in timings)
        )
    if build["state"] != "READY":
        return lines
    lock = build.get("lock") or {}
    facts = [f"{lock['packageCount']} packages"] if lock.get("packageCount") is not None else []
    if build.get("apparentSize"):
        own = size(build.get("uniqueSize") or 0)
        facts.append(f"{size(build['apparentSize'])}, of which {own} are its own")
    if facts:
        lines.append("  " + ", ".join(facts))
    if build.get("linkScripts"):
        lines.append(f"  install scripts that did not run: {', '.join(build['linkScripts'])}")
    if not build["isCurrent"]:
        lines.append("  it is not the current build: another one is newer or pinned")
    if build.get("prefixPath"):
        lines.append(f"  folder: {build['prefixPath']}")
    name = name_of(build["environment"])
    target = name if build["isCurrent"] else build["ref"]
    lines.append(f"  use it: condastore run {target} -- python")
    return lines


def failure_lines(failure: Json) -> list[str]:
    """Why a build or preview failed, in the terms of what was asked for."""
    faults = failure.get("faults") or []
    conflicts, missing = failure.get("conflicts") or [], failure.get("missing") or []
    lines: list[str] = []
    if len(faults) > 1:
        lines.append(f"error: {len(faults)} things are wrong")
        for fault in faults:
            place = f"{fault['where']}: " if fault.get("where") else ""
            lines.append(f"  {place}{fault['message']}")
            if fault.get("hint"):
                lines.append(f"      {fault['hint']}")
    else:
        lines += [
            f"error: {line}" if not index else f"  {line}"
            for index, line in enumerate(failure["message"].splitlines() or [""])
        ]
        if failure.get("where"):
            lines.append(f"  where: {failure['where']}")
    for conflict in conflicts:
        several = len(conflict["requirements"]) > 1
        lines.append(f"  {'these exclude each other' if several else 'this has no solution'}:")
        lines += [f"    - {requirement}" for requirement in conflict["requirements"]]
        if conflict.get("reason"):
            lines.append(f"    because {conflict['reason']}")
        if conflict.get("chain"):
            lines.append(f"    by way of {' -> '.join(conflict['chain'])}")
    for absent in missing:
        where = ", ".join(absent.get("channels") or ()) or "the channels"
        lines.append(f"  no package for {absent['requirement']} in {where}")
        if absent.get("similar"):
            lines.append(f"    similar names: {', '.join(absent['similar'])}")
    own = faults[0].get("hint") if len(faults) == 1 else ""
    if hint := own or failure.get("hint"):
        lines.append(f"  hint: {hint}")
    return [one_line(line) for line in lines]


def changes(diff: Json) -> None:
    """A difference of two locks."""
    rows = [("+", package["name"], "", _version(package)) for package in diff["added"]]
    rows += [("-", package["name"], _version(package), "") for package in diff["removed"]]
    rows += [
        (_SIGNS.get(change["kind"], "~"), change["name"], *_versions(change))
        for change in diff["changed"]
    ]
    rows.sort(key=lambda row: (row[1], row[0]))
    table(["", "package", "before", "after"], rows, empty="The packages are the same.")
    if rows:
        counts = f"{len(diff['added'])} added, {len(diff['removed'])} removed"
        say(
            f"{diff['platform']}: {counts}, {len(diff['changed'])} changed, "
            f"{signed_size(diff['sizeDelta'])} to download"
        )


_SIGNS = {"UPGRADE": "^", "DOWNGRADE": "v"}


def _version(package: Json) -> str:
    return f"{package['version']} {package.get('build') or ''}".strip()


def _versions(change: Json) -> tuple[str, str]:
    old, new = change["old"], change["new"]
    if old["version"] != new["version"]:
        return old["version"], new["version"]
    if _version(old) != _version(new):
        return _version(old), _version(new)
    return (
        f"{_version(old)} {old['channel'] or ''}".strip(),
        f"{_version(new)} {new['channel'] or ''}".strip(),
    )
