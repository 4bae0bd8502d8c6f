"""What the scheduler does every few seconds: nothing hangs, whoever died meanwhile."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.sessions import SessionStore
from condastore.errors import LeaseLostError, TransitionError
from environments import tasks
from environments.domain.artifacts import ArtifactState
from environments.domain.lifecycle import FINISHED, RUNNING
from environments.jobs import fair_previews, fair_queue
from environments.models import (
    Artifact,
    Build,
    Channel,
    FolderRestore,
    MirrorView,
    Notification,
    Preview,
    Worker,
)
from environments.models.clock_bounds import older
from environments.models.folder_restores import RestoreState
from environments.models.pending_grants import settle_all
from environments.operations import audit, due_times, queueing, retention
from environments.operations.lease_watch import LeaseWatch, Seen
from environments.services import mirrors

logger = structlog.get_logger(__name__)
#: A message that was sent so many sweeps ago, for a build that is still queued, is taken for lost;
#: while a worker is idle, after fewer. Behind a long queue it is only sent again: the second
#: delivery of a build does nothing.
RESEND, RESEND_TO_IDLE = 6, 2
INDEX_AGE = timedelta(hours=1)
#: Seconds until a channel is read again that could not be read.
INDEX_RETRY = 300.0
#: How often the rows are compared with what the blob store lists.
ORPHANS = timedelta(days=1)
#: A message about a mirror of which nothing came for so long is taken for lost.
MIRROR_PATIENCE = timedelta(minutes=2)
_last: dict[str, float] = {}
_watch = LeaseWatch(lease=settings.LEASE, interval=settings.SWEEP_INTERVAL)


def outage() -> None:
    """Give workers time to renew their leases: the database could not be reached."""
    _watch.forget()


def sweep() -> None:
    """One round. Each step is a guarded UPDATE: two schedulers at once do no harm."""
    due_times.correct(timezone.now())
    give_up_lost_builds(_watch)
    give_up_lost_artifacts(_watch)
    give_up_lost_restores(_watch)
    send_forgotten_messages()
    queueing.send_restores()
    queueing.send_notifications()
    queueing.send_pushes()
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
    queue_mirrors()
    if settings.AUDIT_ANCHOR and _every("anchor", settings.AUDIT_ANCHOR_INTERVAL):
        audit.store_checkpoint()
    if _every("collect", settings.COLLECTION_INTERVAL):
        queueing.queue_collection(orphans=_every("orphans", ORPHANS))
        retention.apply_rules()
    if settings.DIRECTORIES and _every("people", settings.DIRECTORY_INTERVAL):
        queueing.queue_check_of_people()


def give_up_lost_builds(watch: LeaseWatch | None = None) -> None:
    """Requeue or end builds whose worker went silent.

    Args:
        watch: what the scheduler has seen of the leases; without it a lease that is over is enough.
    """
    if watch is not None:
        watch.observe("build", _leases(Build.objects.filter(state__in=RUNNING)))
    for build in Build.objects.lost(timezone.now()).select_related("environment__namespace"):
        if watch is not None and not watch.is_silent("build", build.pk):
            continue
        try:
            build.give_up_lost(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)
        except (TransitionError, LeaseLostError):
            continue  # its worker came back, or another sweep was first
        logger.warning("worker lost", build=build.pk, attempt=build.attempt, state=build.state)


def give_up_lost_artifacts(watch: LeaseWatch | None = None) -> None:
    """Requeue or fail artifacts whose worker went silent; see `give_up_lost_builds`."""
    if watch is not None:
        watch.observe("artifact", _leases(Artifact.objects.filter(state=ArtifactState.MAKING)))
    for artifact in Artifact.objects.lost(timezone.now()).select_related("lock"):
        if watch is not None and not watch.is_silent("artifact", artifact.pk):
            continue
        with contextlib.suppress(TransitionError, LeaseLostError):
            artifact.give_up_lost(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)
        logger.warning("worker lost", artifact=artifact.pk, attempt=artifact.attempt)


def give_up_lost_restores(watch: LeaseWatch | None = None) -> None:
    """Requeue folders whose worker went silent; see `give_up_lost_builds`."""
    if watch is not None:
        running = FolderRestore.objects.filter(state=RestoreState.RESTORING)
        watch.observe("restore", _leases(running))
    for restore in FolderRestore.objects.lost(timezone.now()).select_related("prefix"):
        if watch is not None and not watch.is_silent("restore", restore.pk):
            continue
        with contextlib.suppress(LeaseLostError):
            restore.give_up_lost(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)
        logger.warning("worker lost", folder=str(restore), attempt=restore.attempt)


def _leases(rows: QuerySet[Any]) -> dict[int, Seen]:
    found = rows.order_by().values_list("pk", "lease_token", "lease_expires_at")
    return {key: (token, end) for key, token, end in found}


def send_forgotten_messages() -> None:
    """Rows that are due and that no message covers: the queue lost it, or was down."""
    now = timezone.now()
    uncovered = _uncovered(now, RESEND)
    builds = Build.objects.due(now)
    if builds.exists():
        covered_again = RESEND_TO_IDLE if fair_queue.somebody_is_idle() else RESEND
        for build in builds.filter(_uncovered(now, covered_again)).order_by("pk")[:500]:
            queueing.send_build(build)
    for artifact in Artifact.objects.due(now).filter(uncovered).order_by("pk")[:500]:
        queueing.send_artifact(artifact)
    for preview in fair_previews.due().exclude(fair_previews.is_fresh(now))[:100]:
        queueing.send_preview(preview)


def _uncovered(now: datetime, sweeps: int) -> Q:
    """Match rows whose message was not sent, or so many sweeps ago that it is taken for lost."""
    return Q(message_sent_at=None) | older(
        "message_sent_at", now, than=sweeps * settings.SWEEP_INTERVAL
    )


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


def queue_mirrors() -> None:
    """Look at the channels that are mirrored; say again what a message was lost of."""
    now = timezone.now()
    unsent = Q(message_sent_at=None) | older("message_sent_at", now, than=MIRROR_PATIENCE)
    due = mirrors.due_indexes(now, interval=settings.MIRROR_INTERVAL).filter(unsent)
    # A platform that is not mirrored any more keeps its history, in case it is again.
    mirrored = [one for one in due.select_related("mirror") if one.subdir in one.mirror.subdirs]
    for index in mirrored[:50]:
        queueing.send_look(index)
    waiting = MirrorView.objects.filter(unsent, MirrorView.free(now), made_at=None)
    for view in waiting.exclude(message_sent_at=None)[:50]:
        queueing.send_view(view)


def _every(what: str, interval: timedelta) -> bool:
    """True at most once in `interval`, in this process."""
    now = time.monotonic()
    if now - _last.get(what, float("-inf")) < interval.total_seconds():
        return False
    _last[what] = now
    return True
