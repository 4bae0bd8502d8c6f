"""Packages that were called back: nothing that contains one is built or served."""

from __future__ import annotations

from typing import Self

from django.db import models
from django.utils import timezone

from accounts.models import User
from environments.models.locks import LockRow


class RecallQuerySet(models.QuerySet["Recall"]):
    def active(self) -> Self:
        return self.filter(undone_at=None)


class Recall(models.Model):
    """One package or range of them, by MatchSpec or by digest; holds until it is undone."""

    manager = models.CharField(max_length=8, default="conda")  # or "pypi"
    spec = models.CharField(max_length=500, blank=True)
    sha256 = models.CharField(max_length=64, blank=True)
    reason = models.TextField()
    recalled_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    recalled_at = models.DateTimeField(default=timezone.now, editable=False)
    undone_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    undone_at = models.DateTimeField(null=True)

    objects = RecallQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.spec or f"sha256:{self.sha256[:12]}"


class RecalledLock(models.Model):
    """A lock that holds a recalled package: found when either comes, asked at every door."""

    recall = models.ForeignKey(Recall, models.CASCADE, related_name="locks")
    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="recalls")
    packages = models.JSONField(default=list, help_text="Names of what it holds of them.")

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["recall", "lock"], name="recalled_once")]

    def __str__(self) -> str:
        return f"{self.recall} in {self.lock}"
