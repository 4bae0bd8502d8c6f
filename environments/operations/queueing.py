"""Send work to the queue after the transaction; a queue that is down loses nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from dramatiq.errors import BrokerError
from redis.exceptions import RedisError

from environments import tasks
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
from environments.models.clock_bounds import older

logger = structlog.get_logger(__name__)
#: What a broker that cannot be reached raises, by its kind.
DOWN = (BrokerError, RedisError, OSError)
#: A message of which nothing came for so long is taken for lost.
NOTIFICATION_PATIENCE = timedelta(minutes=10)


def send_build(build: Build) -> None:
    """Say that `build` is due. Where the queue is down, the sweep says it again later."""
    try:
        tasks.build_environment.send(build.pk)
    except DOWN as error:
        logger.warning("queue unreachable", build=build.pk, error=str(error))
        return
    Build.objects.filter(pk=build.pk).update(message_sent_at=timezone.now())


def queue_build(build: Build) -> None:
    transaction.on_commit(lambda: send_build(build))


def queue_marked_build(build: Build) -> None:
    """Send a build that this transaction creates with `message_sent_at`.

    That saves a write after the commit, for which SQLite's writers would queue once more. A message
    that is lost between the commit and the queue is sent again by the sweep, like any other.
    """

    def send() -> None:
        try:
            tasks.build_environment.send(build.pk)
        except DOWN as error:
            logger.warning("queue unreachable", build=build.pk, error=str(error))
            Build.objects.filter(pk=build.pk).update(message_sent_at=None)

    transaction.on_commit(send)


def send_artifact(artifact: Artifact) -> None:
    """Say that `artifact` is due. Where the queue is down, the sweep says it again later."""
    Artifact.objects.filter(pk=artifact.pk).update(message_sent_at=timezone.now())
    try:
        tasks.make_artifact.send(artifact.pk)
    except DOWN as error:
        logger.warning("queue unreachable", artifact=artifact.pk, error=str(error))
        Artifact.objects.filter(pk=artifact.pk).update(message_sent_at=None)


def queue_artifact(artifact: Artifact) -> None:
    transaction.on_commit(lambda: send_artifact(artifact))


def send_look(index: MirrorIndex) -> None:
    """Have somebody look what a mirrored channel lists; the sweep asks again if need be."""
    MirrorIndex.objects.filter(pk=index.pk).update(message_sent_at=timezone.now())
    _send_for_mirror(tasks.look_at_mirror, index)


def send_view(view: MirrorView) -> None:
    MirrorView.objects.filter(pk=view.pk).update(message_sent_at=timezone.now())
    _send_for_mirror(tasks.make_mirror_view, view)


def _send_for_mirror(task: Any, row: MirrorIndex | MirrorView) -> None:
    try:
        task.send(row.pk)
    except DOWN as error:
        logger.warning("queue unreachable", mirror=str(row), error=str(error))
        type(row)._default_manager.filter(pk=row.pk).update(message_sent_at=None)


def send_restores() -> None:
    """Say that missing folders are due, as many as are restored at once.

    Each worker that ends one sends for the next; these are for the first ones, and for lost ones.
    """
    now = timezone.now()
    running = FolderRestore.objects.running(now).count()
    free = max(0, settings.RESTORES_AT_ONCE - running)
    for _ in FolderRestore.objects.due(now).values_list("pk")[:free]:
        try:
            tasks.restore_folder.send()
        except DOWN as error:
            logger.warning("queue unreachable", task="restore_folder", error=str(error))
            return


def send_preview(preview: Preview) -> None:
    try:
        tasks.solve_preview.send(str(preview.pk))
    except DOWN as error:
        logger.warning("queue unreachable", preview=str(preview.pk), error=str(error))


def queue_preview(preview: Preview) -> None:
    transaction.on_commit(lambda: send_preview(preview))


def _send_due(rows: type[Notification] | type[Push], task: Any) -> None:
    """Say which rows are due; each is said again where nothing came of it."""
    now = timezone.now()
    unsent = Q(message_sent_at=None) | older("message_sent_at", now, than=NOTIFICATION_PATIENCE)
    due = rows.objects.due(now).filter(unsent).order_by("not_before")
    for key in list(due.values_list("pk", flat=True)[:500]):
        # First, for a worker that is quick may have set another time by the end of `send`.
        rows.objects.filter(pk=key).update(message_sent_at=now)
        try:
            task.send(key)
        except DOWN as error:
            rows.objects.filter(pk=key).update(message_sent_at=None)
            logger.warning("queue unreachable", row=f"{rows.__name__} {key}", error=str(error))
            return


def send_notifications() -> None:
    _send_due(Notification, tasks.deliver_notification)


def queue_notifications() -> None:
    transaction.on_commit(send_notifications)


def send_pushes() -> None:
    """For images that are to be sent to other registries."""
    _send_due(Push, tasks.push_image)


def queue_tidy() -> None:
    def send() -> None:
        try:
            tasks.tidy.send()
        except DOWN as error:
            logger.warning("queue unreachable", task="tidy", error=str(error))

    transaction.on_commit(send)


def queue_collection(*, orphans: bool) -> None:
    try:
        tasks.collect.send(orphans)
    except DOWN as error:
        logger.warning("queue unreachable", task="collect", error=str(error))


def queue_check_of_people() -> None:
    try:
        tasks.check_people.send()
    except DOWN as error:
        logger.warning("queue unreachable", task="check_people", error=str(error))
