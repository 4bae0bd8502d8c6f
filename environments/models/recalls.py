"""Recalled packages: nothing that contains one is built or served."""

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
        """All recalls for those who may recall; otherwise those that affect a visible build."""
        if holds_everywhere(actor, RECALL_PACKAGES, Perm.MANAGE):
            return self.all()
        seen = Build.objects.visible_to(actor).order_by().exclude(lock=None)
        return self.filter(
            pk__in=RecalledLock.objects.filter(lock__in=seen.values("lock")).values("recall")
        )


class Recall(models.Model):
    """A recalled package or range, by MatchSpec or digest; in force until it is undone."""

    manager = models.CharField(max_length=8, default="conda")  # or "pypi"
    spec = models.CharField(max_length=500, blank=True)
    sha256 = models.CharField("SHA-256", max_length=64, blank=True)
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
    """A lock that holds a recalled package; written when either is stored, checked before
    serving."""

    recall = models.ForeignKey(Recall, models.CASCADE, related_name="locks")
    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="recalls")
    packages: Any = models.JSONField(default=list, help_text="Recalled packages in the lock.")

    objects = RecalledLockQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["recall", "lock"], name="recalled_once")]

    def __str__(self) -> str:
        return f"{self.recall} in {self.lock}"


def recall_reason(lock: str) -> Subquery:
    """Return an expression for why the lock in column `lock` is recalled; null if it is not."""
    found = RecalledLock.objects.active().filter(lock=OuterRef(lock)).order_by("recall")
    return Subquery(found.values("recall__reason")[:1])


def refuse_recalled(build: Build) -> None:
    """Refuse to serve contents of a recalled build. Called before anything of a build is served.

    Raises:
        RecalledError: the build's lock holds a recalled package.
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
        f"{build} holds recalled packages ({', '.join(packages)}): {reasons}",
        details={"recalls": [hit.recall_id for hit in hits], "packages": packages},
    )
