"""When was an environment last used: noted by downloads, pulls, `run`, and looks at its folder."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.databases.writers import optional_write
from environments.models import Build, Environment

#: A last use is written no more often.
AGAIN = timedelta(minutes=10)


def note_use(*, actor: Actor, build: Build) -> None:
    """Somebody runs something in a folder of it, perhaps on a machine whose disk we never see."""
    require(actor, Perm.DOWNLOAD, build)
    used(build.environment)


def used(environment: Environment) -> None:
    """Somebody downloaded, or pulled, something of it."""
    now = timezone.now()
    if environment.used_at is not None and environment.used_at > now - AGAIN:
        return
    older = Q(used_at=None) | Q(used_at__lt=now)
    with optional_write():
        Environment.objects.filter(older, pk=environment.pk).update(used_at=now)
    environment.used_at = now
