"""Send messages for work that is due; a queue that is down loses nothing.

A message is only a hint that a row is due. The row records when its message was sent. The sweep of
the scheduler sends a message again that was not sent, or that counts as lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from dramatiq.errors import BrokerError
from redis.exceptions import RedisError

from environments import tasks
from environments.jobs import fair_previews, fair_queue
from environments.models import (
    Artifact,
    Build,
    FolderRestore,
    MirrorIndex,
    MirrorView,
    Notification,
    Preview,
    Push,
)
from environments.models.leased_work import LeasedWork

logger = structlog.get_logger(__name__)
#: What the libraries of brokers raise if the broker cannot be reached.
DOWN = (BrokerError, RedisError, OSError)
#: After so many sweeps the message of a row that is still due counts as lost; while a worker is
#: idle, after fewer. Behind a long queue it is only sent again: a second delivery does nothing.
RESEND_SWEEPS, RESEND_SWEEPS_IDLE = 6, 2
#: The same for work that waits for other servers.
REMOTE_RESEND = timedelta(minutes=10)
MIRROR_RESEND = timedelta(minutes=2)
#: Rows that one sweep sends messages for.
BATCH, MIRROR_BATCH, PREVIEW_BATCH = 500, 50, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How messages of one kind of leased work are sent."""

    actor: Any
    #: A message that was sent so long ago counts as lost.
    resend: Callable[[], timedelta]
    #: Of the rows that are due, those that the sweep sends messages for, in order.
    select: Callable[[Any], Iterable[LeasedWork]] = lambda rows: rows.order_by("pk")[:BATCH]


def _sweeps(number: int) -> timedelta:
    interval: timedelta = settings.SWEEP_INTERVAL
    return number * interval


def _resend_builds() -> timedelta:
    due = Build.objects.due(timezone.now()).exists()
    idle = due and fair_queue.somebody_is_idle()
    return _sweeps(RESEND_SWEEPS_IDLE if idle else RESEND_SWEEPS)


def _most_urgent(rows: Any) -> Iterable[FolderRestore]:
    """Return as many missing folders as may be restored at once.

    Each worker that ends one sends for the next; these are for the first ones, and for lost ones.
    """
    free = settings.RESTORES_AT_ONCE - FolderRestore.objects.running(timezone.now()).count()
    found: Iterable[FolderRestore] = rows.by_urgency()[: max(0, free)]
    return found


def _by_due_time(rows: Any) -> Iterable[LeasedWork]:
    found: Iterable[LeasedWork] = rows.order_by("not_before")[:BATCH]
    return found


def _oldest_previews(rows: Any) -> Iterable[Preview]:
    """Return the oldest, without those that the message of their submission covers."""
    fresh = fair_previews.is_fresh(timezone.now())
    found: Iterable[Preview] = rows.exclude(fresh).order_by("created_at")[:PREVIEW_BATCH]
    return found


def _mirrored_subdirs(rows: Any) -> Iterable[MirrorIndex]:
    """Return indexes of subdirs that are mirrored; others keep their history."""
    due = rows.select_related("mirror").order_by("not_before")
    return [row for row in due if row.subdir in row.mirror.subdirs][:MIRROR_BATCH]


KINDS: Mapping[type[LeasedWork], Kind] = {
    Build: Kind(actor=tasks.run_next_build, resend=_resend_builds),
    Artifact: Kind(actor=tasks.make_artifact, resend=lambda: _sweeps(RESEND_SWEEPS)),
    FolderRestore: Kind(
        actor=tasks.restore_next_folder,
        resend=lambda: _sweeps(RESEND_SWEEPS),
        select=_most_urgent,
    ),
    Notification: Kind(
        actor=tasks.deliver_notification, resend=lambda: REMOTE_RESEND, select=_by_due_time
    ),
    Push: Kind(actor=tasks.push_image, resend=lambda: REMOTE_RESEND, select=_by_due_time),
    Preview: Kind(
        actor=tasks.run_next_preview, resend=lambda: fair_previews.FRESH, select=_oldest_previews
    ),
    MirrorIndex: Kind(
        actor=tasks.read_mirror, resend=lambda: MIRROR_RESEND, select=_mirrored_subdirs
    ),
    MirrorView: Kind(
        actor=tasks.render_mirror_view,
        resend=lambda: MIRROR_RESEND,
        select=lambda rows: rows.order_by("pk")[:MIRROR_BATCH],
    ),
}


def send(row: LeasedWork) -> bool:
    """Send the message that `row` is due; False if the queue is down.

    The row is marked first: a worker that is quick may have requeued it by the end of the sending.
    """
    unclaimed = type(row)._default_manager.filter(pk=row.pk, lease_token=row.lease_token)
    unclaimed.update(message_sent_at=timezone.now())
    return _enqueue(row)


def queue(row: LeasedWork) -> None:
    """Send the message of `row` once this transaction is committed."""
    transaction.on_commit(lambda: send(row))


def queue_marked(row: LeasedWork) -> None:
    """Send the message of a row that this transaction creates with `message_sent_at`.

    That saves a write after the commit, for which SQLite's writers would queue once more. A message
    that is lost between the commit and the queue is sent again by the sweep, like any other.
    """
    transaction.on_commit(lambda: _enqueue(row))


def _enqueue(row: LeasedWork) -> bool:
    key = row.pk if isinstance(row.pk, int) else str(row.pk)
    try:
        KINDS[type(row)].actor.send(key)
    except DOWN as error:
        name = str(row._meta.model_name)
        logger.warning("queue unreachable", error=str(error), **{name: key})
        type(row)._default_manager.filter(pk=row.pk).update(message_sent_at=None)
        return False
    return True


def send_due(model: type[LeasedWork]) -> None:
    """Send messages for the rows of one kind that are due and that no message covers."""
    kind = KINDS[model]
    now = timezone.now()
    rows: Any = model._default_manager
    for row in kind.select(rows.due(now).unsent(now, resend=kind.resend())):
        if not send(row):
            return


def queue_due(model: type[LeasedWork]) -> None:
    """Send messages for the rows of one kind once this transaction is committed."""
    transaction.on_commit(lambda: send_due(model))


def queue_tidy() -> None:
    """Queue the removal of unneeded folders once this transaction is committed."""
    transaction.on_commit(lambda: _send_task(tasks.tidy))


def queue_collection(*, orphans: bool) -> None:
    """Queue the garbage collection of blobs; with `orphans` also of files without a row."""
    _send_task(tasks.collect, orphans)


def queue_check_of_people() -> None:
    """Queue the check of accounts at their directories."""
    _send_task(tasks.check_people)


def _send_task(actor: Any, *arguments: Any) -> None:
    """Send a message that no row covers; the next round of the scheduler sends a lost one again."""
    try:
        actor.send(*arguments)
    except DOWN as error:
        logger.warning("queue unreachable", task=actor.actor_name, error=str(error))
