"""Images on their way to other registries: what is missing there, then what leads to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from dramatiq.middleware import Shutdown

from condastore.errors import ConflictError, LeaseLostError, StoreError, UnavailableError
from condastore.outages import failure, is_outage, persist
from environments.domain.artifacts import ArtifactState
from environments.domain.lifecycle import SERVED
from environments.engine.images.remote import Repository
from environments.models import (
    Artifact,
    AuditEvent,
    Push,
)
from environments.models.builds import backoff_delay
from environments.models.recalls import refuse_recalled
from environments.services.image_builder import registry_login
from environments.services.image_manifests import Content, images_of, manifest_of
from environments.services.image_pushes import (
    LONGEST_WAIT,
    PATIENCE,
    PushResult,
    push_guard,
    send_image,
    target_of,
)

logger = structlog.get_logger(__name__)
#: How long a worker that is stopped tries to give a push back.
STOPPING = timedelta(seconds=1)
#: Seconds between two looks at an image that another worker makes.
LOOK = 0.5


def push(push_id: int) -> None:
    """One attempt at a push, or nothing: it is not due, or another worker is at it."""
    rows = Push.objects.select_related(
        "rule__namespace", "build__environment__namespace", "build__lock", "build__specification"
    )
    row = rows.filter(pk=push_id).first()
    if row is None or not row.claim(patience=PATIENCE):
        return
    try:
        top, done = _attempt(row)
    except LeaseLostError:
        logger.info("push superseded", push=row.pk)
    except StoreError as error:
        persist(partial(_give_up, row, error))
    except Exception as error:
        if is_outage(error):
            logger.warning("not pushed", push=row.pk, error=str(error).strip())
            persist(row.give_back)  # an outage of the database is no attempt
        else:
            persist(partial(_give_up, row, failure(error, what=f"Push {row.pk}")))
    except Shutdown:  # the worker is stopped: no attempt
        persist(row.give_back, patience=STOPPING)
        raise
    except BaseException:  # Dramatiq's own time limit
        _give_up(row, UnavailableError("Its worker was stopped."))
        raise
    else:
        persist(lambda: _finish(row, top, done))


def _attempt(row: Push) -> tuple[Content, PushResult]:
    build = row.build
    build.refresh_from_db()
    gone = build.deleted_at or build.environment.deleted_at
    if build.state not in SERVED or gone is not None:
        told = "deleted" if gone else build.state
        raise ConflictError(f"{build} is {told}: it is not given away.")
    refuse_recalled(build)
    reference = target_of(row.rule.target, build)
    login = registry_login(row.rule.namespace, reference)
    made = _made(images_of(build))
    top = manifest_of(build, made)

    def still() -> None:
        if not row.keep_on(patience=PATIENCE):
            raise LeaseLostError("Another build is to be sent, or another worker sends it.")

    with Repository(reference, actions="pull,push", login=login, within=push_guard()) as repository:
        return top, send_image(top, made, repository, heartbeat=still)


def _made(wanted: Sequence[Artifact]) -> list[Artifact]:
    """The images, made here where nobody makes them yet."""
    from environments.jobs import artifacts  # workers have it; the web process sends images without

    deadline = time.monotonic() + settings.ARTIFACT_TIME_LIMIT.total_seconds()
    for artifact in wanted:
        artifacts.make(artifact.pk)
        artifact.refresh_from_db()
        while _is_to_come(artifact) and time.monotonic() < deadline:
            time.sleep(LOOK)
            artifacts.make(artifact.pk)  # nothing, while another worker makes it
            artifact.refresh_from_db()
        if artifact.state not in (ArtifactState.READY, ArtifactState.FAILED):
            told = (artifact.failure or {}).get("message", "")
            raise UnavailableError(f"The image is not made yet. {told}".strip())
    return list(wanted)


def _is_to_come(artifact: Artifact) -> bool:
    """Whether a worker makes it, or has given it back: stopped, or in an outage."""
    given_back = artifact.state == ArtifactState.QUEUED and artifact.failure is None
    return artifact.state == ArtifactState.MAKING or given_back


def _finish(row: Push, top: Content, done: PushResult) -> None:
    change = {
        "to": str(target_of(row.rule.target, row.build)),
        "digest": f"sha256:{top.blob.sha256}",
        "sent": done.sent,
        "rule": row.rule_id,
    }
    with transaction.atomic():
        ended = row.end(
            pushed_at=timezone.now(),
            problem="",
            digest=top.blob.sha256,
            sent_bytes=done.sent_bytes,
        )
        if ended:
            AuditEvent.record(None, "image.push", row.build, change)


def _give_up(row: Push, error: StoreError) -> None:
    """Another attempt for the world's failures, while any are left; else the outcome."""
    problem = f"{error} {error.hint}".strip()[:1000]
    logger.warning("not pushed", push=row.pk, code=error.code, error=problem)
    now = timezone.now()
    if error.transient and row.attempts < settings.NOTIFICATION_ATTEMPTS:
        delay = backoff_delay(
            row.attempts, first=settings.NOTIFICATION_BACKOFF, ceiling=LONGEST_WAIT
        )
        row.end(not_before=now + delay, message_sent_at=None, problem=problem)
        return
    with transaction.atomic():
        if row.end(failed_at=now, problem=problem):
            change = {"code": error.code, "problem": problem[:300], "rule": row.rule_id}
            AuditEvent.record(None, "image.push-failed", row.build, change)
