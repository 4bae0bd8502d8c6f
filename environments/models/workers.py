"""Heartbeats of workers, and leader election of the scheduler, as rows of the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from environments.models.clock_bounds import expired, valid
from environments.models.namespaces import READ_METRICS


class WorkerQuerySet(models.QuerySet["Worker"]):
    def alive(self) -> Self:
        return self.filter(valid("expires_at", timezone.now(), life=Worker.LIFE))


class Worker(models.Model):
    """A worker process; its row expires unless the process renews it."""

    SCHEDULER = "scheduler"
    #: How long a worker counts as alive after its last heartbeat.
    LIFE = timedelta(seconds=20)

    name = models.CharField(max_length=200, unique=True)
    platform = models.CharField(max_length=32, blank=True)
    queues = models.JSONField(default=list)
    #: Missing isolation of the worker's machine: {"sandbox": sentence, "confinement": sentence}.
    unprotected = models.JSONField(default=dict, blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()

    objects = WorkerQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        default_permissions = ("view",)
        permissions = [(READ_METRICS, "May read the metrics of the installation")]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def announce(
        cls,
        name: str,
        *,
        platform: str,
        queues: list[str],
        life: timedelta,
        unprotected: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        cls.objects.update_or_create(
            name=name,
            defaults={
                "platform": platform,
                "queues": queues,
                "unprotected": dict(unprotected),
                "expires_at": timezone.now() + life,
            },
        )


class Leader(models.Model):
    """Leader election: one process at a time holds a duty, by a guarded UPDATE."""

    duty = models.CharField(max_length=32, unique=True)
    owner = models.CharField(max_length=200)
    expires_at = models.DateTimeField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.duty}: {self.owner}"

    @classmethod
    def lead(cls, duty: str, owner: str, *, life: timedelta) -> bool:
        """Take or renew the duty for `owner`; False if another process holds it."""
        now = timezone.now()
        free = Q(owner=owner) | expired("expires_at", now, life=life)
        changes = {"owner": owner, "expires_at": now + life}
        if cls.objects.filter(free, duty=duty).update(**changes):
            return True
        if cls.objects.filter(duty=duty).exists():
            return False
        return cls.objects.get_or_create(duty=duty, defaults=changes)[0].owner == owner
