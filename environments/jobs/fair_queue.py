"""Fair order of builds: first the namespace with the fewest builds running, then the one that was
served longest ago.

A message of the queue only says that some build is due. The worker that takes it runs the next
build of this order, which may be another one. So a namespace with hundreds of queued builds delays
the first build of another namespace only by the builds that run already.
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
#: How often a worker tries another build after other workers were faster.
TRIES = 100
NEVER = datetime.min.replace(tzinfo=UTC)


def next_builds(platform: str) -> Iterator[int]:
    """Yield the key of the build to run now; the next one if another worker claimed that one.

    Ends if no build is due that a worker of this platform should run.
    """
    for _ in range(TRIES):
        due = _due().exclude(platform__in=_served_by_others(platform))
        # Of each namespace its oldest; and how many of its builds run.
        locations = due.values_list("environment__namespace", "environment__namespace__served_at")
        found = locations.annotate(first=Min("pk"))
        running = dict(
            Build.objects.filter(state__in=RUNNING)
            .order_by()
            .values_list("environment__namespace")
            .annotate(Count("pk"))
        )
        turns = [
            (running.get(location, 0), served_at or NEVER, first, location)
            for location, served_at, first in found
        ]
        if not turns:
            return
        *_, first, location = min(turns)
        Namespace.objects.filter(pk=location).update(served_at=timezone.now())
        yield first


def left_to_others(platform: str) -> bool:
    """Return True if a build is due that a worker of another platform should take."""
    return _due().filter(platform__in=_served_by_others(platform)).exists()


def due_here(platform: str) -> bool:
    """Return True if a build is due that a worker of this platform should take."""
    return due_for(platform).exists()


def due_for(platform: str) -> BuildQuerySet:
    """Return builds that are due and that a worker of this platform should take."""
    return _due().exclude(platform__in=_served_by_others(platform))


def somebody_is_idle() -> bool:
    """Return True if a live worker takes builds and runs none."""
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
