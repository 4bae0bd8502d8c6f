"""Files made from locks, the bytes that are kept by digest, and the lease of who makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from condastore.errors import LeaseLostError, StoreError, TransitionError, WorkerLostError
from environments.domain.artifacts import FORMS, ArtifactKind, ArtifactState, sources, variant_of
from environments.models.builds import Build, backoff_delay
from environments.models.clock_bounds import expired
from environments.models.locks import LockRow
from environments.models.previews import failure_json


class Blob(models.Model):
    """Bytes that the blob store keeps, once, under their digest.

    The row comes after the bytes, and goes before them.
    """

    sha256 = models.CharField(max_length=64, unique=True)
    size = models.BigIntegerField()
    stored_at = models.DateTimeField(default=timezone.now, editable=False)
    used_at = models.DateTimeField(default=timezone.now, db_index=True)
    checked_at = models.DateTimeField(null=True, help_text="Last read and found whole.")
    damaged_at = models.DateTimeField(null=True, help_text="Found with other bytes, or none.")
    removing_at = models.DateTimeField(
        null=True, db_index=True, help_text="When it was found that nothing needs it."
    )

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"sha256:{self.sha256[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingLease:
    """The right of one worker to make one artifact: every write of it carries the token."""

    artifact_id: int
    token: int


class ArtifactQuerySet(models.QuerySet["Artifact"]):
    def lost(self, now: datetime) -> Self:
        """Made by a worker that has not been heard of."""
        over = expired("lease_expires_at", now, life=settings.LEASE)
        return self.filter(over, state=ArtifactState.MAKING)

    def due(self, now: datetime) -> Self:
        return self.filter(state=ArtifactState.QUEUED, not_before__lte=now)


class Artifact(models.Model):
    """One file of a lock, for all builds and namespaces that have the lock."""

    #: What could not be made is not tried again at once, however often it is asked for.
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

    attempt = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(default=timezone.now)
    message_sent_at = models.DateTimeField(null=True)
    lease_owner = models.CharField(max_length=200, blank=True)
    lease_token = models.PositiveBigIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True)

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
        """The row of this file, made at the first wish; what failed a while ago is tried again."""
        assert build.lock is not None, "asked of builds that have a lock"
        variables = dict(build.specification.value().variables)
        options: dict[str, Any] = {"variables": variables} if variables else {}
        if kind is ArtifactKind.IMAGE:
            from environments.models.images import image_options

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
        """The rows of what its namespace has made of each new build; the sweep sends for them."""
        for kind in build.environment.namespace.eager_artifacts:
            cls.wanted(build, ArtifactKind(kind), build.platform)

    def again(self) -> bool:
        """Let it be made anew: it failed, or its bytes are gone. False where another was first."""
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

    def move(self, to: ArtifactState, *, lease: MakingLease, **changes: Any) -> None:
        """Leave MAKING for `to`.

        Raises:
            LeaseLostError: with a lease that is no longer the artifact's.
            TransitionError: another came first.
        """
        changes |= {"state": to, "lease_expires_at": None, "lease_owner": "", "progress": {}}
        rows = Artifact.objects.filter(pk=self.pk, state__in=sources(to), lease_token=lease.token)
        if not rows.update(**changes):
            self.refresh_from_db(fields=["state", "lease_token"])
            if self.lease_token != lease.token:
                raise LeaseLostError(f"{self} is made by another worker.")
            raise TransitionError(f"{self} is {self.state}; it cannot become {to}.")
        self.refresh_from_db()

    def claim(self, owner: str, *, life: timedelta) -> MakingLease | None:
        """Start the next attempt; None where it is not due, or another has it."""
        now = timezone.now()
        claimed = (
            Artifact.objects.due(now)
            .filter(pk=self.pk)
            .update(
                state=ArtifactState.MAKING,
                attempt=F("attempt") + 1,
                lease_owner=owner,
                lease_token=F("lease_token") + 1,
                lease_expires_at=now + life,
                progress={},
            )
        )
        if not claimed:
            return None
        self.refresh_from_db()
        return MakingLease(artifact_id=self.pk, token=self.lease_token)

    def lease_held_by(self, owner: str, *, token: int) -> MakingLease | None:
        """The lease of `owner` if its token is this one; reads the row anew."""
        self.refresh_from_db()
        if (self.lease_owner, self.lease_token) != (owner, token):
            return None
        return MakingLease(artifact_id=self.pk, token=token)

    def renew(self, lease: MakingLease, *, life: timedelta, progress: dict[str, Any]) -> None:
        rows = Artifact.objects.filter(
            pk=self.pk, state=ArtifactState.MAKING, lease_token=lease.token
        )
        if not rows.update(lease_expires_at=timezone.now() + life, progress=progress):
            raise LeaseLostError(f"{self} is made by another worker.")

    def give_up(
        self, error: StoreError, *, lease: MakingLease, attempts: int, backoff: timedelta
    ) -> None:
        """Another attempt for the world's failures, while any are left; else the outcome."""
        if error.transient and self.attempt < attempts:
            self.move(
                ArtifactState.QUEUED,
                lease=lease,
                not_before=timezone.now() + backoff_delay(self.attempt, first=backoff),
                message_sent_at=None,
                failure=failure_json(error),
            )
        else:
            self.move(
                ArtifactState.FAILED,
                lease=lease,
                finished_at=timezone.now(),
                failure=failure_json(error),
            )

    def give_back(self, lease: MakingLease) -> None:
        """A worker that is stopped hands it to the others; no attempt is counted."""
        self.move(
            ArtifactState.QUEUED,
            lease=lease,
            attempt=max(0, self.attempt - 1),
            not_before=timezone.now(),
            message_sent_at=None,
        )

    def give_up_lost(self, *, attempts: int, backoff: timedelta) -> None:
        """What becomes of one whose worker went silent: tried again, or failed."""
        error = WorkerLostError(f"Its worker was lost {self.attempt} times.")
        lost = MakingLease(artifact_id=self.pk, token=self.lease_token)
        self.give_up(error, lease=lost, attempts=attempts, backoff=backoff)
