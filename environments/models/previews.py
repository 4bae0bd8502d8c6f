"""Previews: solves without a build, so that a person sees what would change."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.db import models
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from condastore.errors import StoreError
from environments.models.environments import Environment
from environments.models.leased_work import LeasedWork, LeasedWorkQuerySet
from environments.models.locks import LockRow, SpecificationRow
from environments.models.namespaces import Namespace


class PreviewState(models.TextChoices):
    QUEUED = "QUEUED"
    SOLVING = "SOLVING"
    READY = "READY"
    FAILED = "FAILED"


class PreviewQuerySet(LeasedWorkQuerySet["Preview"]):
    def visible_to(self, actor: Actor) -> Self:
        return self.filter(namespace__in=Namespace.objects.visible_to(actor).values("pk"))


class Preview(LeasedWork):
    """One requested solve, kept for a day."""

    WAITING: ClassVar = (PreviewState.QUEUED,)
    QUEUED_STATE: ClassVar = PreviewState.QUEUED
    LEASED: ClassVar = (PreviewState.SOLVING,)
    FAILED_STATE: ClassVar = PreviewState.FAILED
    MOVES: ClassVar = {
        PreviewState.QUEUED: (PreviewState.SOLVING,),
        PreviewState.SOLVING: (PreviewState.READY, PreviewState.FAILED, PreviewState.QUEUED),
    }
    KEPT = timedelta(days=1)

    id = models.UUIDField("ID", primary_key=True, default=uuid.uuid4, editable=False)
    namespace = models.ForeignKey(Namespace, models.CASCADE, related_name="previews")
    environment = models.ForeignKey(Environment, models.CASCADE, null=True, related_name="previews")
    specification = models.ForeignKey(SpecificationRow, models.CASCADE, related_name="+")
    lock = models.ForeignKey(LockRow, models.CASCADE, null=True, related_name="+")
    force_solve = models.BooleanField(default=False)
    state = models.CharField(
        max_length=8, choices=PreviewState.choices, default=PreviewState.QUEUED
    )
    warnings = models.JSONField(
        default=list, help_text="What was accepted but may not be what was meant."
    )
    failure = models.JSONField(null=True)
    verdicts = models.JSONField(default=list, help_text="What the rules said of the lock.")
    requested_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = PreviewQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                condition=models.Q(state="SOLVING") ^ models.Q(lease_expires_at=None),
                name="preview_leased_iff_solving",
            )
        ]
        indexes = [models.Index(fields=["state", "not_before"], name="preview_state")]

    def __str__(self) -> str:
        return f"preview {self.pk}"

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        return {} if retried else super().changes_of_failure(error, retried=retried)

    def changes_when_claimed(self, now: datetime) -> dict[str, Any]:
        return {"started_at": now}

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        return {"finished_at": now} if state in (PreviewState.READY, PreviewState.FAILED) else {}
