"""Retention of the builds of an environment: which are kept, archived and deleted.

Pure functions: they read neither a clock nor the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from environments.domain.lifecycle import BuildState


class Fate(StrEnum):
    KEEP = "keep"
    ARCHIVE = (
        "archive"  # the files are deleted; specification, lock and log stay, and it can be restored
    )
    DELETE = "delete"  # hidden; it can be restored for a limited time


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Bounds of the installation on the rules of namespaces; None means no bound."""

    least_builds: int = 1
    most_builds: int | None = None
    least_days: int = 0
    most_days: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Rules: a build is kept if any rule keeps it. Without the first two everything is kept."""

    keep_last: int | None = None
    keep_days: int | None = None
    keep_tagged: bool = True
    #: Days after archiving; None means never.
    delete_days: int | None = None

    @property
    def active(self) -> bool:
        return self.keep_last is not None or self.keep_days is not None

    def within(self, bounds: Bounds) -> Rules:
        """Apply the bounds. An upper bound applies even if no rule is set."""
        last, days = self.keep_last, self.keep_days
        if not self.active:
            last, days = bounds.most_builds, bounds.most_days
        if last is None and days is None:
            return replace(self, keep_last=None, keep_days=None)
        if last is not None and bounds.most_builds is not None:
            last = min(last, bounds.most_builds)
        if days is not None and bounds.most_days is not None:
            days = min(days, bounds.most_days)
        # Both at once: a build that one of the lower bounds protects is kept.
        last = max(last or 0, bounds.least_builds)
        days = max(days or 0, bounds.least_days)
        return replace(self, keep_last=last, keep_days=days)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Properties of a build that the rules use."""

    number: int
    state: BuildState
    created_at: datetime
    finished_at: datetime | None
    current: bool = False
    tagged: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    number: int
    fate: Fate
    why: str


def decide(builds: Iterable[Candidate], rules: Rules, *, now: datetime) -> list[Decision]:
    """Decide on each build of one environment, newest first.

    `rules` are already `within` the bounds. A READY build is archived before it is deleted; a build
    that never became READY is only deleted.
    """
    ordered = sorted(builds, key=lambda build: -build.number)
    newest: set[int] = set()
    if rules.active:
        usable = [one for one in ordered if one.state in (BuildState.READY, BuildState.ARCHIVED)]
        newest = {one.number for one in usable[: rules.keep_last or 0]}
    return [_decide(build, rules, now, newest=build.number in newest) for build in ordered]


def _decide(build: Candidate, rules: Rules, now: datetime, *, newest: bool) -> Decision:
    if retained := _protected(build, rules):
        return Decision(number=build.number, fate=Fate.KEEP, why=retained)
    if build.state is BuildState.READY:
        if newest:
            why = f"one of the newest {rules.keep_last}"
            return Decision(number=build.number, fate=Fate.KEEP, why=why)
        if _younger(build.created_at, rules.keep_days, now):
            why = f"younger than {rules.keep_days} days"
            return Decision(number=build.number, fate=Fate.KEEP, why=why)
        return Decision(number=build.number, fate=Fate.ARCHIVE, why="no rule keeps it")
    ended = build.finished_at or build.created_at
    if rules.delete_days is None or _younger(ended, rules.delete_days, now):
        return Decision(number=build.number, fate=Fate.KEEP, why="it takes no place")
    if newest or _younger(build.created_at, rules.keep_days, now):
        return Decision(number=build.number, fate=Fate.KEEP, why="a rule keeps it")
    why = f"{build.state.lower()} for {rules.delete_days} days"
    return Decision(number=build.number, fate=Fate.DELETE, why=why)


def _protected(build: Candidate, rules: Rules) -> str:
    """Return why the build is exempt from rules; "" if it is not."""
    if build.held:
        return "under a legal hold"
    if build.current:
        return "current"
    if build.tagged and rules.keep_tagged:
        return "tagged"
    if build.state not in _ENDED:
        return f"it is {build.state}"
    return "" if rules.active else "there are no rules"


_ENDED = frozenset({BuildState.READY, BuildState.ARCHIVED, BuildState.FAILED, BuildState.CANCELLED})


def _younger(moment: datetime, days: int | None, now: datetime) -> bool:
    return days is not None and moment > now - timedelta(days=days)
