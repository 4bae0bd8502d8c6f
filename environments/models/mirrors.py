"""Mirrors of remote channels: what they list through the rules, now and at the end of a day."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import PUBLIC, Perm
from condastore.errors import StoreError
from environments.models.blobs import Blob
from environments.models.clock_bounds import SKEW
from environments.models.leased_work import (
    LeasedWork,
    LeasedWorkQuerySet,
    RetryPolicy,
    failure_json,
    in_states,
)
from environments.models.namespaces import Namespace, held


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


class MirrorWork(LeasedWork):
    """Work at a mirror, which is tried again by request or by interval, not by number."""

    #: A request after a failure starts no new attempt within this time.
    REST = timedelta(seconds=30)

    tried_at = models.DateTimeField(null=True)
    failure = models.JSONField(null=True, help_text="Why the last attempt failed.")

    class Meta:
        abstract = True

    def changes_when_claimed(self, now: datetime) -> dict[str, Any]:
        return {"tried_at": now}

    @property
    def rests(self) -> bool:
        """True if the last attempt failed a moment ago."""
        return (
            self.failure is not None
            and self.tried_at is not None
            and timedelta(0) <= timezone.now() + SKEW - self.tried_at < self.REST + SKEW
        )


class IndexState(models.TextChoices):
    WAITING = "WAITING"
    READING = "READING"


class MirrorIndexQuerySet(LeasedWorkQuerySet["MirrorIndex"]):
    pass


class MirrorIndex(MirrorWork):
    """All that one subdir of a mirror ever listed. Its upstream is read at intervals."""

    #: The interval is shortened at random by up to this part of it.
    JITTER = 0.1

    WAITING: ClassVar = (IndexState.WAITING,)
    QUEUED_STATE: ClassVar = IndexState.WAITING
    LEASED: ClassVar = (IndexState.READING,)
    FAILED_STATE: ClassVar = IndexState.WAITING
    MOVES: ClassVar = {
        IndexState.WAITING: (IndexState.READING,),
        IndexState.READING: (IndexState.WAITING,),
    }

    mirror = models.ForeignKey(Mirror, models.CASCADE, related_name="indexes")
    subdir = models.CharField(max_length=32)
    state = models.CharField(max_length=7, choices=IndexState.choices, default=IndexState.WAITING)
    #: What the upstream said of its index file (`engine.channels.mirror_fetch.State`).
    upstream_state = models.JSONField(default=dict)
    history = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="mirror_histories")
    records = models.PositiveIntegerField(default=0, help_text="Listed at the last look.")
    looked_at = models.DateTimeField(null=True, help_text="When the last good look began.")
    changed_at = models.DateTimeField(null=True)

    objects = MirrorIndexQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "mirror index", "mirror indexes"
        ordering = ["mirror", "subdir"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["mirror", "subdir"], name="mirror_subdir_once"),
            models.CheckConstraint(
                condition=Q(state="READING") ^ Q(lease_expires_at=None),
                name="mirror_index_leased_iff_reading",
            ),
        ]
        indexes = [models.Index(fields=["state", "not_before"], name="mirrorindex_state")]

    def __str__(self) -> str:
        return f"{self.mirror.name}/{self.subdir}"

    @classmethod
    def retry_policy(cls) -> RetryPolicy:
        interval = settings.MIRROR_INTERVAL
        pause = min(interval, 2 * cls.REST)
        return RetryPolicy(attempts=0, backoff=pause, longest=pause, interval=interval)

    def claimable(self, now: datetime) -> Q:
        # A message asks for a reading now; `not_before` only says when the sweep sends the next.
        return in_states(self.WAITING)

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        # Upstreams that were read at the same time, as after an outage, drift apart again.
        shortened = 1 - self.JITTER * random.random()  # noqa: S311  # nosec B311 - no secret
        return {"attempt": 0, "not_before": now + shortened * self.retry_policy().interval}

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        pause = self.retry_policy().backoff
        return {"failure": failure_json(error), "not_before": timezone.now() + pause}

    def give_up_lost(self) -> None:
        with transaction.atomic():
            self.require_expired()
            self.requeue(delay=timedelta(0), message="", lease=self.current_lease())


class ViewState(models.TextChoices):
    WAITING = "WAITING"
    RENDERING = "RENDERING"
    READY = "READY"
    FAILED = "FAILED"  # until it is requested again


class MirrorViewQuerySet(LeasedWorkQuerySet["MirrorView"]):
    pass


class MirrorView(MirrorWork):
    """What a policy leaves of an index at one moment, as files; `key` is a digest of its inputs."""

    WAITING: ClassVar = (ViewState.WAITING,)
    QUEUED_STATE: ClassVar = ViewState.WAITING
    LEASED: ClassVar = (ViewState.RENDERING,)
    FAILED_STATE: ClassVar = ViewState.FAILED
    MOVES: ClassVar = {
        ViewState.WAITING: (ViewState.RENDERING,),
        ViewState.RENDERING: (ViewState.READY, ViewState.FAILED, ViewState.WAITING),
        ViewState.FAILED: (ViewState.RENDERING,),
    }

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
    state = models.CharField(max_length=9, choices=ViewState.choices, default=ViewState.WAITING)

    objects = MirrorViewQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["index", "moment", "key"], name="mirror_view_once"),
            models.CheckConstraint(
                condition=Q(state="RENDERING") ^ Q(lease_expires_at=None),
                name="mirror_view_leased_iff_rendering",
            ),
            models.CheckConstraint(
                condition=Q(state="READY") ^ Q(made_at=None),
                name="mirror_view_made_at_iff_ready",
            ),
            models.CheckConstraint(
                condition=Q(made_at=None)
                | Q(repodata__isnull=False, shard_index__isnull=False, shards__isnull=False),
                name="mirror_view_made_has_files",
            ),
        ]
        indexes = [models.Index(fields=["state", "not_before"], name="mirrorview_state")]

    def __str__(self) -> str:
        return f"{self.index}@{self.moment}" if self.moment else str(self.index)

    def claimable(self, now: datetime) -> Q:
        # After a change of the upstream, used views are rendered again, failed ones included.
        return super().claimable(now) | in_states((ViewState.FAILED,))

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        return {"made_at": now, "failure": None} if state == ViewState.READY else {}

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        return {} if retried else super().changes_of_failure(error, retried=retried)

    def retry(self) -> bool:
        """Requeue a view that could not be rendered, unless that was a moment ago."""
        if self.state != ViewState.FAILED or self.rests:
            return False
        rows = MirrorView.objects.filter(pk=self.pk, state=ViewState.FAILED)
        requeued = rows.update(
            state=ViewState.WAITING, attempt=0, not_before=timezone.now(), message_sent_at=None
        )
        self.refresh_from_db()
        return bool(requeued)


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
