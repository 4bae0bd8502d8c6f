"""Folders of READY builds that are missing on the disk, and the work of linking them again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, QuerySet, Value, When
from django.utils import timezone

from condastore.errors import StoreError
from environments.domain.lifecycle import BuildState
from environments.models.builds import Build, BuildTag, Prefix
from environments.models.environments import Environment
from environments.models.leased_work import (
    LeasedWork,
    LeasedWorkQuerySet,
    RetryPolicy,
    failure_json,
)
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


class FolderRestoreQuerySet(LeasedWorkQuerySet["FolderRestore"]):
    def missing(self) -> Self:
        return self.filter(state__in=MISSING)

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


class FolderRestore(LeasedWork):
    """The folder of a prefix was found missing; a worker links it again from its lock."""

    WAITING: ClassVar = (RestoreState.WAITING, RestoreState.FAILED)
    QUEUED_STATE: ClassVar = RestoreState.WAITING
    LEASED: ClassVar = (RestoreState.RESTORING,)
    FAILED_STATE: ClassVar = RestoreState.FAILED
    MOVES: ClassVar = {
        RestoreState.WAITING: (RestoreState.RESTORING,),
        RestoreState.FAILED: (RestoreState.RESTORING,),
        RestoreState.RESTORING: (
            RestoreState.RESTORED,
            RestoreState.WAITING,
            RestoreState.FAILED,
        ),
        RestoreState.RESTORED: (RestoreState.WAITING,),
    }

    #: Wait of a FAILED row until its next attempt: its packages may be available again by then.
    REST = timedelta(hours=1)

    prefix = models.OneToOneField(Prefix, models.CASCADE, related_name="restore")
    state = models.CharField(
        max_length=9, choices=RestoreState.choices, default=RestoreState.WAITING
    )
    restored = models.PositiveIntegerField(default=0, help_text="How often it was linked again.")
    found_at = models.DateTimeField(default=timezone.now, help_text="When it was found missing.")
    finished_at = models.DateTimeField(null=True, help_text="When it was linked again last.")
    failure = models.JSONField(null=True, help_text="Why the last attempt failed.")

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
        return (
            bool(waiting.update(not_before=timezone.now(), attempt=0, message_sent_at=None))
            or rows.exists()
        )

    @property
    def build(self) -> Build | None:
        """The build that was linked here first; copies of it share the folder."""
        return (
            Build.objects.select_related("environment__namespace", "specification", "lock")
            .filter(prefix=self.prefix_id, state=BuildState.READY, deleted_at=None)
            .order_by(F("origin").asc(nulls_first=True), "pk")
            .first()
        )

    @classmethod
    def retry_policy(cls) -> RetryPolicy:
        return replace(super().retry_policy(), rest=cls.REST)

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        if state == RestoreState.RESTORED:
            return {"failure": None, "restored": F("restored") + 1, "finished_at": now}
        return {}

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        changes: dict[str, Any] = {"failure": failure_json(error)}
        if not retried:
            changes["not_before"] = timezone.now() + self.retry_policy().rest
        return changes
