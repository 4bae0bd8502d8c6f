"""Who someone is: people and service accounts, and the API tokens they hold."""

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
        """A person whom no directory vouches for."""
        return not self.is_service and not self.identities.present().exists()

    @property
    def owner_left(self) -> bool:
        """Nobody answers for this service account any more."""
        return self.is_service and (self.owner is None or not self.owner.is_active)

    @property
    def may_act(self) -> bool:
        """False for who was closed, and for local people where local accounts are off."""
        return self.is_active and (settings.LOCAL_ACCOUNTS or not self.is_local)


#: Service accounts for which nobody answers any more.
OWNER_LEFT = Q(is_service=True) & (Q(owner=None) | Q(owner__is_active=False))


class IdentityQuerySet(models.QuerySet["Identity"]):
    def present(self) -> Self:
        return self.filter(gone_at=None)


class Identity(models.Model):
    """That a user is `subject` at `issuer`: what a directory vouches for.

    It is the only way from a directory to an account: a user name or e-mail address that happens to
    be the same leads nowhere.
    """

    user = models.ForeignKey(User, models.CASCADE, related_name="identities")
    issuer = models.CharField(
        max_length=255, help_text="The directory, by the name that it gives itself."
    )
    subject = models.CharField(
        max_length=255, help_text="The person there: never given to another."
    )
    directory = models.CharField(
        max_length=32, help_text="Its name in the settings; its groups' names start with it."
    )
    sealed_refresh_token = models.TextField(blank=True, editable=False)
    seen_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When the directory last confirmed it."
    )
    gone_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The directory no longer knows it."
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
        """What asks an OpenID Connect provider again; empty where it gave none."""
        sealed = self.sealed_refresh_token
        return unseal(sealed, purpose=REFRESH_TOKENS) if sealed else ""

    @refresh_token.setter
    def refresh_token(self, secret: str) -> None:
        self.sealed_refresh_token = seal(secret, purpose=REFRESH_TOKENS) if secret else ""


REFRESH_TOKENS = "refresh-tokens"


class ProvisionedPerson(models.Model):
    """One of the people whom a directory makes and ends here by itself (SCIM).

    Where it deletes one, this row goes; the identity stays, as that of somebody who is gone.
    """

    identity = models.OneToOneField(Identity, models.CASCADE, related_name="provisioned")
    username = models.CharField(max_length=255, help_text="As the directory calls it now.")
    external_id = models.CharField(max_length=255, blank=True)
    said: Any = models.JSONField(default=dict, help_text="What else it says of the person.")

    class Meta:
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
    """That a group mirrors one of a directory's: its members come from there alone."""

    group = models.OneToOneField(Group, models.CASCADE, related_name="mirror")
    directory = models.CharField(max_length=32)
    name = models.CharField(max_length=255, help_text="As the directory calls it.")
    provisioned = models.BooleanField(
        default=False, help_text="Its members are told by SCIM, and by no sign-in."
    )
    external_id = models.CharField(max_length=255, blank=True)

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
    """A command line that waits until its person approves it in the browser (RFC 8628)."""

    digest = models.CharField(max_length=64, unique=True, editable=False)
    user_code = models.CharField(max_length=9, unique=True, editable=False)
    name = models.CharField(max_length=64, help_text="Of the token that it gets.")
    address = models.CharField(max_length=45, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    asked_at = models.DateTimeField(null=True)
    approved_by = models.ForeignKey(User, models.CASCADE, null=True, related_name="+")
    denied_at = models.DateTimeField(null=True)
    collected_at = models.DateTimeField(null=True)

    objects = DeviceSignInQuerySet.as_manager()

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
    """Tokens are random, 256 bits: a plain sha256 keeps them as safe as a slow hash would."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token_secret() -> str:
    """Of letters, digits and hyphens: conda takes no other ones in `/t/<token>/`."""
    return TOKEN_PREFIX + "".join(secrets.choice(_LETTERS) for _ in range(43))


class ApiToken(models.Model):
    """A named secret that acts for its user, at most with `role` and in `namespaces`."""

    user = models.ForeignKey(User, models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=64)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=12, editable=False, help_text="How the secret starts.")
    role = models.CharField(max_length=16, choices=[(r.value, r.value) for r in Role], blank=True)
    namespaces = models.JSONField(default=list, blank=True, help_text="Names; empty means all.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_address = models.GenericIPAddressField(null=True, blank=True)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
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
        """The highest role that this token may act with; None for all that its user has."""
        return Role(self.role) if self.role else None

    def used(self, *, at: datetime, address: str | None) -> None:
        """Record the last use; at most once a minute, so that reads stay reads."""
        with optional_write():
            ApiToken.objects.filter(pk=self.pk).update(last_used_at=at, last_used_address=address)


class InstallationKey(models.Model):
    """A fingerprint of a key of the installation: every process must have the same one."""

    name = models.CharField(max_length=32, unique=True)
    fingerprint = models.CharField(max_length=64)
    since = models.DateTimeField(default=timezone.now)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
