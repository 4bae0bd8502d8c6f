"""Stages of a build with their durations, and the summary in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from statistics import median
from typing import Any

from django.utils import timezone

from environments.console.template_tags import duration
from environments.domain.lifecycle import FINISHED, RUNNING, BuildState
from environments.domain.sizes import format_size
from environments.models import Build

STAGES = (
    BuildState.QUEUED,
    BuildState.SOLVING,
    BuildState.FETCHING,
    BuildState.LINKING,
    BuildState.CHECKING,
    BuildState.PUBLISHING,
)
#: Earlier READY builds whose median is shown.
COMPARED = 8
#: A stage that takes longer than this multiple of the median is marked.
SLOW = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage; `kind` is the class of its element, `fill` the length of its bar in percent."""

    state: str
    kind: str
    icon: str
    seconds: float | None
    usual: float | None
    fill: float
    bar: str

    @property
    def word(self) -> str:
        return self.state.capitalize()

    @property
    def label(self) -> str:
        spent = "not started" if self.seconds is None else duration(self.seconds)
        return f"{self.word}: {spent}" + (f", usually {duration(self.usual)}" if self.usual else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """Medians of the last builds of an environment."""

    stages: Mapping[str, float]
    total: float | None
    builds: int


def usual_of(build: Build) -> Usual:
    """Return the medians of the READY builds of the same environment before this build."""
    rows = (
        Build.objects.filter(
            environment=build.environment_id, state=BuildState.READY, number__lt=build.number
        )
        .exclude(timings={})
        .order_by("-number")
        .values_list("timings", flat=True)[:COMPARED]
    )
    known = [dict(timings) for timings in rows]
    stages = {
        state.value: median(values)
        for state in STAGES
        if (values := [one[state.value] for one in known if state.value in one])
    }
    total = median(sum(one.values()) for one in known) if known else None
    return Usual(stages=stages, total=total, builds=len(known))


def spent_of(build: Build, events: Sequence[Any], now: datetime) -> dict[str, float]:
    """Return the seconds of each stage of the last attempt, from its events and timings."""
    last: list[Any] = []
    for event in events:
        if event.state == BuildState.QUEUED and last and last[-1].state != BuildState.HELD:
            last = []  # another attempt
        last.append(event)
    spent: dict[str, float] = {}
    for event, after in zip_longest(last, last[1:]):
        end = after.at if after is not None else now
        if after is not None or event.state not in FINISHED:
            seconds = max(0.0, (end - event.at).total_seconds())
            spent[event.state] = spent.get(event.state, 0.0) + seconds
    return spent | (dict(build.timings) if build.finished else {})


def stages_of(build: Build, events: Sequence[Any], usual: Usual) -> list[Stage]:
    """Return the six stages, with the one that failed or was interrupted marked."""
    spent = spent_of(build, events, timezone.now())
    reached = [state for state in STAGES if state.value in spent]
    return [_stage(build, state, spent, usual, last=reached[-1:] == [state]) for state in STAGES]


def _stage(
    build: Build, state: BuildState, spent: Mapping[str, float], usual: Usual, *, last: bool
) -> Stage:
    seconds, normal = spent.get(state.value), usual.stages.get(state.value)
    kind, icon = "is-done", "st-ready"
    if build.state == state:
        kind, icon = "is-now", f"st-{state.lower()}"
    elif seconds is None:
        kind, icon = "is-wait", "st-wait"
    elif last and build.state == BuildState.FAILED:
        kind, icon = "is-failed", "st-failed"
    elif last and build.state == BuildState.HELD:
        kind, icon = "is-held", "st-held"
    elif last and build.state in {BuildState.CANCELLED, BuildState.CANCELLING}:
        kind, icon = "is-wait", "st-cancelled"
    slow = seconds is not None and normal is not None and seconds > SLOW * max(normal, 1.0)
    fill = 0.0
    if seconds is not None:
        fill = 100.0 if normal is None else min(100.0, 100 * seconds / max(normal, seconds, 0.1))
        if kind == "is-now" and normal is None:
            fill = 50.0
    bar = "is-warn" if slow else "is-run" if kind == "is-now" else ""
    return Stage(
        state=state.value,
        kind=kind,
        icon=icon,
        seconds=seconds,
        usual=normal,
        fill=fill,
        bar="is-bad" if kind == "is-failed" else bar,
    )


def progress_of(build: Build) -> str:
    """Return how far the current stage is: `62 of 87 packages`, with bytes where known."""
    progress = build.progress
    if build.state not in RUNNING or not progress.get("total"):
        return ""
    text = f"{progress.get('done', 0):,} of {progress['total']:,}"
    if progress.get("bytes_total"):
        done, total = progress.get("bytes_done", 0), progress["bytes_total"]
        text += f", {format_size(done)} of {format_size(total)}"
    return text


def summary_of(build: Build, usual: Usual, spent: Mapping[str, float], waiting: int) -> str:
    """Return the state of the build in one or two sentences."""
    state, done = BuildState(build.state), progress_of(build)
    left = ""
    if state in STAGES and usual.total:
        rest = max(0.0, usual.total - sum(value for key, value in spent.items() if key != "QUEUED"))
        left = f" About {duration(round(rest))} are left." if rest >= 1.5 else ""
    match state:
        case BuildState.QUEUED:
            text = "The build waits for a worker."
            usually = f" It then usually takes {duration(usual.total)}." if usual.total else ""
            return text + usually
        case BuildState.SOLVING:
            return f"The solver selects the packages.{left}"
        case BuildState.FETCHING:
            return (f"Packages are fetched: {done}." if done else "Packages are fetched.") + left
        case BuildState.LINKING:
            return (f"Packages are linked: {done}." if done else "Packages are linked.") + left
        case BuildState.CHECKING:
            return f"The linked environment is checked.{left}"
        case BuildState.PUBLISHING:
            return f"The environment is published.{left}"
        case BuildState.HELD:
            noun = "One package needs" if waiting == 1 else f"{waiting} packages need"
            return f"{noun} a decision. The build then continues automatically."
        case BuildState.READY:
            total = sum(build.timings.values())
            return f"The build is ready. It took {duration(total)}." if total else "Ready to use."
        case BuildState.FAILED:
            return "The build failed."
        case BuildState.CANCELLING:
            return "The worker stops the build."
        case BuildState.CANCELLED:
            return "The build was cancelled."
        case BuildState.ARCHIVED:
            return "The folder was deleted. The lock is kept: the build can be restored."
