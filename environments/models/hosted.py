"""Hosted channels: packages uploaded by a namespace, for conda clients and builds."""

from __future__ import annotations

import json
from typing import Any, Self

from django.db import models
from django.db.models import F, Max, Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import PUBLIC, Perm
from environments.domain.records import CondaPackage
from environments.models.blobs import Blob
from environments.models.namespaces import Namespace, held


class HostedChannelQuerySet(models.QuerySet["HostedChannel"]):
    def present(self) -> Self:
        return self.filter(deleted_at=None)

    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        """Channels by role in the owning namespace; public ones are readable by everybody."""
        if not actor.allows(perm):
            return self.none()
        allowed = held(actor, perm, through="namespace__")
        if perm in PUBLIC:
            public = Q(public=True)
            if actor.only_namespaces is not None:
                public &= Q(namespace__name__in=actor.only_namespaces)
            allowed |= public
        return self.present().filter(allowed)

    def visible_to(self, actor: Actor) -> Self:
        return self.with_perm(actor, Perm.VIEW)


class HostedChannel(models.Model):
    """A channel of packages uploaded by members of one namespace.

    The row of a deleted channel stays: its name is in specifications, and must never refer to
    packages of another team.
    """

    name = models.CharField(
        max_length=128,
        unique=True,
        help_text="NAMESPACE/NAME, or a name chosen by administrators.",
    )
    namespace = models.ForeignKey(Namespace, models.PROTECT, related_name="hosted_channels")
    description = models.TextField(blank=True)
    public = models.BooleanField(
        default=False,
        help_text="Readable by everybody; otherwise by those who may view the namespace.",
    )
    revision = models.PositiveBigIntegerField(
        default=0, editable=False, help_text="Increases with each change of its packages."
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    deleted_at = models.DateTimeField(null=True, editable=False)

    objects = HostedChannelQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        default_permissions = ()

    def __str__(self) -> str:
        return f"hosted/{self.name}"

    @property
    def identity(self) -> str:
        """Identifier of this row that differs after the database was recreated, for caches."""
        return f"{self.pk}-{self.created_at.timestamp():.6f}"

    def next_revision(self) -> int:
        """Take the next revision; the channel's row stays locked until the commit.

        So revisions become visible in order, and concurrent uploads of one file are serialized.
        """
        HostedChannel.objects.filter(pk=self.pk).update(revision=F("revision") + 1)
        self.refresh_from_db(fields=["revision"])
        return self.revision

    def states(self) -> dict[str, int]:
        """Return the revision of the last change of each subdir that has or had packages."""
        rows = self.packages.order_by().values("subdir").annotate(last=Max("revision"))
        return dict(rows.values_list("subdir", "last"))


class HostedPackageQuerySet(models.QuerySet["HostedPackage"]):
    def listed(self) -> Self:
        """Packages that a solver may choose."""
        return self.filter(yanked_at=None)

    def visible_to(self, actor: Actor) -> Self:
        return self.filter(channel__in=HostedChannel.objects.visible_to(actor).values("pk"))


class HostedPackage(models.Model):
    """One uploaded file. It is immutable; it can be yanked but not deleted."""

    channel = models.ForeignKey(HostedChannel, models.CASCADE, related_name="packages")
    subdir = models.CharField(max_length=32)
    file_name = models.CharField(max_length=400)
    name = models.CharField(max_length=200)
    version = models.CharField(max_length=100)
    build = models.CharField(max_length=200)
    record = models.TextField(help_text="JSON object of the package in repodata.")
    sha256 = models.CharField("SHA-256", max_length=64, db_index=True)
    md5 = models.CharField("MD5", max_length=32)
    size = models.BigIntegerField()
    made_from = models.CharField(
        max_length=64, blank=True, help_text="sha256 of the wheel it was converted from."
    )
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="hosted_packages")
    revision = models.PositiveBigIntegerField(
        help_text="Revision of the channel at the last change of this package."
    )
    uploaded_at = models.DateTimeField(default=timezone.now, editable=False)
    uploaded_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    yanked_at = models.DateTimeField(null=True)
    yanked_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    yank_reason = models.TextField(blank=True)

    objects = HostedPackageQuerySet.as_manager()

    class Meta:
        ordering = ["channel", "subdir", "name", "version", "pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["channel", "subdir", "file_name"], name="hosted_package_once"
            )
        ]
        indexes = [models.Index(fields=["channel", "subdir", "revision"])]

    def __str__(self) -> str:
        return f"{self.channel}/{self.subdir}/{self.file_name}"

    def value(self, *, base: str) -> CondaPackage:
        """Return the package. `base` is the URL of the channel."""
        record: dict[str, Any] = json.loads(self.record)
        return CondaPackage.from_record(
            record,
            url=f"{base}/{self.subdir}/{self.file_name}",
            channel=base,
            file_name=self.file_name,
        )
