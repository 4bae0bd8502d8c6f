"""Mirrors of remote channels: what they list through the rules, now and at the end of a day."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import PUBLIC, Perm
from condastore.errors import LeaseLostError, StoreError
from environments.models.artifacts import Blob
from environments.models.clock_bounds import SKEW, expired
from environments.models.namespaces import Namespace, held
from environments.models.previews import failure_json


class MirrorQuerySet(models.QuerySet["Mirror"]):
    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        """Read: by a role in the mirror's namespace; without one, all who sign in; public: all.

        Everything else is for administrators of the installation.
        """
        if actor.is_superuser:
            return self.all()
        if perm not in PUBLIC or not actor.allows(perm):
            return self.none()
        namespaces = Namespace.objects.filter(held(actor, perm)).order_by().values("pk")
        allowed = Q(public=True) | Q(namespace__in=namespaces, namespace__isnull=False)
        if actor.signed_in and actor.only_namespaces is None:
            allowed |= Q(namespace=None)
        return self.filter(allowed)

    def visible_to(self, actor: Actor) -> Self:
        return self.with_perm(actor, Perm.VIEW)


class Mirror(models.Model):
    """A remote channel that clients read here, through the rules of a namespace."""

    name = models.CharField(max_length=64, unique=True)
    upstream = models.CharField(max_length=500, help_text="Its URL, without credentials.")
    namespace = models.ForeignKey(
        Namespace,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="mirrors",
        help_text="Whose rules hold, and whose people read it; none: the installation's rules.",
    )
    public = models.BooleanField(default=False, help_text="Everybody may read it.")
    subdirs = models.JSONField(default=list)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")

    objects = MirrorQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        default_permissions = ()

    def __str__(self) -> str:
        return f"mirror {self.name}"


class Worked(models.Model):
    """A row that one worker at a time works on; it holds a lease, whose token its writes carry."""

    #: What could not be done is not tried again at once, however often it is asked for.
    REST = timedelta(seconds=30)

    lease_token = models.PositiveBigIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True)
    message_sent_at = models.DateTimeField(null=True)
    tried_at = models.DateTimeField(null=True)
    failure = models.JSONField(null=True, help_text="Why the last attempt failed.")

    class Meta:
        abstract = True

    @classmethod
    def free(cls, now: datetime) -> Q:
        return Q(lease_expires_at=None) | expired("lease_expires_at", now, life=settings.LEASE)

    def claim(self, *, life: timedelta) -> int | None:
        """The token of a new lease; None where another worker has it."""
        now = timezone.now()
        rows: Any = type(self)._default_manager.filter(self.free(now), pk=self.pk)
        if not rows.update(
            lease_token=F("lease_token") + 1, lease_expires_at=now + life, tried_at=now
        ):
            return None
        self.refresh_from_db()
        return self.lease_token

    def renew(self, token: int, *, life: timedelta) -> bool:
        rows: Any = type(self)._default_manager.filter(pk=self.pk, lease_token=token)
        return bool(rows.update(lease_expires_at=timezone.now() + life))

    def finish(self, token: int, **changes: Any) -> None:
        """Give the lease back with what was done; LeaseLostError where another has it."""
        rows: Any = type(self)._default_manager.filter(pk=self.pk, lease_token=token)
        changes |= {"lease_expires_at": None, "message_sent_at": None}
        if not rows.update(**changes):
            raise LeaseLostError("Another worker does it now.")
        self.refresh_from_db()

    def fail(self, token: int, error: StoreError) -> None:
        self.finish(token, failure=failure_json(error))

    @property
    def rests(self) -> bool:
        """It failed a moment ago."""
        return (
            self.failure is not None
            and self.tried_at is not None
            and timedelta(0) <= timezone.now() + SKEW - self.tried_at < self.REST + SKEW
        )


class MirrorIndex(Worked):
    """All that one subdir of a mirror ever listed, and when it was looked at."""

    mirror = models.ForeignKey(Mirror, models.CASCADE, related_name="indexes")
    subdir = models.CharField(max_length=32)
    #: What the channel said of its file (`engine.channels.mirror_fetch.State`).
    state = models.JSONField(default=dict)
    history = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="mirror_histories")
    records = models.PositiveIntegerField(default=0, help_text="Listed at the last look.")
    looked_at = models.DateTimeField(null=True, help_text="When the last good look began.")
    changed_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["mirror", "subdir"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["mirror", "subdir"], name="mirror_subdir_once")
        ]

    def __str__(self) -> str:
        return f"{self.mirror.name}/{self.subdir}"


class MirrorView(Worked):
    """What the rules leave of an index at one moment, as files; `key`: what it is made from."""

    index = models.ForeignKey(MirrorIndex, models.CASCADE, related_name="views")
    moment = models.CharField(
        max_length=10, blank=True, help_text="A day (2026-11-01); empty: what is listed now."
    )
    key = models.CharField(max_length=64)
    policy_version = models.CharField(max_length=16)
    repodata = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="mirror_repodata")
    shard_index = models.ForeignKey(
        Blob, models.PROTECT, null=True, related_name="mirror_shard_indexes"
    )
    shards = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="mirror_shards")
    packages = models.PositiveIntegerField(default=0)
    refused = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    made_at = models.DateTimeField(null=True)
    used_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        ordering = ["pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["index", "moment", "key"], name="mirror_view_once"),
            models.CheckConstraint(
                condition=Q(made_at=None)
                | Q(repodata__isnull=False, shard_index__isnull=False, shards__isnull=False),
                name="mirror_view_made_has_files",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.index}@{self.moment}" if self.moment else str(self.index)


class MirrorPackage(models.Model):
    """A package that was asked for: kept for as long as there is the mirror."""

    mirror = models.ForeignKey(Mirror, models.CASCADE, related_name="packages")
    subdir = models.CharField(max_length=32)
    file_name = models.CharField(max_length=300)
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="mirror_packages")
    fetched_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["mirror", "subdir", "file_name", "blob"], name="mirror_package_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.mirror.name}/{self.subdir}/{self.file_name}"
