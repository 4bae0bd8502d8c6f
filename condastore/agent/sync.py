"""One round of keeping a folder as the server says, and the loop around it.

ask the server -> links that are to go, go -> fetch, link and switch what is new
  -> drop what is old, or recalled, once no process needs it
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rattler.platform import Subdir

from condastore.agent.events import Event, Kind, Progress, Told
from condastore.agent.folder import Folder
from condastore.agent.in_use import in_use
from condastore.agent.plan import Answer, Choice, Kept, Name, Wanted, WantedBuild, farewell, to_drop
from condastore.agent.server import Server
from condastore.errors import (
    AccessDeniedError,
    LeaseLostError,
    NotFoundError,
    SandboxUnavailableError,
    StoreError,
    UnavailableError,
)
from environments.engine.packages.download_types import Patience
from environments.engine.prefix import linking
from environments.engine.prefix.interpreter import Interpreter
from environments.engine.prefix.python_sources import PythonSources, python_sources
from environments.engine.pypi.install import install_wheels

PARALLEL = 4  # downloads: many machines may begin at the same moment
_PATIENCE = Patience(attempts=5)
#: After failures the pauses double, to at most so much.
LONGEST_PAUSE = timedelta(minutes=15)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How a round went."""

    present: list[Name] = field(default_factory=list)
    errors: list[StoreError] = field(default_factory=list)
    unreachable: bool = False  # the server said nothing of at least one namespace

    @property
    def complete(self) -> bool:
        """True if every selected environment is present."""
        return not self.errors

    @property
    def worst(self) -> StoreError | None:
        """The error that a person can act on best, of several."""
        kinds = (AccessDeniedError, NotFoundError, StoreError)
        ordered = sorted(
            self.errors,
            key=lambda error: next(n for n, kind in enumerate(kinds) if isinstance(error, kind)),
        )
        return ordered[0] if ordered else None


@dataclass(slots=True, kw_only=True)
class _Failed:
    """What could not be linked is tried again later and later, until it is another one."""

    place: Path
    error: StoreError
    times: int
    again_at: float  # on the monotonic clock


