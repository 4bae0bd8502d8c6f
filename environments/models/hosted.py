"""Channels that are hosted here: what a team uploaded itself, for conda clients and for builds."""

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
from environments.models.artifacts import Blob
from environments.models.namespaces import Namespace, held


class HostedChannelQuerySet(models.QuerySet["HostedChannel"]):
    def present(self) -> Self:
        return self.filter(deleted_at=None)

    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        """By the roles in the namespace that owns it; a public one everybody may read."""
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
    """A channel of packages that people of one namespace upload.

    The row of a deleted one stays: its name is in specifications, and must never come to mean the
    packages of another team.
    """

    name = models.CharField(
        max_length=128, unique=True, help_text="NAMESPACE/NAME, or a name given by administrators."
    )
    namespace = models.ForeignKey(Namespace, models.PROTECT, related_name="hosted_channels")
    description = models.TextField(blank=True)
    public = models.BooleanField(
        default=False, help_text="Everybody may read it; else those who may see its namespace."
    )
    revision = models.PositiveBigIntegerField(
        default=0, editable=False, help_text="Grows with each change of its packages."
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
        """Of this row, also where a database was begun anew and what was cached of it was not."""
        return f"{self.pk}-{self.created_at.timestamp():.6f}"

    def next_revision(self) -> int:
        """Take the next number. Whoever has it holds the channel's row until the commit.

        So the numbers become visible in their order, and two uploads of one file meet here.
        """
        HostedChannel.objects.filter(pk=self.pk).update(revision=F("revision") + 1)
        self.refresh_from_db(fields=["revision"])
        return self.revision

    def states(self) -> dict[str, int]:
        """Of each subdir that has packages, or had some: the revision of its last change."""
        rows = self.packages.order_by().values("subdir").annotate(last=Max("revision"))
        return dict(rows.values_list("subdir", "last"))


class HostedPackageQuerySet(models.QuerySet["HostedPackage"]):
    def listed(self) -> Self:
        """Those that a solver may choose."""
        return self.filter(yanked_at=None)

    def visible_to(self, actor: Actor) -> Self:
        return self.filter(channel__in=HostedChannel.objects.visible_to(actor).values("pk"))


class HostedPackage(models.Model):
    """One file that was uploaded. Its bytes never change; it is yanked, and not removed."""

    channel = models.ForeignKey(HostedChannel, models.CASCADE, related_name="packages")
    subdir = models.CharField(max_length=32)
    file_name = models.CharField(max_length=400)
    name = models.CharField(max_length=200)
    version = models.CharField(max_length=100)
    build = models.CharField(max_length=200)
    record = models.TextField(help_text="The JSON object that repodata has for it.")
    sha256 = models.CharField(max_length=64, db_index=True)
    md5 = models.CharField(max_length=32)
    size = models.BigIntegerField()
    made_from = models.CharField(
        max_length=64, blank=True, help_text="sha256 of the wheel that it was made from."
    )
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="hosted_packages")
    revision = models.PositiveBigIntegerField(help_text="Of the channel, at its last change.")
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
        """`base`: the URL of the channel."""
        record: dict[str, Any] = json.loads(self.record)
        return CondaPackage.from_record(
            record,
            url=f"{base}/{self.subdir}/{self.file_name}",
            channel=base,
            file_name=self.file_name,
        )
