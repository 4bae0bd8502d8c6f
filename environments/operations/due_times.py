"""Correction of due times that a wall clock left in the future when it was set back."""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db.models import Q

from environments.domain.artifacts import ArtifactState
from environments.domain.lifecycle import BuildState
from environments.jobs import notification_delivery
from environments.models import Artifact, Build, FolderRestore, Notification, Push
from environments.models.builds import backoff_delay
from environments.models.clock_bounds import SKEW
from environments.models.folder_restores import RestoreState
from environments.services import image_pushes

logger = structlog.get_logger(__name__)
#: The back-off is computed up to this attempt; later ones are taken for this one.
MOST_ATTEMPTS = 20


def correct(now: datetime) -> int:
    """Make rows due that would wait longer than the back-off of their attempt; returns how many."""
    unfinished = Q(delivered_at=None, failed_at=None)
    unsent = Q(pushed_at=None, failed_at=None)
    backoff, notification = settings.BACKOFF, settings.NOTIFICATION_BACKOFF
    corrected = (
        Build.objects.filter(
            _too_late(now, "attempt", first=backoff), state=BuildState.QUEUED
        ).update(not_before=now, message_sent_at=None)
        + Artifact.objects.filter(
            _too_late(now, "attempt", first=backoff), state=ArtifactState.QUEUED
        ).update(not_before=now, message_sent_at=None)
        + Notification.objects.filter(
            unfinished,
            _too_late(
                now,
                "attempts",
                first=notification,
                ceiling=notification_delivery.LONGEST_WAIT,
                running=notification_delivery.PATIENCE,
            ),
        ).update(not_before=now, message_sent_at=None)
        + Push.objects.filter(
            unsent,
            _too_late(
                now,
                "attempts",
                first=notification,
                ceiling=image_pushes.LONGEST_WAIT,
                running=image_pushes.PATIENCE,
            ),
        ).update(not_before=now, message_sent_at=None)
    )
    corrected += FolderRestore.objects.filter(
        _too_late(now, "attempt", first=backoff), state=RestoreState.WAITING
    ).update(not_before=now)
    corrected += FolderRestore.objects.filter(
        state=RestoreState.FAILED, not_before__gt=now + FolderRestore.LONGEST_WAIT + SKEW
    ).update(not_before=now)
    if corrected:
        logger.warning("the clock was set back", corrected=corrected)
    return corrected


def _too_late(
    now: datetime,
    attempts: str,
    *,
    first: timedelta,
    ceiling: timedelta | None = None,
    running: timedelta = timedelta(0),
) -> Q:
    """Match rows whose `not_before` is further away than their attempt can have set it.

    Args:
        attempts: name of the field that counts the attempts; a row without any is due at once.
        running: how far ahead an attempt that runs may set it.
    """
    found = Q(**{attempts: 0, "not_before__gt": now + SKEW})
    for number in range(1, MOST_ATTEMPTS + 1):
        longest = max(backoff_delay(number, first=first, ceiling=ceiling), running) + SKEW
        last = number == MOST_ATTEMPTS
        count = {f"{attempts}__gte" if last else attempts: number}
        found |= Q(**count, not_before__gt=now + longest)
    # Stated apart, so that the index on it is used: almost nothing waits at all.
    return Q(not_before__gt=now + SKEW) & found
