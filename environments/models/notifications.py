"""Who is told of what: webhooks, and each message until it is delivered."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.utils import timezone

from environments.models.namespaces import Namespace


class Webhook(models.Model):
    """An address that is told of events of a namespace, or of all (no namespace)."""

    namespace = models.ForeignKey(
        Namespace, models.CASCADE, null=True, blank=True, related_name="webhooks"
    )
    url = models.URLField(max_length=500)
    sealed_secret = models.BinaryField(editable=False, help_text="Signs what is sent.")
    events: Any = models.JSONField(default=list, blank=True, help_text="Kinds; empty means all.")
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return self.url


class Notification(models.Model):
    """One message to one webhook or one mail address; tried again until it is delivered."""

    webhook = models.ForeignKey(Webhook, models.CASCADE, null=True, related_name="notifications")
    email = models.EmailField(blank=True)
    event = models.CharField(max_length=64)
    subject = models.CharField(max_length=200)
    content: Any = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    attempts = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="Given up for good.")
    problem = models.TextField(blank=True)

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()
        indexes = [models.Index(fields=["delivered_at", "failed_at", "not_before"])]

    def __str__(self) -> str:
        return f"{self.event} to {self.email or self.webhook}"
