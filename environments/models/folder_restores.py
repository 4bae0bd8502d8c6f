"""Folders of READY builds that are missing on the disk, and the lease of who links one again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.utils import timezone

from condastore.errors import LeaseLostError, StoreError, WorkerLostError
from environments.domain.lifecycle import BuildState
from environments.models.builds import Build, BuildTag, Lease, Prefix, backoff_delay
from environments.models.clock_bounds import expired, valid
from environments.models.environments import Environment
from environments.models.previews import failure_json
from environments.models.recalls import RecalledLock


class RestoreState(models.TextChoices):
    WAITING = "WAITING"
    RESTORING = "RESTORING"
    FAILED = "FAILED"  # and tried again, seldom
    RESTORED = "RESTORED"


#: The folder is not there.
MISSING = (RestoreState.WAITING, RestoreState.RESTORING, RestoreState.FAILED)


def wanted_prefixes() -> QuerySet[Prefix]:
    """Prefixes whose folder must be on the disk: of READY builds that were not recalled."""
    ready = Build.objects.order_by().filter(
        prefix=OuterRef("pk"),
        state=BuildState.READY,
        deleted_at=None,
        environment__deleted_at=None,
    )
    recalled = RecalledLock.objects.active().values("lock")
    return Prefix.objects.filter(Exists(ready)).exclude(lock__in=recalled)


class FolderRestoreQuerySet(models.QuerySet["FolderRestore"]):
    def missing(self) -> Self:
        return self.filter(state__in=MISSING)

    def running(self, now: datetime) -> Self:
        still = valid("lease_expires_at", now, life=settings.LEASE)
        return self.filter(still, state=RestoreState.RESTORING)

    def lost(self, now: datetime) -> Self:
        over = expired("lease_expires_at", now, life=settings.LEASE)
        return self.filter(over, state=RestoreState.RESTORING)

    def due(self, now: datetime) -> Self:
        return self.filter(
            state__in=(RestoreState.WAITING, RestoreState.FAILED), not_before__lte=now
        )

    def by_urgency(self) -> Self:
        """Current builds first, then tagged ones, then the newest."""
        current = Environment.objects.present().filter(current__prefix=OuterRef("prefix"))
        tagged = BuildTag.objects.filter(build__prefix=OuterRef("prefix"))
        urgency = Case(
            When(Exists(current.order_by()), then=Value(0)),
            When(Exists(tagged.order_by()), then=Value(1)),
            default=Value(2),
            output_field=models.IntegerField(),
        )
        return self.annotate(urgency=urgency).order_by("urgency", "-prefix")


class FolderRestore(models.Model):
    """The folder of a prefix was found missing; a worker links it again from its lock."""

    #: The longest wait between two attempts: its packages may be had again another day.
    LONGEST_WAIT = timedelta(hours=1)

    prefix = models.OneToOneField(Prefix, models.CASCADE, related_name="restore")
    state = models.CharField(
        max_length=9, choices=RestoreState.choices, default=RestoreState.WAITING
    )
    restored = models.PositiveIntegerField(default=0, help_text="How often it was linked again.")
    found_at = models.DateTimeField(default=timezone.now, help_text="When it was found missing.")
    finished_at = models.DateTimeField(null=True, help_text="When it was linked again last.")
    failure = models.JSONField(null=True, help_text="Why the last attempt failed.")

    attempt = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(default=timezone.now)
    lease_owner = models.CharField(max_length=200, blank=True)
    lease_token = models.PositiveBigIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True)

    objects = FolderRestoreQuerySet.as_manager()

    class Meta:
        default_permissions = ("view",)
        constraints = [
            models.CheckConstraint(
                condition=Q(state=RestoreState.RESTORING) ^ Q(lease_expires_at=None),
                name="folder_leased_iff_restoring",
            )
        ]
        indexes = [models.Index(fields=["state", "not_before"])]

    def __str__(self) -> str:
        return self.prefix.path

    @classmethod
    def hurry(cls, build: Build) -> bool:
        """Make the next attempt due now; False if the build's folder is not known to be missing."""
        rows = cls.objects.missing().filter(prefix=build.prefix_id)
        waiting = rows.exclude(state=RestoreState.RESTORING)
        return bool(waiting.update(not_before=timezone.now(), attempt=0)) or rows.exists()

    @property
    def build(self) -> Build | None:
        """The build that was linked here first; copies of it share the folder."""
        return (
            Build.objects.select_related("environment__namespace", "specification", "lock")
            .filter(prefix=self.prefix_id, state=BuildState.READY, deleted_at=None)
            .order_by(F("origin").asc(nulls_first=True), "pk")
            .first()
        )

    def claim(self, owner: str, *, life: timedelta) -> Lease | None:
        """Start the next attempt; None if it is not due, or another worker has it."""
        build = self.build
        now = timezone.now()
        rows = FolderRestore.objects.due(now).filter(pk=self.pk)
        if build is None or not rows.update(
            state=RestoreState.RESTORING,
            attempt=F("attempt") + 1,
            lease_owner=owner,
            lease_token=F("lease_token") + 1,
            lease_expires_at=now + life,
        ):
            return None
        self.refresh_from_db()
        return Lease(build_id=build.pk, owner=owner, token=self.lease_token)

    def lease_held_by(self, owner: str, *, token: int) -> Lease | None:
        """The lease of `owner` if its token is this one; reads the row anew."""
        self.refresh_from_db()
        build = self.build
        if build is None or (self.lease_owner, self.lease_token) != (owner, token):
            return None
        return Lease(build_id=build.pk, owner=owner, token=token)

    def renew(self, lease: Lease, *, life: timedelta) -> None:
        if not self._leased(lease).update(lease_expires_at=timezone.now() + life):
            raise LeaseLostError(f"{self} is restored by another worker.")

    def succeed(self, lease: Lease) -> None:
        self._end(lease, RestoreState.RESTORED, failure=None, restored=F("restored") + 1)

    def fail(self, error: StoreError, lease: Lease, *, attempts: int, backoff: timedelta) -> None:
        """Wait for another attempt; FAILED if waiting alone is not likely to help."""
        again = error.transient and self.attempt < attempts
        wait = backoff_delay(self.attempt, first=backoff) if again else self.LONGEST_WAIT
        self._end(
            lease,
            RestoreState.WAITING if again else RestoreState.FAILED,
            failure=failure_json(error),
            not_before=timezone.now() + wait,
        )

    def give_back(self, lease: Lease) -> None:
        """A worker that is stopped hands it to the others; no attempt is counted."""
        attempt = max(0, self.attempt - 1)
        self._end(lease, RestoreState.WAITING, attempt=attempt, not_before=timezone.now())

    def give_up_lost(self, *, attempts: int, backoff: timedelta) -> None:
        error = WorkerLostError(f"Its worker was lost {self.attempt} times.")
        lost = Lease(build_id=0, owner=self.lease_owner, token=self.lease_token)
        self.fail(error, lost, attempts=attempts, backoff=backoff)

    def _leased(self, lease: Lease) -> FolderRestoreQuerySet:
        return FolderRestore.objects.filter(
            pk=self.pk, state=RestoreState.RESTORING, lease_token=lease.token
        )

    def _end(self, lease: Lease, state: RestoreState, **changes: Any) -> None:
        changes |= {"state": state, "lease_expires_at": None, "lease_owner": ""}
        if state == RestoreState.RESTORED:
            changes["finished_at"] = timezone.now()
        if not self._leased(lease).update(**changes):
            raise LeaseLostError(f"{self} is restored by another worker.")
        self.refresh_from_db()
