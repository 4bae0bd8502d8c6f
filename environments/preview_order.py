"""Order in which previews run, and when a slow one makes way for another namespace.

As for builds (`queue_order`, `slot_sharing`): a message says only that a preview is due. The next
one is the oldest of the namespace with the fewest previews running. Where a namespace has several
running and one of another namespace waits that has none, the newest that takes more than moments
goes back to the queue, and starts again later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.db import Error
from django.db.models import Count, Min, Q, QuerySet
from django.utils import timezone

from environments.models import Preview
from environments.models.clock_bounds import older
from environments.models.previews import PreviewState
from environments.slot_sharing import PATIENCE, UNDISTURBED

#: The sweep sends no message for what came so recently.
FRESH = timedelta(seconds=5)
#: How often a worker looks for another preview where others were faster.
_TRIES = 100
#: Seconds between two questions to the database whether a preview should make way.
_INTERVAL = 1.0


def due() -> QuerySet[Preview]:
    """Return previews that wait, or whose worker was silent for the time of a solve."""
    silent = older("started_at", timezone.now(), than=settings.SOLVE_TIME_LIMIT)
    lost = silent & Q(state=PreviewState.SOLVING)
    return Preview.objects.filter(Q(state=PreviewState.QUEUED) | lost).order_by("created_at", "pk")


def is_fresh(now: datetime) -> Q:
    """Match previews that came so recently that the message of their submission covers them."""
    return Q(state=PreviewState.QUEUED) & ~older("created_at", now, than=FRESH)


def is_covered(preview_id: str) -> bool:
    """Return whether the preview waits, and only the message of its submission covers it."""
    return Preview.objects.filter(is_fresh(timezone.now()), pk=preview_id).exists()


def next_previews() -> Iterator[str]:
    """Yield the key of the preview to run now; the next time, if another worker took that one.

    Ends where nothing is due.
    """
    for _ in range(_TRIES):
        oldest = due().order_by().values_list("namespace").annotate(first=Min("created_at"))
        waiting = dict(oldest)
        if not waiting:
            return
        counts = _running().order_by().values_list("namespace").annotate(Count("pk"))
        running = dict(counts)
        namespace = min(waiting, key=lambda key: (running.get(key, 0), waiting[key]))
        found = due().filter(namespace=namespace).values_list("pk", flat=True).first()
        if found is not None:
            yield str(found)


def should_make_way(preview: Preview) -> bool:
    """Return whether `preview` should give its slot to one of another namespace."""
    mine = _running().filter(namespace=preview.namespace_id)
    newest = mine.order_by("-started_at", "-pk").values_list("pk", flat=True).first()
    if newest != preview.pk or mine.count() < 2:
        return False
    others = due().filter(older("created_at", timezone.now(), than=PATIENCE))
    occupied = _running().order_by().values("namespace")
    return others.exclude(namespace__in=occupied).exists()


def _running() -> QuerySet[Preview]:
    return Preview.objects.filter(state=PreviewState.SOLVING).exclude(
        older("started_at", timezone.now(), than=settings.SOLVE_TIME_LIMIT)
    )


class Watch:
    """Tells a running preview when to stop: at its deadline, or to make way."""

    def __init__(self, preview: Preview, *, limit: timedelta) -> None:
        self._preview = preview
        self._deadline = time.monotonic() + limit.total_seconds()
        self._next = time.monotonic() + UNDISTURBED.total_seconds()
        self.made_way = False

    def should_stop(self) -> bool:
        """Return whether the preview should stop now; asks the database once a second."""
        now = time.monotonic()
        if not self.made_way and now >= self._next:
            self._next = now + _INTERVAL
            try:
                self.made_way = should_make_way(self._preview)
            except Error:
                return now > self._deadline  # an outage is no reason to stop
        return self.made_way or now > self._deadline
