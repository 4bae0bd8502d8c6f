"""Dramatiq actors. A message carries an id and is only a hint: the row says what is due."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dramatiq
from django.conf import settings
from dramatiq.middleware import Shutdown

from condastore import broker

if TYPE_CHECKING:
    from environments.services.thread_bounds import Kind

broker.configure()

_MILLISECOND = 0.001
#: Rows count their attempts themselves. An exception that reaches Dramatiq came before that, as
#: from a database that was away: the message must not be lost with it.
REDELIVERY: dict[str, Any] = {"max_retries": 100, "min_backoff": 250, "max_backoff": 5_000}
#: Delay in ms before a message for workers of another platform is offered again.
OTHER_PLATFORM_DELAY = 500
#: Delay in ms before a preview for which no thread was free is offered again.
PREVIEW_DELAY = 500
#: Delay in ms before the indexing of a channel for which no thread was free.
INDEX_DELAY = 10_000
#: Delay in ms before a mirror or push for which no thread was free is offered again.
BOUND_DELAY = 2_000
#: Priority of what yields to everything else that waits in a worker; the default is 0.
LOW_PRIORITY = 100


def _limit(seconds: float) -> int:
    """Dramatiq's own time limit only backs up the one that the work itself keeps."""
    return int((seconds + 300) / _MILLISECOND)


def _run_bounded(kind: Kind, work: Callable[[int], object], task: Any, key: int) -> None:
    """Do work of this kind, or requeue its message if the bound of its threads is reached."""
    from environments.services import thread_bounds

    with thread_bounds.hold(kind) as free:
        if free:
            work(key)
            return
    with contextlib.suppress(Exception):  # the sweep sends it again
        task.send_with_options(args=(key,), delay=BOUND_DELAY)


@dramatiq.actor(
    queue_name="builds",
    **REDELIVERY,
    throws=Shutdown,  # a worker that is stopped; not an error
    time_limit=_limit(settings.BUILD_TIME_LIMIT.total_seconds()),
)
def run_next_build(build_id: int) -> None:
    """Run the next build that is due, in the order of `fair_queue`.

    It may be another build than that of the message. A message that is delivered twice finds
    nothing to do the second time.
    """
    from environments.jobs import builds, fair_queue
    from environments.services import platforms

    own = platforms.own_platform()
    for build in fair_queue.next_builds(own):
        outcome = builds.run(build)
        if outcome is builds.Outcome.NOT_CLAIMED:
            continue  # another worker was faster
        if outcome is builds.Outcome.COMPILE_LATER:
            with contextlib.suppress(Exception):  # it costs speed alone, and the queue may be down
                compile_bytecode.send(build)
        if broker.backlog.is_empty:
            _cover_what_is_due(build_id, own)
        return
    if fair_queue.left_to_others(own):
        with contextlib.suppress(Exception):  # the sweep sends it again
            run_next_build.send_with_options(args=(build_id,), delay=OTHER_PLATFORM_DELAY)


def _cover_what_is_due(build_id: int, platform: str) -> None:
    """Send a message in case one was lost; a surplus message finds nothing to do."""
    from environments.jobs import fair_queue

    with contextlib.suppress(Exception):  # the sweep does the same, later
        if fair_queue.due_here(platform):
            run_next_build.send(build_id)


@dramatiq.actor(
    queue_name="solves",
    **REDELIVERY,
    throws=Shutdown,  # a worker that is stopped; not an error
    time_limit=_limit(2 * settings.SOLVE_TIME_LIMIT.total_seconds()),
)
def run_next_preview(preview_id: str) -> None:
    """Run the next preview that is due, in the order of `fair_previews`.

    If no thread is free, the end of another preview sends the next message, and so does the sweep.
    """
    from environments.jobs import fair_previews, previews
    from environments.services import thread_bounds

    with thread_bounds.hold(thread_bounds.Kind.PREVIEW) as free:
        ran = free and any(map(previews.run, fair_previews.next_previews()))
    with contextlib.suppress(Exception):  # the sweep sends it again
        if not free and fair_previews.is_covered(preview_id):
            run_next_preview.send_with_options(args=(preview_id,), delay=PREVIEW_DELAY)
        elif ran and (following := next(fair_previews.next_previews(), None)) is not None:
            run_next_preview.send(following)


