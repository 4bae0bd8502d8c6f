"""Packages that were called back: nothing that contains one is built or served."""

from __future__ import annotations

from typing import Any, Self

from django.db import models
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Perm
from condastore.errors import RecalledError
from environments.models.builds import Build
from environments.models.locks import LockRow
from environments.models.namespaces import RECALL_PACKAGES, holds_everywhere


class RecallQuerySet(models.QuerySet["Recall"]):
    def active(self) -> Self:
        return self.filter(undone_at=None)

    def visible_to(self, actor: Actor) -> Self:
        """All for those who recall; else those that hit a build which the actor sees."""
        if holds_everywhere(actor, RECALL_PACKAGES, Perm.MANAGE):
            return self.all()
        seen = Build.objects.visible_to(actor).order_by().exclude(lock=None)
        return self.filter(
            pk__in=RecalledLock.objects.filter(lock__in=seen.values("lock")).values("recall")
        )


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
        permissions = [(RECALL_PACKAGES, "May recall packages in the whole installation")]

    def __str__(self) -> str:
        return self.spec or f"sha256:{self.sha256[:12]}"


class RecalledLockQuerySet(models.QuerySet["RecalledLock"]):
    def active(self) -> Self:
        return self.filter(recall__undone_at=None)


class RecalledLock(models.Model):
    """A lock that holds a recalled package: found when either comes, asked at every door."""

    recall = models.ForeignKey(Recall, models.CASCADE, related_name="locks")
    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="recalls")
    packages: Any = models.JSONField(default=list, help_text="What it holds of them.")

    objects = RecalledLockQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["recall", "lock"], name="recalled_once")]

    def __str__(self) -> str:
        return f"{self.recall} in {self.lock}"


def recall_reason(lock: str) -> Subquery:
    """An expression: why the lock in the column `lock` is recalled; null where it is not."""
    found = RecalledLock.objects.active().filter(lock=OuterRef(lock)).order_by("recall")
    return Subquery(found.values("recall__reason")[:1])


def refuse_recalled(build: Build) -> None:
    """Every door that gives away what a build holds asks here first.

    Raises:
        RecalledError: the build's lock holds a package that was called back.
    """
    if build.lock_id is None:
        return
    found = RecalledLock.objects.active().filter(lock=build.lock_id).select_related("recall")
    hits = list(found.order_by("recall"))
    if not hits:
        return
    packages = sorted({package for hit in hits for package in hit.packages})
    reasons = " ".join(dict.fromkeys(hit.recall.reason for hit in hits))
    raise RecalledError(
        f"{build} holds what was recalled ({', '.join(packages)}): {reasons}",
        details={"recalls": [hit.recall_id for hit in hits], "packages": packages},
    )
