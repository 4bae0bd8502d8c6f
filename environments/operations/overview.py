"""What waits for a person, what is being built, and the person's environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.db.models import Count, F, Min, Q, QuerySet
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from environments.domain.lifecycle import FINISHED, BuildState
from environments.models import ApprovalRequest, Build, Environment, Namespace, RecalledLock
from environments.models.environments import shared_environments
from environments.operations.environment_search import EnvironmentSummary, summaries

#: Rows of each list.
LIMIT = 10
#: Failed builds that are older are not shown as waiting.
RECENT = timedelta(days=30)
#: Finished builds of an environment whose median is its usual duration.
LAST_BUILDS = 5

_UNFINISHED = sorted(set(BuildState) - FINISHED)
_LARGE = ("source", "log_archive", "verdicts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Undecided approval requests of one namespace that the person may decide."""

    namespace: str
    requests: int
    builds: int  # that wait for them
    oldest: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningBuild:
    """An unfinished build, with its duration so far and the usual one in seconds, if known."""

    build: Build
    seconds: float
    usual: float | None

    @property
    def percent(self) -> float:
        return min(100.0, 100 * self.seconds / self.usual) if self.usual else 0.0


def decisions_of(actor: Actor) -> list[Decisions]:
    """Return what the actor may decide, by namespace, the oldest request first."""
    if not actor.signed_in:
        return []
    rows = ApprovalRequest.objects.with_perm(actor, Perm.APPROVE).undecided().order_by()
    found = (
        rows.values("namespace__name")
        .annotate(
            requests=Count("pk", distinct=True),
            builds=Count("builds", filter=Q(builds__state=BuildState.HELD), distinct=True),
            oldest=Min("opened_at"),
        )
        .order_by("oldest")
    )
    return [
        Decisions(
            namespace=row["namespace__name"],
            requests=row["requests"],
            builds=row["builds"],
            oldest=row["oldest"],
        )
        for row in found[:LIMIT]
    ]


def own_environments(actor: Actor) -> QuerySet[Environment]:
    """Return the environments that the actor created, may build in by a role, or was given.

    For those who see everything these are the ones that they created or built.
    """
    if not actor.signed_in:
        return Environment.objects.none()
    own = Q(created_by=actor.account)
    if actor.sees_everything:
        own |= Q(pk__in=_built_by(actor))
    else:
        own |= Q(namespace__in=Namespace.objects.with_perm(actor, Perm.BUILD).order_by())
        own |= Q(pk__in=shared_environments(actor))
    return Environment.objects.visible_to(actor).filter(own)


def _built_by(actor: Actor) -> QuerySet[Build, Any]:
    return Build.objects.filter(requested_by=actor.account).order_by().values("environment")


def summaries_of_own(actor: Actor) -> list[EnvironmentSummary]:
    """Return the actor's environments, last used or changed first."""
    rows = own_environments(actor).select_related("namespace", "current__prefix", "created_by")
    rows = rows.defer(*(f"current__{name}" for name in _LARGE))
    rows = rows.order_by(F("used_at").desc(nulls_last=True), "-updated_at", "-pk")
    return summaries(list(rows[:LIMIT]))


def failed_builds(actor: Actor) -> Sequence[Build]:
    """Return newest builds of environments that failed and that the actor requested."""
    rows = Build.objects.visible_to(actor).filter(
        requested_by=actor.account,
        state=BuildState.FAILED,
        finished_at__gt=timezone.now() - RECENT,
        number=F("environment__last_number"),
    )
    rows = rows.select_related("environment__namespace").defer(*_LARGE)
    return list(rows.order_by("-finished_at")[:LIMIT])


def recalled_environments(actor: Actor) -> Sequence[Environment]:
    """Return the actor's environments whose current build holds a recalled package."""
    recalled = RecalledLock.objects.active().order_by().values("lock")
    rows = own_environments(actor).filter(current__lock__in=recalled)
    return list(rows.select_related("namespace").order_by("namespace__name", "name")[:LIMIT])


def held_builds(actor: Actor) -> Sequence[Build]:
    """Return the actor's builds that wait for a decision of others."""
    rows = Build.objects.visible_to(actor).filter(requested_by=actor.account, state=BuildState.HELD)
    rows = rows.select_related("environment__namespace").defer(*_LARGE)
    return list(rows.order_by("created_at")[:LIMIT])


def running_builds(actor: Actor) -> list[RunningBuild]:
    """Return queued and running builds in the actor's environments, oldest first."""
    rows = Build.objects.visible_to(actor).filter(
        Q(requested_by=actor.account) | Q(environment__in=own_environments(actor).order_by()),
        state__in=[one for one in _UNFINISHED if one != BuildState.HELD],
    )
    builds = list(
        rows.select_related("environment__namespace").defer(*_LARGE).order_by("created_at")[:LIMIT]
    )
    usual = usual_seconds([build.environment_id for build in builds])
    now = timezone.now()
    return [
        RunningBuild(
            build=build,
            seconds=max(
                0.0, (now - (build.attempt_started_at or build.created_at)).total_seconds()
            ),
            usual=usual.get(build.environment_id),
        )
        for build in builds
    ]


def usual_seconds(environments: Sequence[int]) -> dict[int, float]:
    """Return the median duration of the last READY builds of each environment, in seconds."""
    rows = (
        Build.objects.filter(
            environment__in=set(environments),
            state=BuildState.READY,
            number__gt=F("environment__last_number") - 4 * LAST_BUILDS,
        )
        .order_by("-number")
        .values_list("environment", "timings")
    )
    durations: dict[int, list[float]] = {}
    for environment, timings in rows:
        known = durations.setdefault(environment, [])
        if timings and len(known) < LAST_BUILDS:
            known.append(sum(timings.values()))
    return {key: median(values) for key, values in durations.items() if values}
