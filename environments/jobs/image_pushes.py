"""Push of the image of an environment's current build to another registry, as a rule says."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.conf import settings
from django.db import transaction

from condastore import row_changes
from condastore.errors import ConflictError, UnavailableError
from condastore.outages import persist
from environments.domain.artifacts import ArtifactState
from environments.domain.lifecycle import SERVED
from environments.engine.images.remote import Repository
from environments.jobs import artifacts
from environments.jobs.leased_run import LeasedRun, claim
from environments.models import Artifact, AuditEvent, Push
from environments.models.pushes import PushState
from environments.models.recalls import refuse_recalled
from environments.services.image_builder import registry_login
from environments.services.image_manifests import Content, images_of, manifest_of
from environments.services.image_pushes import PushResult, push_guard, send_image, target_of


def push(push_id: int) -> None:
    """Run the next attempt of a push, if it is due."""
    rows = Push.objects.select_related(
        "rule__namespace", "build__environment__namespace", "build__lock", "build__specification"
    )
    row = rows.filter(pk=push_id).first()
    lease = claim(row) if row is not None else None
    if row is None or lease is None:
        return
    with PushRun(row, lease, time_limit=2 * settings.ARTIFACT_TIME_LIMIT) as run:
        run.carry_out(run.push)


class PushRun(LeasedRun[Push]):
    """One attempt of a push. A newer build of the environment takes the lease away."""

    time_limit_error = UnavailableError
    cancellable = True

    def push(self) -> None:
        row, build = self.row, self.row.build
        build.refresh_from_db()
        gone = build.deleted_at or build.environment.deleted_at
        if build.state not in SERVED or gone is not None:
            state = "deleted" if gone else build.state
            raise ConflictError(f"{build} is {state}: its image is not pushed.")
        refuse_recalled(build)
        reference = target_of(row.rule.target, build)
        login = registry_login(row.rule.namespace, reference)
        images = self._await_images(images_of(build))
        top = manifest_of(build, images)
        with Repository(
            reference, actions="pull,push", login=login, within=push_guard()
        ) as repository:
            result = send_image(top, images, repository, check=self.confirm)
        persist(lambda: self._record(top, result))

    def _await_images(self, images: Sequence[Artifact]) -> list[Artifact]:
        """Make the images that no worker makes yet, and wait for the others."""
        deadline = time.monotonic() + settings.ARTIFACT_TIME_LIMIT.total_seconds()
        for artifact in images:
            artifacts.make(artifact.pk)
            with row_changes.Watch(row_changes.topic_of(artifact)) as watch:
                artifact.refresh_from_db()
                while _is_to_come(artifact) and time.monotonic() < deadline:
                    watch.wait(cancelled=self.cancelled)
                    self.check()
                    if artifact.state == ArtifactState.QUEUED:  # given back by its worker
                        artifacts.make(artifact.pk)
                    artifact.refresh_from_db()
            if artifact.state not in (ArtifactState.READY, ArtifactState.FAILED):
                reason = (artifact.failure or {}).get("message", "")
                raise UnavailableError(f"The image is not made yet. {reason}".strip())
        return list(images)

    def _record(self, top: Content, result: PushResult) -> None:
        row = self.row
        change = {
            "to": str(target_of(row.rule.target, row.build)),
            "digest": f"sha256:{top.blob.sha256}",
            "sent": result.sent,
            "rule": row.rule_id,
        }
        with transaction.atomic():
            row.finish(
                self.lease,
                state=PushState.PUSHED,
                digest=top.blob.sha256,
                sent_bytes=result.sent_bytes,
            )
            AuditEvent.record(None, "image.push", row.build, change)


def _is_to_come(artifact: Artifact) -> bool:
    """Return whether a worker makes it, or has given it back: stopped, or in an outage."""
    given_back = artifact.state == ArtifactState.QUEUED and artifact.failure is None
    return artifact.state == ArtifactState.MAKING or given_back
