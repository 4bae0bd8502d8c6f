"""Output of commands: tables, summaries and explanations, or JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from condastore.cli.client import Json
from condastore.terminal import console, one_line, to_json

_COLOURS = {
    "READY": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "HELD": "yellow",
    "ARCHIVED": "dim",
}


def answer(document: Any, as_json: bool, human: Callable[[], None]) -> None:
    """Print `document` for a program, or what `human` prints."""
    if as_json:
        sys.stdout.write(to_json(document, indent=2) + "\n")
    else:
        human()


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


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows in columns; a name that starts with `#` is a column of numbers."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column.startswith("#")
        shown.add_column(
            column.removeprefix("#"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        cells = [Text(one_line("" if cell is None else str(cell))) for cell in row]
        for cell in cells:
            if cell.plain in _COLOURS:
                cell.stylize(_COLOURS[cell.plain])
        shown.add_row(*cells)
    if shown.row_count:
        console().print(shown)
    else:
        say(empty)


def pairs(rows: Iterable[tuple[str, Any]]) -> None:
    """`name  value` lines; empty values are left out."""
    kept = [(name, value) for name, value in rows if value not in (None, "", [], ())]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        say(f"{name:<{width}}  {one_line(str(value))}")


# --- values ---------------------------------------------------------------------------------------


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


def build_lines(build: Json) -> list[str]:
    """How a finished build ended, for the end of `env build` and `env wait`."""
    took = between(build["createdAt"], build["finishedAt"])
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
    if failure.get("hint"):
        lines.append(f"  hint: {failure['hint']}")
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
