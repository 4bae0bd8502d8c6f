"""Channels in use, their indexed package names, and credentials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Perm
from accounts.sealing import seal, unseal
from environments.domain.credential_scopes import in_scope
from environments.domain.names import Credential
from environments.domain.urls import canonical_or_same
from environments.models.namespaces import Namespace

CHANNEL_CREDENTIALS = "channel-credentials"
#: URL scheme of registry logins, which share a table with channel credentials.
REGISTRY = "oci://"


class Channel(models.Model):
    """A channel by its base URL, without credentials."""

    url = models.CharField("URL", max_length=500, unique=True)
    first_seen_at = models.DateTimeField(default=timezone.now, editable=False)
    indexed_state = models.CharField(max_length=64, blank=True)
    indexed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["url"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.url


class IndexedPackage(models.Model):
    """One package name of a channel, for search; updated when the channel's state changes."""

    channel = models.ForeignKey(Channel, models.CASCADE, related_name="packages")
    name = models.CharField(max_length=200)
    latest_version = models.CharField(max_length=100, blank=True)
    versions = models.PositiveIntegerField(default=0)
    subdirs = models.JSONField(default=list)
    license = models.CharField(max_length=300, blank=True)
    summary = models.TextField(blank=True)

    class Meta:
        ordering = ["name", "channel__url"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["channel", "name"], name="channel_package_once")
        ]
        indexes = [models.Index(fields=["name"])]

    def __str__(self) -> str:
        return f"{self.channel.url}::{self.name}"


class ChannelCredentialQuerySet(models.QuerySet["ChannelCredential"]):
    def usable_in(self, namespace: Namespace) -> list[ChannelCredential]:
        """Return the channel credentials that builds of `namespace` may use, by precedence.

        These are its own, and those of the installation whose scope includes it. A longer prefix
        comes first; with equal prefixes the namespace's own.
        """
        rows = self.channels().filter(Q(namespace=None) | Q(namespace=namespace))
        return _by_precedence(
            row
            for row in rows
            if row.namespace_id is not None
            or in_scope(row.namespaces, namespace.name, personal=namespace.personal)
        )

    def usable_by_mirror(self, namespace: Namespace | None) -> list[ChannelCredential]:
        """Return the channel credentials of a mirror of `namespace` (None: of the installation).

        Mirrors are created by administrators, so credentials of the installation apply in any
        scope.
        """
        mine = (
            Q(namespace=None) if namespace is None else Q(namespace=None) | Q(namespace=namespace)
        )
        return _by_precedence(self.channels().filter(mine))

    def channels(self) -> Self:
        """Credentials of channels, without registry logins."""
        return self.exclude(url_prefix__startswith=REGISTRY)

    def of_registry(self, namespace: Namespace | None, place: str) -> ChannelCredential | None:
        """Return the login for `host/team/name` of a namespace, or of the installation (None)."""
        rows = self.filter(namespace=namespace, url_prefix__startswith=REGISTRY)
        requested = f"{REGISTRY}{place}/"
        fitting = [row for row in rows if requested.startswith(f"{row.url_prefix}/")]
        return max(fitting, key=lambda row: len(row.url_prefix), default=None)

    def visible_to(self, actor: Actor) -> Self:
        """Credentials of managed namespaces; those of the installation for administrators."""
        run = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
        shown = Q(namespace__in=run)
        return self.filter(shown | Q(namespace=None) if actor.is_superuser else shown)


def _by_precedence(rows: Iterable[ChannelCredential]) -> list[ChannelCredential]:
    return sorted(rows, key=lambda row: (-len(row.url_prefix), row.namespace_id is None, row.pk))


class ChannelCredential(models.Model):
    """An encrypted secret for URLs that start with `url_prefix`; never shown again."""

    namespace = models.ForeignKey(
        Namespace, models.CASCADE, null=True, blank=True, related_name="credentials"
    )
    url_prefix = models.CharField("URL prefix", max_length=500)
    kind = models.CharField(max_length=8, choices=[("token", "token"), ("basic", "basic")])
    base = models.CharField(
        max_length=500, blank=True, help_text="URL before a token that is part of the path."
    )
    sealed = models.TextField(editable=False)
    namespaces = models.JSONField(
        default=list,
        blank=True,
        help_text="For credentials of the installation: names and patterns of the namespaces whose "
        "builds use it. A wildcard never matches a personal namespace.",
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ChannelCredentialQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["namespace", "url_prefix"], name="credential_once"),
            models.UniqueConstraint(
                fields=["url_prefix"], condition=Q(namespace=None), name="common_credential_once"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} for {self.url_prefix}"

    def seal(self, secret: str) -> None:
        self.sealed = seal(secret, purpose=CHANNEL_CREDENTIALS)

    def value(self) -> Credential:
        kind: Literal["token", "basic"] = "basic" if self.kind == "basic" else "token"
        return Credential(
            url_prefix=canonical_or_same(self.url_prefix),
            kind=kind,
            secret=self.secret,
            base=canonical_or_same(self.base),
        )

    @property
    def secret(self) -> str:
        """The secret; empty if the installation's key has changed, so that it must be set again."""
        return unseal(self.sealed, purpose=CHANNEL_CREDENTIALS)
