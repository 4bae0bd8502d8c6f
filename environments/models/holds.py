"""Legal holds: builds or whole environments that cannot be deleted until released."""

from __future__ import annotations

from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.models import User
from environments.models.builds import Build
from environments.models.environments import Environment


class LegalHoldQuerySet(models.QuerySet["LegalHold"]):
    def active(self) -> Self:
        return self.filter(released_at=None)

    def on(self, build: Build) -> Self:
        """Holds that cover `build`: its own, and those of its environment."""
        mine = Q(build=build) | Q(build=None)
        return self.active().filter(mine, environment=build.environment_id)


class LegalHold(models.Model):
    """Who holds a build, or an environment with all of its builds, and why."""

    environment = models.ForeignKey(Environment, models.PROTECT, related_name="holds")
    build = models.ForeignKey(
        Build, models.PROTECT, null=True, related_name="holds", help_text="None means all builds."
    )
    reason = models.TextField()
    placed_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    placed_at = models.DateTimeField(default=timezone.now, editable=False)
    released_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    released_at = models.DateTimeField(null=True)

    objects = LegalHoldQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"hold on {self.build or self.environment}"
