"""Accounts of people and services, their identities, groups and API tokens."""

from __future__ import annotations

import hashlib
import secrets
import string
from datetime import datetime
from typing import Any, Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser, Group
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.roles import Role
from accounts.sealing import seal, unseal
from condastore.databases.writers import optional_write

_LETTERS = string.ascii_letters + string.digits
TOKEN_PREFIX = "cs-"  # noqa: S105 - what scanners for leaked secrets look for


class User(AbstractUser):
    """A person, or a service account that signs in by token only."""

    is_service = models.BooleanField("service account", default=False)
    owner = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="service_accounts"
    )

    class Meta(AbstractUser.Meta):
        abstract = False

    @property
    def is_local(self) -> bool:
        """Whether the account is a person without a directory identity."""
        return not self.is_service and not self.identities.present().exists()

    @property
    def owner_left(self) -> bool:
        """Whether the owner of this service account has left."""
        return self.is_service and (self.owner is None or not self.owner.is_active)

    @property
    def may_act(self) -> bool:
        """Whether the account may sign in: open, and not local if local accounts are off."""
        return self.is_active and (settings.LOCAL_ACCOUNTS or not self.is_local)


#: Service accounts whose owner has left.
OWNER_LEFT = Q(is_service=True) & (Q(owner=None) | Q(owner__is_active=False))


class IdentityQuerySet(models.QuerySet["Identity"]):
    def present(self) -> Self:
        return self.filter(gone_at=None)


class Identity(models.Model):
    """Identity of a user in a directory: `subject` at `issuer`.

    It is the only link from a directory to an account: equal user names or e-mail addresses link
    nothing.
    """

    user = models.ForeignKey(User, models.CASCADE, related_name="identities")
    issuer = models.CharField(
        max_length=255, help_text="Issuer: the identifier that the directory uses for itself."
    )
    subject = models.CharField(
        max_length=255, help_text="Identifier of the person in the directory, never reused."
    )
    directory = models.CharField(
        max_length=32, help_text="Name of the directory in the settings, prefix of its group names."
    )
    sealed_refresh_token = models.TextField(blank=True, editable=False)
    seen_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="Time of the last confirmation by the directory.",
    )
    gone_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="True if the directory no longer has the person.",
    )

    objects = IdentityQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "identities"
        constraints = [models.UniqueConstraint(fields=["issuer", "subject"], name="identity_once")]
        indexes = [models.Index(fields=["directory", "seen_at"])]

    def __str__(self) -> str:
        return f"{self.subject} at {self.issuer}"

    @property
    def refresh_token(self) -> str:
        """Refresh token of an OpenID Connect provider; empty if it issued none."""
        sealed = self.sealed_refresh_token
        return unseal(sealed, purpose=REFRESH_TOKENS) if sealed else ""

    @refresh_token.setter
    def refresh_token(self, secret: str) -> None:
        self.sealed_refresh_token = seal(secret, purpose=REFRESH_TOKENS) if secret else ""


REFRESH_TOKENS = "refresh-tokens"


class ProvisionedPerson(models.Model):
    """A person provisioned by a directory (SCIM).

    The row is deleted when the directory deletes the person; the identity stays as removed.
    """

    identity = models.OneToOneField(Identity, models.CASCADE, related_name="provisioned")
    username = models.CharField(max_length=255, help_text="Current name in the directory.")
    external_id = models.CharField("external ID", max_length=255, blank=True)
    said: Any = models.JSONField(default=dict, help_text="Other attributes from the directory.")

    class Meta:
        verbose_name, verbose_name_plural = "provisioned person", "provisioned people"
        ordering = ["pk"]
        default_permissions = ()
        constraints = [models.UniqueConstraint(Lower("username"), name="provisioned_username_once")]
        indexes = [models.Index(fields=["external_id"])]

    def __str__(self) -> str:
        return self.username

    @property
    def active(self) -> bool:
        return self.identity.gone_at is None and self.identity.user.is_active


class DirectoryGroup(models.Model):
    """Link of a group to a group of a directory, which alone decides its members."""

    group = models.OneToOneField(Group, models.CASCADE, related_name="mirror")
    directory = models.CharField(max_length=32)
    name = models.CharField(max_length=255, help_text="Name in the directory.")
    provisioned = models.BooleanField(
        default=False, help_text="True if members are provisioned by SCIM, not by sign-ins."
    )
    external_id = models.CharField("external ID", max_length=255, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["directory", "name"], name="directory_group_once")
        ]

    def __str__(self) -> str:
        return self.group.name


class DeviceSignInQuerySet(models.QuerySet["DeviceSignIn"]):
    def open(self) -> Self:
        return self.filter(
            expires_at__gt=timezone.now(), approved_by=None, denied_at=None, collected_at=None
        )


class DeviceSignIn(models.Model):
    """Pending sign-in of a command line, approved in the browser (RFC 8628)."""

    digest = models.CharField(max_length=64, unique=True, editable=False)
    user_code = models.CharField(max_length=9, unique=True, editable=False)
    name = models.CharField(max_length=64, help_text="Name of the token that it receives.")
    address = models.CharField(max_length=45, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    asked_at = models.DateTimeField(null=True)
    approved_by = models.ForeignKey(User, models.CASCADE, null=True, related_name="+")
    denied_at = models.DateTimeField(null=True)
    collected_at = models.DateTimeField(null=True)

    objects = DeviceSignInQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "device sign-in", "device sign-ins"

    def __str__(self) -> str:
        return self.user_code


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self, *, now: datetime | None = None) -> Self:
        rows = self.filter(
            Q(expires_at__gt=now or timezone.now()), revoked_at=None, user__is_active=True
        )
        if settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS:
            rows = rows.filter(Q(user__is_service=False) | Q(user__owner__is_active=True))
        if settings.LOCAL_ACCOUNTS:
            return rows
        vouched = Identity.objects.present().values("user")
        return rows.filter(Q(user__is_service=True) | Q(user__in=vouched))

    def with_secret(self, secret: str) -> Self:
        return self.filter(digest=token_digest(secret))


def token_digest(secret: str) -> str:
    """Return the sha256 of a token: tokens have 256 random bits and need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token_secret() -> str:
    """Create a token of letters, digits and hyphens, which conda accepts in `/t/<token>/`."""
    return TOKEN_PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(43))


class ApiToken(models.Model):
    """API token of a user, limited to `role` and `namespaces`."""

    user = models.ForeignKey(User, models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=64)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(
        max_length=12, editable=False, help_text="First characters of the secret."
    )
    role = models.CharField(max_length=16, choices=[(r.value, r.value) for r in Role], blank=True)
    namespaces = models.JSONField(
        default=list, blank=True, help_text="Names of namespaces; empty means all."
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_address = models.GenericIPAddressField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "API token", "API tokens"
        ordering = ["-created_at", "-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["user", "name"], condition=Q(revoked_at=None), name="token_name_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.user.username}"

    @property
    def ceiling(self) -> Role | None:
        """Highest role of this token; None if it is not limited."""
        return Role(self.role) if self.role else None

    def used(self, *, at: datetime, address: str | None) -> None:
        """Record the last use, at most once a minute to avoid writes."""
        with optional_write():
            ApiToken.objects.filter(pk=self.pk).update(last_used_at=at, last_used_address=address)


class InstallationKey(models.Model):
    """Fingerprint of a key of the installation, which must be equal in all processes."""

    name = models.CharField(max_length=32, unique=True)
    fingerprint = models.CharField(max_length=64)
    since = models.DateTimeField(default=timezone.now)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
