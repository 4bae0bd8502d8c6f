"""Scheduler sweep: requeue work whose worker disappeared, and start what is due."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.sessions import SessionStore
from condastore.errors import LeaseLostError, TransitionError
from environments import tasks
from environments.domain.lifecycle import FINISHED
from environments.models import (
    Build,
    Channel,
    Notification,
    Preview,
    Worker,
)
from environments.models.clock_bounds import older
from environments.models.leased_work import LeasedWork
from environments.models.pending_grants import settle_all
from environments.operations import audit, due_times, queueing, retention
from environments.operations.lease_watch import LeaseWatch, Seen
from environments.services import mirrors

logger = structlog.get_logger(__name__)
INDEX_AGE = timedelta(hours=1)
#: Seconds until a channel is read again that could not be read.
INDEX_RETRY = 300.0
#: How often the rows are compared with what the blob store lists.
ORPHANS = timedelta(days=1)
_last: dict[str, float] = {}
_watch = LeaseWatch(lease=settings.LEASE, interval=settings.SWEEP_INTERVAL)


def outage() -> None:
    """Give workers time to renew their leases: the database could not be reached."""
    _watch.forget()


def sweep() -> None:
    """One round. Each step is a guarded UPDATE: two schedulers at once do no harm."""
    due_times.correct(timezone.now())
    sweep_leased_work(_watch)
    if _every("tidy", settings.TRASH_INTERVAL):
        queueing.queue_tidy()
        Worker.objects.filter(expires_at__lt=timezone.now() - timedelta(hours=1)).delete()
        Preview.objects.filter(created_at__lt=timezone.now() - Preview.KEPT).delete()
        Notification.objects.filter(created_at__lt=timezone.now() - Notification.KEPT).delete()
        SessionStore.clear_expired()
        fold_logs()
        queue_indexing()
        mirrors.delete_unused_views()
        settle_all()
    if settings.AUDIT_ANCHOR and _every("anchor", settings.AUDIT_ANCHOR_INTERVAL):
        audit.store_checkpoint()
    if _every("collect", settings.COLLECTION_INTERVAL):
        queueing.queue_collection(orphans=_every("orphans", ORPHANS))
        retention.apply_rules()
    if settings.DIRECTORIES and _every("people", settings.DIRECTORY_INTERVAL):
        queueing.queue_check_of_people()


def give_up_lost(model: type[LeasedWork], watch: LeaseWatch | None = None) -> None:
    """Requeue or end rows of one kind whose worker stopped renewing the lease.

    Args:
        watch: what the scheduler has seen of the leases; without it an expired lease is enough.
    """
    kind = str(model._meta.model_name)
    rows: Any = model._default_manager
    leases = _leases(rows.leased())
    if watch is not None:
        watch.observe(kind, leases)
    if not leases:
        return
    for row in rows.lost(timezone.now()):
        if watch is not None and not watch.is_silent(kind, row.pk):
            continue
        try:
            row.give_up_lost()
        except (TransitionError, LeaseLostError):
            continue  # its worker came back, or another sweep was first
        logger.warning("worker lost", attempt=row.attempt, state=row.state, **{kind: row.pk})


def _leases(rows: QuerySet[Any]) -> dict[Any, Seen]:
    found = rows.order_by().values_list("pk", "lease_token", "lease_expires_at")
    return {key: (token, end) for key, token, end in found}


def sweep_leased_work(watch: LeaseWatch | None = None) -> None:
    """Requeue lost work, and send messages for what is due and that no message covers."""
    for model in queueing.KINDS:
        give_up_lost(model, watch)
        queueing.send_due(model)


def fold_logs() -> None:
    """Compress the logs of builds that ended without a worker (cancelled while they waited)."""
    ended = timezone.now() - timedelta(minutes=1)
    unfolded = Build.objects.filter(
        state__in=FINISHED, finished_at__lt=ended, log_archive=None, log_lines__gt=0
    )
    for build in unfolded.order_by("pk")[:100]:
        build.archive_log()


#: When this process last sent a channel to be read, by its key.
_indexing_sent: dict[int, float] = {}


def queue_indexing() -> None:
    old = Q(indexed_at=None) | older("indexed_at", timezone.now(), than=INDEX_AGE)
    now = time.monotonic()
    recent = [key for key, sent in _indexing_sent.items() if now - sent < INDEX_RETRY]
    for channel in Channel.objects.filter(old).exclude(pk__in=recent)[:20]:
        try:
            tasks.index_channel.send(channel.pk)
            _indexing_sent[channel.pk] = now
        except queueing.DOWN as error:
            logger.warning("queue unreachable", task="index_channel", error=str(error))
            return


def _every(what: str, interval: timedelta) -> bool:
    """True at most once in `interval`, in this process."""
    now = time.monotonic()
    if now - _last.get(what, float("-inf")) < interval.total_seconds():
        return False
    _last[what] = now
    return True
