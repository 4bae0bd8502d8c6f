"""Every change, with who made it: append-only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import models
from django.utils import timezone

from accounts.access import Actor
from accounts.models import ApiToken, User


class AuditEvent(models.Model):
    """Written in the same transaction as the change it tells of."""

    at = models.DateTimeField(default=timezone.now, editable=False)
    user = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    username = models.CharField(max_length=150)
    token = models.ForeignKey(ApiToken, models.SET_NULL, null=True, related_name="+")
    address = models.CharField(max_length=45, blank=True)
    action = models.CharField(max_length=64)
    target = models.CharField(max_length=200)
    changes = models.JSONField(default=dict)
    refused = models.BooleanField(default=False, help_text="It was tried, and not allowed.")
    #: Place in the chain; each digest is of this row and of the digest before.
    position = models.PositiveBigIntegerField(unique=True, null=True, editable=False)
    digest = models.CharField(max_length=64, editable=False, blank=True)

    class Meta:
        ordering = ["-pk"]
        default_permissions = ("view",)
        indexes = [models.Index(fields=["target"]), models.Index(fields=["action", "at"])]

    def __str__(self) -> str:
        return f"{self.username} {self.action} {self.target}"

    @classmethod
    def record(
        cls, actor: Actor, action: str, target: object, changes: Mapping[str, Any] | None = None
    ) -> None:
        cls.objects.create(
            user=actor.account if actor.signed_in else None,
            username=actor.name,
            token=actor.token,
            address=actor.address,
            action=action,
            target=str(target)[:200],
            changes=dict(changes or {}),
        )