class Agent:
    """Keeps `folder` as `server` says; its caller holds the folder."""

    def __init__(
        self,
        folder: Folder,
        server: Server,
        choice: Choice,
        *,
        keep: int,
        told: Told,
        stopped: Callable[[], bool],
        platform: str = "",
    ) -> None:
        self.folder, self.server, self.choice = folder, server, choice
        self.keep, self.told, self.stopped = keep, told, stopped
        self.platform = platform or str(Subdir.current())
        self._failed: dict[Name, _Failed] = {}
        self._said: dict[str, str] = {}  # subject: what was said of it, not to be repeated

    def run(self, *, interval: timedelta, wait: Callable[[float], Any]) -> None:
        """Round after round until it is stopped; `wait` is called with the seconds between."""
        cuts = 0
        while not self.stopped():
            try:
                cut = self.once().unreachable
            except OSError as error:  # the disk is full, or gone
                self.told.event(_event("failed", str(self.folder.root), _as_ours(error)))
                cut = True
            cuts = cuts + 1 if cut else 0
            # Not all machines at the same moment, also after an outage.
            wait(_pause(interval, cuts) * random.SystemRandom().uniform(0.8, 1.2))

    def once(self) -> Outcome:
        """One round.

        Raises:
            LeaseLostError: it was stopped; what is there is whole.
        """
        self.folder.tidy()
        tried: set[Path] = set()
        while True:
            # Asked again before each: a download may take hours, and a recall is not to wait.
            outcome = Outcome()
            answers = self._ask(outcome)
            self._remove(answers)
            due = self._due(answers, tried, outcome)
            if not due:
                break
            name, build = due[0]
            tried.add(self._place(name, build))
            self._bring(name, build)
        self._look_for_named(answers, outcome)
        self._drop(answers)
        self.folder.tidy_cache()
        self.folder.empty_trash()
        return outcome

    # --- the parts of a round ----------------------------------------------------------------

    def _ask(self, outcome: Outcome) -> dict[str, Answer]:
        """What the server says; a namespace of which it says nothing is not in it."""
        answers: dict[str, Answer] = {}
        for namespace in self.choice.namespaces:
            try:
                answers[namespace] = self.server.environments(namespace)
                self._say(namespace, None)
            except (AccessDeniedError, NotFoundError) as error:
                answers[namespace] = error
                outcome.errors.append(error)
                self._say(namespace, _event("refused", namespace, error))
            except StoreError as error:
                outcome.errors.append(error)
                outcome.unreachable = True
                event = _event("unreachable", namespace, error)
                more = "What is here stays as it is."
                self._say(namespace, replace(event, message=f"{event.message} {more}"))
        return answers

    def _remove(self, answers: Mapping[str, Answer]) -> None:
        """First of all: what was recalled is not to be used a moment longer."""
        for name in self.folder.current():
            if why := farewell(name, self.choice, answers):
                self.folder.remove_link(name)
                self._tell("removed", name, why)

    def _due(
        self, answers: Mapping[str, Answer], tried: Collection[Path], outcome: Outcome
    ) -> list[tuple[Name, WantedBuild]]:
        """Return missing folders that are due for an attempt; `outcome` receives the others."""
        due: list[tuple[Name, WantedBuild]] = []
        current = self.folder.current()
        for name, requested in self._chosen(answers):
            build = requested.build
            if build is None or (self.platform not in build.platforms and not self.choice.named):
                self._leave_out(name, requested, outcome)
                continue
            location = self._place(name, build)
            failed = self._failed.get(name)
            waits = failed and failed.place == location and time.monotonic() < failed.again_at
            if current.get(name) == location and location.is_dir():
                self._said.pop(str(name), None)
                outcome.present.append(name)
            elif location not in tried and not waits:
                due.append((name, build))
            else:
                changed = UnavailableError(f"{name} was changed by somebody else.")
                outcome.errors.append(failed.error if failed else changed)
        return due

    def _chosen(self, answers: Mapping[str, Answer]) -> Iterator[tuple[Name, Wanted]]:
        for namespace, answer in answers.items():
            if isinstance(answer, Mapping):
                for environment, requested in sorted(answer.items()):
                    name = Name(namespace, environment)
                    if self.choice.has(name):
                        yield name, requested

    def _leave_out(self, name: Name, wanted: Wanted, outcome: Outcome) -> None:
        why = wanted.why
        if wanted.build is not None:
            why = f"build {wanted.build.number} is for {', '.join(wanted.build.platforms)}"
        self._say(str(name), Event(kind="left-out", subject=str(name), message=why))
        if self.choice.named:
            outcome.errors.append(NotFoundError(f"{name} has no folder: {why}."))

    def _place(self, name: Name, build: WantedBuild) -> Path:
        return self.folder.place(name, build.folder_name(name.environment))

    def _bring(self, name: Name, build: WantedBuild) -> None:
        """Fetch and link missing parts of a folder, then switch to it; failures are recorded."""
        if self.stopped():
            raise LeaseLostError("The agent was stopped.")
        location = self._place(name, build)
        try:
            self.folder.require_free(name)
            if not location.is_dir():
                self._link(name, build, location)
            self.folder.switch(name, location)
        except LeaseLostError:
            raise
        except (StoreError, OSError) as error:
            self._fail(name, location, _as_ours(error))
        else:
            self._failed.pop(name, None)
            self._tell("current", name, f"build {build.number}", build=build.number)

    def _link(self, name: Name, build: WantedBuild, place: Path) -> None:
        """Caches -> a hidden folder, as if it stood in its place already; then the one rename."""
        folder = self.folder
        self._tell("linking", name, f"build {build.number} is new here", build=build.number)
        recipe = self.server.recipe(name, build, self.platform)
        part = recipe.lock

        def progress(progress: Progress) -> None:
            self.told.progress(str(name), progress)

        fetching: dict[str, Any] = {
            "credentials": self.server.credentials,
            "cancelled": self.stopped,
            "progress": progress,
            "parallel": PARALLEL,
            "patience": _PATIENCE,
        }
        packages = folder.packages.ensure(self.server.packages(name, build, part.conda), **fetching)
        wheels = folder.wheels.ensure(self.server.wheels(name, build, part.pypi), **fetching)
        hidden = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            report = linking.link(
                part,
                target=hidden,
                final_prefix=place,
                cache=folder.packages,
                packages=packages,
                requested=recipe.requested,
                variables=recipe.variables,
                moment=build.created_at,
                note=f"condastore build {name} build {build.number} ({build.specification[:12]})",
                progress=progress,
                cancelled=self.stopped,
            )
            if report.python is not None:
                sources = python_sources(packages, report.python, conflicts=report.conflicts)
                if wheels:
                    installed = install_wheels(
                        wheels,
                        target=hidden,
                        final_prefix=place,
                        python=report.python,
                        progress=progress,
                        cancelled=self.stopped,
                    )
                    sources += installed.sources
                interpreter = Interpreter.from_packages(packages, report.python)
                self._compile(name, sources, interpreter, hidden, progress)
            linking.publish_prefix(hidden, place)
        finally:
            linking.move_to_trash(hidden, folder.trash)

    def _compile(
        self,
        name: Name,
        sources: list[PythonSources],
        interpreter: Interpreter | None,
        prefix: Path,
        progress: Callable[[Progress], None],
    ) -> None:
        """Link compiled Python files, as other users may not write them; compile missing ones.

        Code of packages runs in a sandbox only. Where there is none, nothing is compiled: the
        environment works without, only slower.
        """
        if interpreter is None:
            return
        cache = self.folder.bytecode
        missing = cache.link(sources, interpreter=interpreter, prefix=prefix).missing
        try:
            cache.compile(
                missing, interpreter=interpreter, cancelled=self.stopped, progress=progress
            )
        except (SandboxUnavailableError, UnavailableError) as error:
            self._tell("note", name, f"Python files are not compiled. {error.message}")
        cache.link(missing, interpreter=interpreter, prefix=prefix)

    def _fail(self, name: Name, place: Path, error: StoreError) -> None:
        before = self._failed.get(name)
        times = before.times + 1 if before is not None and before.place == place else 1
        pause = _pause(timedelta(seconds=30), times - 1)
        self._failed[name] = _Failed(
            place=place, error=error, times=times, again_at=time.monotonic() + pause
        )
        self.told.event(_event("failed", str(name), error))

    def _look_for_named(self, answers: Mapping[str, Answer], outcome: Outcome) -> None:
        for name in sorted(self.choice.named):
            answer = answers.get(name.namespace)
            if isinstance(answer, Mapping) and name.environment not in answer:
                error = NotFoundError(f"There is no environment {name}.")
                outcome.errors.append(error)
                self._say(str(name), _event("left-out", str(name), error))

    def _drop(self, answers: Mapping[str, Answer]) -> None:
        """Remove folders that are no longer needed; folders in use are checked again next time."""
        doomed = to_drop(
            self.folder.kept(), self.folder.current(), self.choice, answers, keep=self.keep
        )
        needed = in_use([one.path for one in doomed])
        for one in doomed:
            if one.path in needed:
                event = _of_build("in-use", one, "stays until no process needs it")
                self._say(str(one.path), event)
            else:
                self.folder.drop(one)
                self._said.pop(str(one.path), None)
                self.told.event(_of_build("dropped", one, "is removed"))

    # --- what it says ------------------------------------------------------------------------

    def _tell(self, kind: Kind, name: Name, message: str, *, build: int | None = None) -> None:
        self.told.event(Event(kind=kind, subject=str(name), message=message, build=build))

    def _say(self, about: str, event: Event | None) -> None:
        """Report an event, unless it equals the last one of its environment."""
        message = event.message if event is not None else ""
        before = self._said.get(about, "")
        self._said[about] = message
        if event is not None and message != before:
            self.told.event(event)
        elif event is None and before:
            self.told.event(Event(kind="note", subject=about, message="The server answers again."))


def _pause(first: timedelta, times: int) -> float:
    """Seconds; twice as long after each failure."""
    longest = max(first, LONGEST_PAUSE)
    return min(first.total_seconds() * 2.0 ** min(times, 20), longest.total_seconds())


def _event(kind: Kind, subject: str, error: StoreError) -> Event:
    return Event(kind=kind, subject=subject, message=str(error), hint=error.hint)


def _of_build(kind: Kind, one: Kept, what: str) -> Event:
    return Event(
        kind=kind, subject=str(one.name), message=f"build {one.number} {what}", build=one.number
    )


def _as_ours(error: StoreError | OSError) -> StoreError:
    if isinstance(error, StoreError):
        return error
    return UnavailableError(f"The folder cannot be written: {error}.")
