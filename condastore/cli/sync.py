"""`condastore sync`: keep environments as folders on a machine without the server's disk."""

from __future__ import annotations

import importlib
import platform
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from condastore.cli import config, render
from condastore.cli.errors import CommandError, Status, operation_error, status_of
from condastore.cli.options import AsJson
from condastore.terminal import console, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condastore.agent.events import Event, Progress, StoreError
    from condastore.agent.sync import Outcome

INSTALL = "pip install 'condastore[agent]'"
#: Seconds between two lines of progress, where they are lines.
EACH = 2.0
TERMINATED = 128 + signal.SIGTERM  # as shells say it
#: Outcomes that are reported to a person.
_BAD = {"failed", "refused", "unreachable"}


def add_to(root: typer.Typer) -> None:
    root.command()(sync)


def sync(
    to: Annotated[
        Path,
        typer.Option("--to", metavar="DIR", help="Where the folders are kept.", show_default=False),
    ],
    namespaces: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", help="Of which namespace; more than once for several."),
    ] = None,
    environments: Annotated[
        list[str] | None,
        typer.Option(
            "--environment",
            "-e",
            metavar="ENV",
            help="Only this one, ENV or NAMESPACE/ENV; more than once for several.",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when all is there; the status says whether it is.")
    ] = False,
    interval: Annotated[
        float, typer.Option(min=1, help="Seconds between two looks at the server.")
    ] = 60,
    keep: Annotated[
        int, typer.Option(min=0, help="How many builds stay beside the current one of each.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Keep environments as folders on this machine: DIR/NAMESPACE/ENV is the current build.

    Packages come from the server and stay in a cache in DIR, so a new build takes what is new. An
    environment that was removed or recalled on the server, or that you may not have any more, goes
    here too; while the server cannot be reached, all stays as it is.
    """
    if platform.system() != "Linux":
        raise CommandError(
            "Folders are kept on Linux only.", status=Status.USAGE, code="not-installed"
        )
    named, chosen = _chosen(environments or [], namespaces or [])
    known = config.current()
    with _agent_parts():
        agent_sync = importlib.import_module("condastore.agent.sync")
        folders = importlib.import_module("condastore.agent.folder")
        servers = importlib.import_module("condastore.agent.server")
        servers.permit_every_address()
        values = importlib.import_module("condastore.agent.plan")
    choice = values.Choice(
        namespaces=chosen, named=frozenset(values.Name(*parts) for parts in named)
    )
    view = _view(as_json=as_json)
    server = servers.Server(known.url, known.token)
    try:
        with _errors(), _stopping() as stop:
            folder = folders.Folder(to)
            with folder.held(server=server.url):
                agent = agent_sync.Agent(
                    folder, server, choice, keep=keep, told=view, stopped=stop.is_set
                )
                if once:
                    outcome = agent.once()
                else:
                    agent.run(interval=timedelta(seconds=interval), wait=stop.wait)
    except _StoppedError as stopped:
        view.close()
        if stopped.number == signal.SIGTERM and not once:
            return  # that is how a service ends
        raise typer.Exit(128 + stopped.number) from None
    finally:
        view.close()
        server.close()
    if once:
        view.finished(outcome)
        raise typer.Exit(_status(outcome))


def _chosen(
    environments: list[str], namespaces: list[str]
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """(namespace, environment) of those that are named, and all namespaces, in the given order."""
    named: list[tuple[str, str]] = []
    for text in environments:
        namespace, slash, environment = text.rpartition("/")
        if not slash and len(namespaces) == 1:
            namespace = namespaces[0]
        if not namespace or not environment or "/" in namespace or ":" in text:
            raise CommandError(
                f"{text!r} does not name an environment.",
                status=Status.USAGE,
                code="invalid-input",
                hint="Write it as NAMESPACE/ENV; ENV is enough where there is one --namespace.",
            )
        named.append((namespace, environment))
    chosen = tuple(dict.fromkeys([*namespaces, *(namespace for namespace, _ in named)]))
    if not chosen:
        raise CommandError(
            "There is nothing to keep.",
            status=Status.USAGE,
            code="invalid-input",
            hint="Name a namespace: `condastore sync --namespace research --to /srv/envs`.",
        )
    return named, chosen


def _status(outcome: Outcome) -> Status:
    if outcome.complete:
        return Status.OK
    worst = outcome.worst
    status = status_of(worst.code) if worst is not None else Status.FAILED
    if status is not Status.INVALID:
        return status
    return Status.UNREACHABLE if outcome.unreachable else Status.FAILED


@contextmanager
def _agent_parts() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"condastore", "environments"}:
            raise
        raise CommandError(
            f"What links environments is not installed here: {missing} is missing.",
            status=Status.USAGE,
            code="not-installed",
            hint=INSTALL,
        ) from error


@contextmanager
def _errors() -> Iterator[None]:
    """What ends it before a round, as every command tells it."""
    from condastore.agent.events import StoreError

    try:
        yield
    except StoreError as error:
        raise operation_error(_told(error)) from error


def _told(error: StoreError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "where": error.where, "hint": error.hint}


class _StoppedError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by the first SIGINT or SIGTERM; the second ends the process at once."""
    stop = threading.Event()
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        stop.set()
        signal.signal(number, signal.default_int_handler)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except Exception:
        if not signals:
            raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if signals:
        raise _StoppedError(signals[0])


# --- output ---------------------------------------------------------------------------------------


class View(Protocol):
    def event(self, event: Event) -> None: ...
    def progress(self, subject: str, progress: Progress) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """One JSON document a line, for programs."""

    def __init__(self) -> None:
        self._told = 0.0

    def event(self, event: Event) -> None:
        render.json_line(
            {
                "event": event.kind,
                "subject": event.subject,
                "build": event.build,
                "message": event.message,
                "hint": event.hint,
            }
        )

    def progress(self, subject: str, progress: Progress) -> None:
        if time.monotonic() - self._told < EACH:
            return
        self._told = time.monotonic()
        render.json_line(
            {
                "event": "progress",
                "subject": subject,
                "stage": progress.stage,
                "done": progress.done,
                "total": progress.total,
                "bytesDone": progress.bytes_done,
                "bytesTotal": progress.bytes_total,
                "current": progress.current,
            }
        )

    def finished(self, outcome: Outcome) -> None:
        render.json_line(
            {
                "event": "finished",
                "complete": outcome.complete,
                "present": [str(name) for name in outcome.present],
                "errors": [_told(error) for error in outcome.errors],
            }
        )

    def close(self) -> None:
        pass


class PlainLines:
    """Lines, for logs."""

    def __init__(self) -> None:
        self._told = 0.0

    def event(self, event: Event) -> None:
        write = render.warn if event.kind in _BAD else render.say
        write(one_line(_line(event)))
        if event.hint and event.kind in _BAD:
            write(f"  hint: {one_line(event.hint)}")
        sys.stdout.flush()

    def progress(self, subject: str, progress: Progress) -> None:
        if time.monotonic() - self._told < EACH:
            return
        self._told = time.monotonic()
        render.say(one_line(f"{subject}: {progress.stage} {_counts(progress)}"))
        sys.stdout.flush()

    def finished(self, outcome: Outcome) -> None:
        number = len(outcome.present)
        render.say(f"{number} environment{'' if number == 1 else 's'} as on the server")

    def close(self) -> None:
        pass


class Terminal(PlainLines):
    """Lines, and below them one that moves."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        super().__init__()
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counts]}"),
            console=console(),
            transient=True,
        )
        self._task = self._live.add_task("", total=None, counts="", visible=False)
        self._live.start()

    def event(self, event: Event) -> None:
        from rich.text import Text

        self._live.update(self._task, visible=event.kind == "linking")
        lines = [_line(event)]
        if event.hint and event.kind in _BAD:
            lines.append(f"  hint: {event.hint}")
        for line in lines:
            style = "red" if event.kind in _BAD else ""
            self._live.console.print(Text(one_line(line), style=style))

    def progress(self, subject: str, progress: Progress) -> None:
        self._live.update(
            self._task,
            description=one_line(f"{subject} {progress.stage}"),
            completed=progress.done,
            total=progress.total or None,
            counts=_counts(progress),
            visible=True,
        )

    def close(self) -> None:
        self._live.stop()


def _view(*, as_json: bool) -> View:
    if as_json:
        return JsonLines()
    return Terminal() if sys.stdout.isatty() else PlainLines()


def _line(event: Event) -> str:
    return f"{event.subject}: {event.kind}: {event.message}"


def _counts(progress: Progress) -> str:
    text = f"{progress.done}/{progress.total}"
    if progress.bytes_total:
        done, total = render.size(progress.bytes_done), render.size(progress.bytes_total)
        text += f", {done} of {total}"
    return text
