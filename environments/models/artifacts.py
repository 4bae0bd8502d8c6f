"""Artifacts: files made from locks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.utils import timezone

from environments.domain.artifacts import FORMS, MOVES, ArtifactKind, ArtifactState, variant_of
from environments.models.base_images import image_options
from environments.models.blobs import Blob
from environments.models.builds import Build
from environments.models.leased_work import LeasedWork, LeasedWorkQuerySet
from environments.models.locks import LockRow


class ArtifactQuerySet(LeasedWorkQuerySet["Artifact"]):
    pass


class Artifact(LeasedWork):
    """One file of a lock, for all builds and namespaces that have the lock."""

    WAITING: ClassVar = (ArtifactState.QUEUED,)
    QUEUED_STATE: ClassVar = ArtifactState.QUEUED
    LEASED: ClassVar = (ArtifactState.MAKING,)
    FAILED_STATE: ClassVar = ArtifactState.FAILED
    MOVES: ClassVar = MOVES

    #: A request for an artifact that has failed starts no new attempt within this time.
    REST = timedelta(minutes=1)

    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="artifacts")
    kind = models.CharField(
        max_length=12, choices=[(kind.value, kind.value) for kind in ArtifactKind]
    )
    platform = models.CharField(max_length=32)
    variant = models.CharField(
        max_length=200, blank=True, help_text="Digest of what else it is made from."
    )
    #: What `variant` is the digest of, e.g. {"variables": {...}}.
    options = models.JSONField(default=dict)
    recipe = models.PositiveIntegerField()
    state = models.CharField(
        max_length=8,
        choices=[(state.value, state.value) for state in ArtifactState],
        default=ArtifactState.QUEUED.value,
    )
    blob = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="artifacts")

    created_at = models.DateTimeField(default=timezone.now, editable=False)
    finished_at = models.DateTimeField(null=True)
    seconds = models.FloatField(default=0, help_text="What making it took.")
    failure = models.JSONField(null=True)
    progress = models.JSONField(default=dict)

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["lock", "kind", "platform", "variant", "recipe"], name="artifact_once"
            ),
            models.CheckConstraint(
                condition=~Q(state="READY") | Q(blob__isnull=False), name="artifact_ready_has_blob"
            ),
            models.CheckConstraint(
                condition=Q(state="MAKING") ^ Q(lease_expires_at=None),
                name="artifact_leased_iff_making",
            ),
        ]
        indexes = [models.Index(fields=["state", "not_before"])]

    def __str__(self) -> str:
        return f"{self.kind} of lock {self.lock.digest[:12]} for {self.platform}"

    @classmethod
    def wanted(
        cls,
        build: Build,
        kind: ArtifactKind,
        platform: str,
        *,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Artifact:
        """Get or create the row of a file; one that failed some time ago is requeued."""
        assert build.lock is not None, "asked of builds that have a lock"
        variables = dict(build.specification.value().variables)
        options: dict[str, Any] = {"variables": variables} if variables else {}
        if kind is ArtifactKind.IMAGE:
            options |= {**image_options(build, platform), **more}
        row, _ = cls.objects.select_related("lock", "blob").get_or_create(
            lock=build.lock,
            kind=kind,
            platform=platform,
            variant=variant_of(options if kind is ArtifactKind.IMAGE else variables),
            recipe=FORMS[kind].recipe,
            defaults={"options": options},
        )
        failed = row.finished_at if row.state == ArtifactState.FAILED else None
        if failed is not None and failed < timezone.now() - cls.REST:
            row.again()
        return row

    @classmethod
    def wanted_of(cls, build: Build) -> None:
        """Create the rows of the namespace's eager artifacts; the sweep sends their messages."""
        for kind in build.environment.namespace.eager_artifacts:
            cls.wanted(build, ArtifactKind(kind), build.platform)

    def again(self) -> bool:
        """Requeue an artifact that failed, or whose bytes are gone; False if another was first."""
        changed = Artifact.objects.filter(
            pk=self.pk, state__in=(ArtifactState.FAILED, ArtifactState.READY)
        ).update(
            state=ArtifactState.QUEUED,
            attempt=0,
            not_before=timezone.now(),
            message_sent_at=None,
            finished_at=None,
            failure=None,
            blob=None,
        )
        self.refresh_from_db()
        return bool(changed)

    def changes_when_claimed(self, now: datetime) -> dict[str, Any]:
        return {"progress": {}}

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        ended = state in (ArtifactState.READY, ArtifactState.FAILED)
        return {"progress": {}, "finished_at": now} if ended else {"progress": {}}
