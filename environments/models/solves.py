"""Stored solves: the lock of equal inputs, and the attempt that computes it.

A solve runs only within an attempt of a build or a preview, so it has no lease of its own: it is
covered by the lease of that attempt, which the heartbeat of the attempt renews. Once no build and
no preview holds a valid lease of `lease_owner`, another attempt may take the solve over.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Self

from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from condastore import row_changes
from environments.models.builds import Build
from environments.models.leased_work import Lease, LeasedWork
from environments.models.locks import LockRow, SpecificationRow
from environments.models.previews import Preview

#: Kinds of leased work whose attempts solve.
SOLVERS: tuple[type[LeasedWork], ...] = (Build, Preview)


class SolveRowQuerySet(models.QuerySet["SolveRow"]):
    def abandoned(self, now: datetime) -> Self:
        """Unfinished solves whose attempt has lost its lease, or has ended."""
        rows = self.filter(lock=None)
        for model in SOLVERS:
            leased = model._default_manager.all().running(now).order_by()  # type: ignore[attr-defined]
            rows = rows.exclude(Exists(leased.filter(lease_owner=OuterRef("lease_owner"))))
        return rows


class SolveRow(models.Model):
    """A finished or running solve, reused for the same inputs."""

    #: sha256 of specification, channel states, platforms and policy version.
    key = models.CharField(max_length=64, unique=True)
    specification = models.ForeignKey(SpecificationRow, models.CASCADE, related_name="solves")
    lock = models.ForeignKey(
        LockRow, models.CASCADE, null=True, related_name="solves", help_text="Null while solving."
    )
    channel_state = models.CharField(max_length=64)
    seconds = models.FloatField(default=0)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    lease_owner = models.CharField(
        max_length=200, blank=True, help_text="Owner of the lease of the attempt that solves."
    )

    objects = SolveRowQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "stored solve", "stored solves"
        default_permissions = ()
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(lock=None) ^ Q(lease_owner=""), name="solve_owned_iff_unfinished"
            )
        ]

    def __str__(self) -> str:
        return f"{self.specification} -> {self.lock}"

    @property
    def topic(self) -> str:
        """Topic of notices; those who wait know only the key."""
        return f"solve:{self.key}"

    def take_over(self, lease: Lease) -> bool:
        """Let the attempt with `lease` solve, if the attempt that did so is gone."""
        rows = SolveRow.objects.filter(pk=self.pk, lease_owner=self.lease_owner)
        abandoned = rows.abandoned(timezone.now())
        # Read first: SQLite has one writer at a time, and waiting attempts ask often.
        return abandoned.exists() and bool(abandoned.update(lease_owner=lease.owner))

    def finish(self, lease: Lease, lock: LockRow, *, seconds: float) -> None:
        """Store the lock, unless another attempt has taken the solve over."""
        rows = SolveRow.objects.filter(pk=self.pk, lease_owner=lease.owner)
        rows.update(lock=lock, lease_owner="", seconds=seconds)
        row_changes.announce(self.topic)

    def give_up(self, lease: Lease) -> None:
        """Let the next attempt solve, unless one has taken the solve over already."""
        SolveRow.objects.filter(pk=self.pk, lease_owner=lease.owner).delete()
        row_changes.announce(self.topic)
