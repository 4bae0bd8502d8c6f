"""Follow a build live: the server's events where they come through, else by asking again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, StreamCutError, UnreachableError
from condastore.cli.errors import Status
from condastore.cli.lookup import not_found
from condastore.terminal import console, one_line

#: Seconds between two questions, and after how many of them the events are tried again.
PAUSE, POLLS = 0.5, 20
LINES = 1000
#: For how long a server that went away is waited for, in seconds.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """News of a build: `lines` of its log; `next_line` is the number of the next one."""

    build: Json
    lines: list[str]
    next_line: int


def updates(api: Api, build_id: str, *, from_line: int = 0) -> Iterator[Update]:
    """Each change of the build, until it is finished and its log is read to the end."""
    next_line = from_line
    seen = time.monotonic()
    while True:
        try:
            for data in api.subscribe(queries.FOLLOW, id=build_id, fromLine=next_line):
                event = data["buildProgress"]
                next_line, seen = event["nextLine"], time.monotonic()
                yield Update(build=event["build"], lines=event["newLines"], next_line=next_line)
        except StreamCutError:
            pass
        # Whatever ended the events, asking says whether there is more.
        for _ in range(POLLS):
            try:
                update = _ask(api, build_id, next_line)
            except UnreachableError:
                if time.monotonic() - seen > PATIENCE:
                    raise
            else:
                next_line, seen = update.next_line, time.monotonic()
                yield update
                if update.build["finished"] and next_line >= update.build["logLines"]:
                    return
                if update.lines:
                    continue  # there may be more already
            time.sleep(PAUSE)


def _ask(api: Api, build_id: str, start: int) -> Update:
    build = api.ask(queries.PROGRESS, id=build_id, start=start, limit=LINES)["build"]
    if build is None:
        raise not_found("The build was deleted meanwhile.")
    lines = build.pop("log")
    return Update(build=build, lines=lines, next_line=start + len(lines))


# --- output ---------------------------------------------------------------------------------------


class View(Protocol):
    def show(self, update: Update) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One JSON document a line, for programs."""

    def show(self, update: Update) -> None:
        render.json_line(
            {
                "event": "update",
                "build": update.build,
                "newLines": update.lines,
                "nextLine": update.next_line,
            }
        )

    def close(self) -> None:
        pass


class PlainLines:
    """The log and the states as lines, where there is no terminal."""

    def __init__(self, *, log: bool) -> None:
        self._log, self._state = log, ""

    def show(self, update: Update) -> None:
        if self._log:
            for line in update.lines:
                render.say(one_line(line))
        if update.build["state"] != self._state:
            self._state = update.build["state"]
            render.say(f"{update.build['ref']}: {self._state}")
        sys.stdout.flush()

    def close(self) -> None:
        pass


class Terminal:
    """The log above, and below it one line that moves: state, packages, bytes."""

    def __init__(self, *, log: bool) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._log = log
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[doing]}", style="dim", markup=False),
            console=console(),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, counts="", doing="")
        self._progress.start()

    def show(self, update: Update) -> None:
        from rich.text import Text

        if self._log:
            for line in update.lines:
                self._progress.console.print(Text(one_line(line)))
        progress: Json = update.build.get("progress") or {}
        done, total = progress.get("done") or 0, progress.get("total") or 0
        counts = f"{done}/{total}" if total else ""
        if progress.get("bytesTotal"):
            counts += (
                f"  {render.size(progress['bytesDone'])} of {render.size(progress['bytesTotal'])}"
            )
        self._progress.update(
            self._task,
            description=one_line(f"{update.build['ref']} {update.build['state']}"),
            completed=done,
            total=total or None,
            counts=counts,
            doing=one_line(progress.get("current") or ""),
        )

    def close(self) -> None:
        self._progress.stop()


def _view(*, as_json: bool, log: bool) -> View:
    if as_json:
        return JsonLines()
    if sys.stdout.isatty():
        return Terminal(log=log)
    return PlainLines(log=log)


def follow(api: Api, build: Json, *, as_json: bool, log: bool = True, from_line: int = 0) -> Status:
    """Show `build` (its `id` and `ref`) until it ends, then how it ended."""
    view = _view(as_json=as_json, log=log)
    try:
        for update in updates(api, build["id"], from_line=from_line):
            view.show(update)
    except KeyboardInterrupt:
        view.close()
        render.warn(
            f"\n{build['ref']} continues on the server.\n"
            f"  follow it again: condastore env wait --log {build['ref']}\n"
            f"  cancel it:       condastore env cancel {build['ref']}"
        )
        raise
    finally:
        view.close()
    ended: Json = api.ask(queries.BUILD_BY_ID, id=build["id"])["build"]
    return report(ended, as_json=as_json)


def report(build: Json, *, as_json: bool) -> Status:
    """How a finished build ended; the explanation of a failure goes to stderr."""
    good = build["state"] in {"READY", "ARCHIVED"}
    if as_json:
        render.json_line({"event": "finished", "build": build})
    else:
        for line in render.build_lines(build):
            render.say(line) if good else render.warn(line)
        if build.get("failure"):
            for line in render.failure_lines(build["failure"]):
                render.warn(line)
            render.warn(f"  log: condastore env log {build['ref']}")
    return Status.OK if good else Status.FAILED


def preview(api: Api, found: Json, *, platform: str | None) -> Json:
    """Wait until a preview is solved."""
    while found["finishedAt"] is None:
        time.sleep(PAUSE)
        found = api.ask(queries.PREVIEW, id=found["id"], platform=platform)["preview"]
    return found