@dramatiq.actor(
    queue_name="artifacts",
    **REDELIVERY,
    throws=Shutdown,
    time_limit=_limit(settings.ARTIFACT_TIME_LIMIT.total_seconds()),
)
def make_artifact(artifact_id: int) -> None:
    """Make a file of a lock. A message delivered twice does nothing the second time."""
    from environments.jobs import artifacts

    artifacts.make(artifact_id)


@dramatiq.actor(queue_name="artifacts", throws=Shutdown, time_limit=_limit(3600), **REDELIVERY)
def read_mirror(index_id: int) -> None:
    """Read what the upstream of a mirror lists now."""
    from environments.jobs import mirrors
    from environments.services import thread_bounds

    _run_bounded(thread_bounds.Kind.MIRRORING, mirrors.read_upstream, read_mirror, index_id)


@dramatiq.actor(queue_name="artifacts", throws=Shutdown, time_limit=_limit(3600), **REDELIVERY)
def render_mirror_view(view_id: int) -> None:
    """Render a view of a mirror."""
    from environments.jobs import mirrors
    from environments.services import thread_bounds

    _run_bounded(thread_bounds.Kind.MIRRORING, mirrors.render, render_mirror_view, view_id)


@dramatiq.actor(
    queue_name="artifacts",
    **REDELIVERY,
    throws=Shutdown,
    time_limit=_limit(2 * settings.ARTIFACT_TIME_LIMIT.total_seconds()),
)
def push_image(push_id: int) -> None:
    """Run the next attempt to push an image, as a rule says."""
    from environments.jobs import image_pushes
    from environments.services import thread_bounds

    _run_bounded(thread_bounds.Kind.PUSHING, image_pushes.push, push_image, push_id)


@dramatiq.actor(queue_name="upkeep", max_retries=0, throws=Shutdown, time_limit=_limit(3600))
def compile_bytecode(build_id: int) -> None:
    """Compile the Python files that a build did not wait for."""
    from environments.jobs import bytecode

    bytecode.complete(build_id)


@dramatiq.actor(
    queue_name="upkeep",
    max_retries=0,
    throws=Shutdown,
    priority=LOW_PRIORITY,
    time_limit=_limit(settings.BUILD_TIME_LIMIT.total_seconds()),
)
def restore_next_folder(restore_id: int = 0) -> None:
    """Link the most urgent missing folder again, whichever the message was sent for."""
    from environments.jobs import folder_restores

    restored = folder_restores.restore_next()
    if restored is None:
        return
    with contextlib.suppress(Exception):  # the queue may be down: the sweep sends it again
        if restored.compile_later:
            compile_bytecode.send(restored.build_id)
        if folder_restores.is_more_due():
            restore_next_folder.send(restore_id)


@dramatiq.actor(queue_name="upkeep", max_retries=0, throws=Shutdown, time_limit=_limit(3600))
def tidy() -> None:
    """Empty the trash, move orphans there, repair the links under `envs/`; backfill packages."""
    from environments.jobs import cleanup, package_backfill

    cleanup.tidy()
    package_backfill.backfill_if_due()


@dramatiq.actor(queue_name="upkeep", max_retries=0, throws=Shutdown, time_limit=_limit(3600))
def collect(orphans: bool = False) -> None:
    """Garbage-collect blobs."""
    from environments.jobs import blob_gc

    blob_gc.collect(orphans=orphans)


@dramatiq.actor(queue_name="upkeep", max_retries=0, throws=Shutdown, time_limit=_limit(600))
def index_channel(channel_id: int) -> None:
    """Index the package names of a channel, for search."""
    from environments.jobs import cleanup

    if not cleanup.index_channel(channel_id):
        with contextlib.suppress(Exception):  # the sweep sends it again
            index_channel.send_with_options(args=(channel_id,), delay=INDEX_DELAY)


@dramatiq.actor(queue_name="upkeep", throws=Shutdown, time_limit=_limit(120), **REDELIVERY)
def deliver_notification(notification_id: int) -> None:
    """Run the next attempt to deliver a mail or a webhook call."""
    from environments.jobs import notification_delivery

    notification_delivery.deliver(notification_id)


@dramatiq.actor(queue_name="upkeep", max_retries=0, throws=Shutdown, time_limit=_limit(3600))
def check_people() -> None:
    """Update people and groups from the directories."""
    from accounts import directories

    directories.check_people()
