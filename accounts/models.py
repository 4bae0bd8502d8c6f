"""Who someone is: people and service accounts, and the API tokens they hold."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import Self

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.roles import Role

TOKEN_PREFIX = "cs_"  # noqa: S105 - what scanners for leaked secrets look for


class User(AbstractUser):
    """A person, or a service account that signs in by token only."""

    is_service = models.BooleanField("service account", default=False)
    owner = models.ForeignKey(
        "self", models.SET_NULL, null=True, blank=True, related_name="service_accounts"
    )

    class Meta(AbstractUser.Meta):
        abstract = False


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self) -> Self:
        return self.filter(Q(expires_at__gt=timezone.now()), revoked_at=None, user__is_active=True)

    def with_secret(self, secret: str) -> Self:
        return self.filter(digest=token_digest(secret))


def token_digest(secret: str) -> str:
    """Tokens are random, 256 bits: a plain sha256 keeps them as safe as a slow hash would."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_token_secret() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


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
        ApiToken.objects.filter(pk=self.pk).update(last_used_at=at, last_used_address=address)
