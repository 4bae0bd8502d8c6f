"""Blobs: stored bytes, by digest."""

from __future__ import annotations

from django.db import models
from django.utils import timezone


class Blob(models.Model):
    """Bytes that the blob store keeps, once, under their digest.

    The row comes after the bytes, and goes before them.
    """

    sha256 = models.CharField("SHA-256", max_length=64, unique=True)
    size = models.BigIntegerField()
    stored_at = models.DateTimeField(default=timezone.now, editable=False)
    used_at = models.DateTimeField(default=timezone.now, db_index=True)
    checked_at = models.DateTimeField(null=True, help_text="Last read and found whole.")
    damaged_at = models.DateTimeField(null=True, help_text="Found with other bytes, or none.")
    removing_at = models.DateTimeField(
        null=True, db_index=True, help_text="When it was found that nothing needs it."
    )

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"sha256:{self.sha256[:12]}"
