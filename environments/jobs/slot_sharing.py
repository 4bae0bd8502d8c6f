"""Sharing of worker slots: slow solves of one namespace make way for builds of another.

A namespace may use every free slot as long as no other namespace has builds due. If a build of
another namespace waits while none of its builds runs, the newest solve of the namespace with
several goes back to the queue. It loses no attempt, and starts again later. So a slow channel does
not block other namespaces; solves that take only moments are never interrupted.
"""

from __future__ import annotations

import time
from datetime import timedelta

from django.utils import timezone

from environments.domain.lifecycle import RUNNING, BuildState
from environments.jobs import fair_queue
from environments.models import Build
from environments.models.clock_bounds import older
from environments.services import platforms

#: A solve that takes less is not disturbed.
UNDISTURBED = timedelta(seconds=5)
#: A build of another namespace waits at least so long before a slot is freed for it.
PATIENCE = timedelta(seconds=2)


def should_make_way(build: Build, platform: str) -> bool:
    """Return whether the solve of `build` should give its slot to another namespace's build.

    Args:
        platform: of this worker.
    """
    mine = Build.objects.filter(environment__namespace=build.environment.namespace_id)
    running = mine.filter(state__in=RUNNING)
    newest = (
        running.filter(state=BuildState.SOLVING)
        .order_by("-attempt_started_at", "-pk")
        .values_list("pk", flat=True)
        .first()
    )
    if newest != build.pk or running.count() < 2:
        return False
    now = timezone.now()
    waiting = fair_queue.due_for(platform).filter(
        older("created_at", now, than=PATIENCE), not_before__lt=now - PATIENCE
    )
    occupied = Build.objects.filter(state__in=RUNNING).values("environment__namespace")
    return waiting.exclude(environment__namespace__in=occupied).exists()


class SlotSharing:
    """Decides when a slow solve makes way."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._from = time.monotonic() + UNDISTURBED.total_seconds()

    def makes_way(self) -> bool:
        """Return whether the solve should stop now; asks the database."""
        return time.monotonic() >= self._from and should_make_way(
            self._build, platforms.own_platform()
        )
