"""Record when an environment was last used: downloads, pulls, `run`, and reads of its folder."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.databases.writers import optional_write
from environments.models import Build, Environment

#: How often a last use is recorded at most.
INTERVAL = timedelta(minutes=10)


def note_use(*, actor: Actor, build: Build) -> None:
    """Record that a program runs in a folder of the build, possibly on another machine."""
    require(actor, Perm.DOWNLOAD, build)
    record_use(build.environment)


def record_use(environment: Environment) -> None:
    """Record a download or pull."""
    now = timezone.now()
    if environment.used_at is not None and environment.used_at > now - INTERVAL:
        return
    older = Q(used_at=None) | Q(used_at__lt=now)
    with optional_write():
        Environment.objects.filter(older, pk=environment.pk).update(used_at=now)
    environment.used_at = now
