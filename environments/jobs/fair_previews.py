"""Order in which previews run, and when a slow one makes way for another namespace.

As for builds (`queue_order`, `slot_sharing`): a message says only that a preview is due. The next
one is the oldest of the namespace with the fewest previews running, then of that which was served
longest ago. Where a preview waits of a namespace that has none running, one that takes more than
moments goes back to the queue, and starts again later: the newest of a namespace with several; or,
where slow ones of several namespaces hold all of a worker's slots, the newest of that worker. The
oldest of a worker always goes on, so each comes to its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import Error
from django.db.models import Count, Max, Min, Q, QuerySet
from django.utils import timezone

from environments.jobs.slot_sharing import PATIENCE, UNDISTURBED
from environments.models import Preview
from environments.models.clock_bounds import older
from environments.models.previews import PreviewState
from environments.services import thread_bounds

#: The sweep sends no message for what came so recently.
FRESH = timedelta(seconds=5)
#: How often a worker looks for another preview where others were faster.
_TRIES = 100
#: Seconds between two questions to the database whether a preview should make way.
_INTERVAL = 1.0
NEVER = datetime.min.replace(tzinfo=UTC)


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
        places = due().order_by().values_list("namespace")
        oldest = dict(places.annotate(Min("created_at")))
        if not oldest:
            return
        served = _served(oldest)
        waiting = {key: (served.get(key, NEVER), first) for key, first in oldest.items()}
        counts = _running().order_by().values_list("namespace").annotate(Count("pk"))
        running = dict(counts)
        namespace = min(waiting, key=lambda key: (running.get(key, 0), waiting[key]))
        preview = due().filter(namespace=namespace).values_list("pk", flat=True).first()
        if preview is not None:
            yield str(preview)


def _served(namespaces: Collection[int]) -> dict[int, datetime]:
    """Return when a preview of each namespace last started, those included that are finished."""
    unlikely = older("started_at", timezone.now(), than=Preview.KEPT)
    started = Preview.objects.filter(namespace__in=namespaces, started_at__isnull=False)
    found = started.exclude(unlikely).order_by().values_list("namespace")
    return dict(found.annotate(Max("started_at")))


def should_make_way(preview: Preview, *, last_slot: bool = False) -> bool:
    """Return whether `preview` should give its slot to one of another namespace.

    Args:
        last_slot: it is the newest of a worker that has no slot free.
    """
    mine = _running().filter(namespace=preview.namespace_id)
    newest = mine.order_by("-started_at", "-pk").values_list("pk", flat=True).first()
    if not last_slot and (newest != preview.pk or mine.count() < 2):
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
                last_slot = _has_last_slot(self)
                self.made_way = should_make_way(self._preview, last_slot=last_slot)
            except Error:
                return now > self._deadline  # an outage is no reason to stop
        return self.made_way or now > self._deadline


#: Of the previews that this worker runs, the newest last.
_watches: list[Watch] = []
_guard = threading.Lock()


@contextmanager
def watching(preview: Preview, *, limit: timedelta) -> Iterator[Watch]:
    """Watch a preview while this worker runs it."""
    watch = Watch(preview, limit=limit)
    with _guard:
        _watches.append(watch)
    try:
        yield watch
    finally:
        with _guard:
            _watches.remove(watch)


def _has_last_slot(watch: Watch) -> bool:
    """Return whether it is the newest of several, which hold all slots of this worker."""
    with _guard:
        return (
            len(_watches) > 1
            and _watches[-1] is watch
            and thread_bounds.is_reached(thread_bounds.Kind.PREVIEW)
        )
