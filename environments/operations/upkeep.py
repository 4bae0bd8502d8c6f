"""What the scheduler does every few seconds: nothing hangs, whoever died meanwhile."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta

import structlog
from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from environments import mirrors, tasks
from environments.domain.errors import LeaseLostError, TransitionError
from environments.domain.lifecycle import FINISHED
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
from environments.models.pending_grants import settle_all
from environments.models.previews import PreviewState
from environments.operations import audit, queueing, retention

logger = structlog.get_logger(__name__)
#: A message that was sent so many sweeps ago, for a build that is still queued, is taken for lost.
#: Behind a long queue it is only sent again: the second delivery of a build does nothing.
RESEND = 6
INDEX_AGE = timedelta(hours=1)
#: How often the rows are compared with what the blob store lists.
ORPHANS = timedelta(days=1)
#: A message about a mirror of which nothing came for so long is taken for lost.
MIRROR_PATIENCE = timedelta(minutes=2)
_last: dict[str, float] = {}


def sweep() -> None:
    """One round. Each step is a guarded UPDATE: two schedulers at once do no harm."""
    give_up_lost_builds()
    give_up_lost_artifacts()
    give_up_lost_restores()
    send_forgotten_messages()
    queueing.send_restores()
    queueing.send_notifications()
    queueing.send_pushes()
    if _every("tidy", settings.TRASH_INTERVAL):
        queueing.queue_tidy()
        Worker.objects.filter(expires_at__lt=timezone.now() - timedelta(hours=1)).delete()
        Preview.objects.filter(created_at__lt=timezone.now() - Preview.KEPT).delete()
        Notification.objects.filter(created_at__lt=timezone.now() - Notification.KEPT).delete()
        fold_logs()
        queue_indexing()
        mirrors.drop_views()
        settle_all()
    queue_mirrors()
    if settings.AUDIT_ANCHOR and _every("anchor", settings.AUDIT_ANCHOR_INTERVAL):
        audit.store_checkpoint()
    if _every("collect", settings.COLLECTION_INTERVAL):
        queueing.queue_collection(orphans=_every("orphans", ORPHANS))
        retention.apply_rules()
    if settings.DIRECTORIES and _every("people", settings.DIRECTORY_INTERVAL):
        queueing.queue_check_of_people()


def give_up_lost_builds() -> None:
    """Builds whose worker went silent: another attempt, or the end."""
    now = timezone.now()
    for build in Build.objects.lost(now).select_related("environment__namespace"):
        try:
            build.give_up_lost(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)
        except (TransitionError, LeaseLostError):
            continue  # its worker came back, or another sweep was first
        logger.warning("worker lost", build=build.pk, attempt=build.attempt, state=build.state)


def give_up_lost_artifacts() -> None:
    for artifact in Artifact.objects.lost(timezone.now()).select_related("lock"):
        with contextlib.suppress(TransitionError, LeaseLostError):
            artifact.give_up_lost(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)
        logger.warning("worker lost", artifact=artifact.pk, attempt=artifact.attempt)


def give_up_lost_restores() -> None:
    for restore in FolderRestore.objects.lost(timezone.now()).select_related("prefix"):
        with contextlib.suppress(LeaseLostError):
            restore.give_up_lost(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)
        logger.warning("worker lost", folder=str(restore), attempt=restore.attempt)


def send_forgotten_messages() -> None:
    """Rows that are due and that no message covers: the queue lost it, or was down."""
    now = timezone.now()
    lost_since = now - RESEND * settings.SWEEP_INTERVAL
    uncovered = Q(message_sent_at=None) | Q(message_sent_at__lt=lost_since)
    for build in Build.objects.due(now).filter(uncovered).order_by("pk")[:500]:
        queueing.send_build(build)
    for artifact in Artifact.objects.due(now).filter(uncovered).order_by("pk")[:500]:
        queueing.send_artifact(artifact)
    waiting = Q(state=PreviewState.QUEUED, created_at__lt=now - timedelta(seconds=5))
    lost = Q(state=PreviewState.SOLVING, started_at__lt=now - settings.SOLVE_TIME_LIMIT)
    for preview in Preview.objects.filter(waiting | lost)[:100]:
        queueing.send_preview(preview)


def fold_logs() -> None:
    """Compress the logs of builds that ended without a worker (cancelled while they waited)."""
    ended = timezone.now() - timedelta(minutes=1)
    unfolded = Build.objects.filter(
        state__in=FINISHED, finished_at__lt=ended, log_archive=None, log_lines__gt=0
    )
    for build in unfolded.order_by("pk")[:100]:
        build.archive_log()


def queue_indexing() -> None:
    old = Q(indexed_at=None) | Q(indexed_at__lt=timezone.now() - INDEX_AGE)
    for channel in Channel.objects.filter(old)[:20]:
        try:
            tasks.index_channel.send(channel.pk)
        except queueing.DOWN as error:
            logger.warning("queue unreachable", task="index_channel", error=str(error))
            return


def queue_mirrors() -> None:
    """Look at the channels that are mirrored; say again what a message was lost of."""
    now = timezone.now()
    unsent = Q(message_sent_at=None) | Q(message_sent_at__lt=now - MIRROR_PATIENCE)
    due = mirrors.due(now, interval=settings.MIRROR_INTERVAL).filter(unsent)
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
