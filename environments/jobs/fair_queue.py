"""Which build is next? The namespace with the fewest builds running, then that served longest ago.

A message of the queue only says that something is due. A worker that takes one runs what is next,
whichever build the message was sent for: one namespace with hundreds of builds in the queue delays
another's first by the builds that run already, and by no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from django.db.models import Count, Min
from django.utils import timezone

from environments.domain.lifecycle import RUNNING
from environments.models import Build, Namespace, Worker
from environments.models.builds import BuildQuerySet

#: The queue in which workers take builds.
QUEUE = "builds"
#: How often a worker looks for another build where others were faster.
TRIES = 100
NEVER = datetime.min.replace(tzinfo=UTC)


def next_builds(platform: str) -> Iterator[int]:
    """The build to run now, by its key; asked again, the one to run if another took that one.

    Ends where nothing is due that a worker of this platform should run.
    """
    for _ in range(TRIES):
        due = _due().exclude(platform__in=_served_by_others(platform))
        # Of each namespace its oldest; and how many of its builds run.
        places = due.values_list("environment__namespace", "environment__namespace__served_at")
        found = places.annotate(first=Min("pk"))
        running = dict(
            Build.objects.filter(state__in=RUNNING)
            .order_by()
            .values_list("environment__namespace")
            .annotate(Count("pk"))
        )
        turns = [
            (running.get(place, 0), served_at or NEVER, first, place)
            for place, served_at, first in found
        ]
        if not turns:
            return
        *_, first, place = min(turns)
        Namespace.objects.filter(pk=place).update(served_at=timezone.now())
        yield first


def left_to_others(platform: str) -> bool:
    """Is something due that a worker of another platform should take?"""
    return _due().filter(platform__in=_served_by_others(platform)).exists()


def due_here(platform: str) -> bool:
    """Return True where something is due that a worker of this platform should take."""
    return due_for(platform).exists()


def due_for(platform: str) -> BuildQuerySet:
    """Return what is due that a worker of this platform should take."""
    return _due().exclude(platform__in=_served_by_others(platform))


def somebody_is_idle() -> bool:
    """Return True where a worker is alive that takes builds and runs none."""
    running = (
        Build.objects.filter(state__in=RUNNING).order_by().values_list("lease_owner").distinct()
    )
    busy = {process_of(owner) for (owner,) in running}
    alive = Worker.objects.alive().exclude(platform="").values_list("name", "queues")
    return any(QUEUE in (queues or (QUEUE,)) and name not in busy for name, queues in alive)


def process_of(owner: str) -> str:
    """Return the name of the worker process that is the owner of a lease."""
    return "-".join(owner.split(":")[:2])


def _due() -> BuildQuerySet:
    return Build.objects.due(timezone.now()).order_by()


def _served_by_others(platform: str) -> set[str]:
    """Platforms that have workers of their own: these can try there what they link."""
    alive = Worker.objects.alive().exclude(platform__in=("", platform))
    return {
        one for one, queues in alive.values_list("platform", "queues") if QUEUE in (queues or ())
    }
