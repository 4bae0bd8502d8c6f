"""Previews: solves without a build, so that a person sees what would change."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from condastore.errors import StoreError
from environments.domain.policy import Verdict
from environments.models.clock_bounds import older
from environments.models.environments import Environment
from environments.models.locks import LockRow, SpecificationRow
from environments.models.namespaces import Namespace


class PreviewState(models.TextChoices):
    QUEUED = "QUEUED"
    SOLVING = "SOLVING"
    READY = "READY"
    FAILED = "FAILED"


class PreviewQuerySet(models.QuerySet["Preview"]):
    def visible_to(self, actor: Actor) -> Self:
        return self.filter(namespace__in=Namespace.objects.visible_to(actor).values("pk"))


class Preview(models.Model):
    """One solve that a person asked for, kept for a day."""

    KEPT = timedelta(days=1)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
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

    def __str__(self) -> str:
        return f"preview {self.pk}"

    def claim(self, *, patience: timedelta) -> bool:
        """Start it, or start it again where whoever started it was silent for `patience`."""
        now = timezone.now()
        lost = older("started_at", now, than=patience) & Q(state=PreviewState.SOLVING)
        return bool(
            Preview.objects.filter(Q(state=PreviewState.QUEUED) | lost, pk=self.pk).update(
                state=PreviewState.SOLVING, started_at=now
            )
        )

    def give_back(self) -> None:
        """Let another worker begin anew: this one stops, or the database was away."""
        Preview.objects.filter(pk=self.pk, state=PreviewState.SOLVING).update(
            state=PreviewState.QUEUED
        )

    def finish(
        self,
        *,
        lock: LockRow | None = None,
        verdicts: Sequence[Verdict] = (),
        error: StoreError | None = None,
    ) -> None:
        changes: dict[str, Any] = {"finished_at": timezone.now(), "lock": lock}
        changes["verdicts"] = [verdict.to_json() for verdict in verdicts]
        if error is None:
            changes["state"] = PreviewState.READY
        else:
            changes |= {"state": PreviewState.FAILED, "failure": failure_json(error)}
        Preview.objects.filter(pk=self.pk, state=PreviewState.SOLVING).update(**changes)


def failure_json(error: StoreError) -> dict[str, Any]:
    """An error as it is stored and shown: JSON values only."""
    return {
        "code": error.code,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "details": dict(error.details),
    }
