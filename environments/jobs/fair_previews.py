"""Order in which previews run, and when a slow one makes way for another namespace.

As for builds (`fair_queue`, `slot_sharing`), a message says only that a preview is due. The next
one is the oldest of the namespace with the fewest previews running, then of the namespace that was
served longest ago. If a preview waits of a namespace that has none running, a preview that takes
more than moments goes back to the queue and starts again later: the newest of a namespace with
several; or, if slow ones of several namespaces hold all slots of a worker, the newest of that
worker. The oldest preview of a worker always continues, so each comes to its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

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
    """Return previews that wait for a worker, oldest first."""
    return Preview.objects.due(timezone.now()).order_by("created_at", "pk")


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
        locations = due().order_by().values_list("namespace")
        oldest = dict(locations.annotate(Min("created_at")))
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
    return Preview.objects.running(timezone.now())


class PreviewSlot:
    """The slot of a worker in which a preview runs."""

    def __init__(self, preview: Preview) -> None:
        self._preview = preview
        self._next = time.monotonic() + UNDISTURBED.total_seconds()

    def makes_way(self) -> bool:
        """Return whether the preview should stop now; asks the database once a second."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _INTERVAL
        return should_make_way(self._preview, last_slot=_has_last_slot(self))


#: Slots of the previews that this worker runs, the newest last.
_slots: list[PreviewSlot] = []
_guard = threading.Lock()


@contextmanager
def hold_slot(preview: Preview) -> Iterator[PreviewSlot]:
    """Hold a slot of this worker while a preview runs."""
    slot = PreviewSlot(preview)
    with _guard:
        _slots.append(slot)
    try:
        yield slot
    finally:
        with _guard:
            _slots.remove(slot)


def _has_last_slot(slot: PreviewSlot) -> bool:
    """Return whether it is the newest of several, which hold all slots of this worker."""
    with _guard:
        return (
            len(_slots) > 1
            and _slots[-1] is slot
            and thread_bounds.is_reached(thread_bounds.Kind.PREVIEW)
        )
