"""Builds: states and their events, the lease of the worker that runs one, tags and log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Self

import zstandard
from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Perm
from condastore.errors import LeaseLostError, StoreError
from condastore.mail_texts import compose
from environments.domain.lifecycle import FINISHED, MOVES, RUNNING, WITH_PREFIX, BuildState
from environments.models.environments import Environment, allowed
from environments.models.leased_work import (
    Lease,
    LeasedWork,
    LeasedWorkQuerySet,
    failure_json,
)
from environments.models.locks import LockRow, SpecificationRow
from environments.models.notifications import Event, Notification
from environments.models.row_loading import LoadedDirectly


class Prefix(models.Model):
    """A folder that holds a linked build; builds that were copied share it."""

    path = models.CharField(max_length=400, unique=True, help_text="Below the data folder.")
    lock = models.ForeignKey(LockRow, models.PROTECT, related_name="prefixes")
    platform = models.CharField(max_length=32)
    apparent_size = models.BigIntegerField(default=0, help_text="Bytes, as if nothing was shared.")
    unique_size = models.BigIntegerField(default=0, help_text="Bytes that only it holds.")
    share_size = models.BigIntegerField(
        default=0, help_text="Bytes of it, each divided among the prefixes that share it."
    )
    measured_at = models.DateTimeField(default=timezone.now, editable=False, db_index=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name, verbose_name_plural = "prefix", "prefixes"
        default_permissions = ()

    def __str__(self) -> str:
        return self.path


class BuildQuerySet(LeasedWorkQuerySet["Build"]):
    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        return self.filter(
            allowed(actor, perm, through="environment__"),
            environment__deleted_at=None,
            deleted_at=None,
        )

    def visible_to(self, actor: Actor) -> Self:
        return self.with_perm(actor, Perm.VIEW)

    def unfinished(self) -> Self:
        return self.exclude(state__in=FINISHED)


class Build(LoadedDirectly, LeasedWork):
    """One specification, one lock, one history of attempts, one outcome."""

    WAITING: ClassVar = (BuildState.QUEUED,)
    QUEUED_STATE: ClassVar = BuildState.QUEUED
    LEASED: ClassVar = RUNNING
    FAILED_STATE: ClassVar = BuildState.FAILED
    MOVES: ClassVar = MOVES

    environment = models.ForeignKey(Environment, models.PROTECT, related_name="builds")
    number = models.PositiveIntegerField()
    state = models.CharField(
        max_length=12,
        choices=[(state.value, state.value) for state in BuildState],
        default=BuildState.QUEUED.value,
    )
    specification = models.ForeignKey(SpecificationRow, models.PROTECT, related_name="builds")
    source = models.TextField(help_text="The specification as it was written, comments too.")
    lock = models.ForeignKey(LockRow, models.PROTECT, null=True, related_name="builds")
    prefix = models.ForeignKey(Prefix, models.SET_NULL, null=True, related_name="builds")
    platform = models.CharField(max_length=32, help_text="What the prefix is linked for.")
    force_solve = models.BooleanField(default=False)
    restoring = models.BooleanField(
        default=False, help_text="It was ARCHIVED, and is linked again."
    )
    requested_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    resumed_by = models.ForeignKey(
        User,
        models.SET_NULL,
        null=True,
        related_name="+",
        help_text="Who restored it last, or copied it here.",
    )
    idempotency_key = models.CharField(max_length=100, blank=True)
    reason = models.TextField(blank=True, help_text="What it is for, to those who approve.")
    origin = models.ForeignKey(
        "self", models.SET_NULL, null=True, related_name="copies", help_text="It was copied from."
    )

    attempt_started_at = models.DateTimeField(null=True)

    created_at = models.DateTimeField(default=timezone.now, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True)
    failure = models.JSONField(null=True, blank=True)
    verdicts = models.JSONField(default=list)
    progress = models.JSONField(default=dict)
    timings = models.JSONField(default=dict, help_text="Seconds by stage, of the last attempt.")
    link_scripts = models.JSONField(default=list, help_text="Packages whose scripts did not run.")
    sandboxed = models.BooleanField(null=True)
    log_lines = models.PositiveIntegerField(default=0)
    log_archive = models.BinaryField(null=True, editable=False, help_text="zstd, once finished.")

    objects = BuildQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["environment", "number"], name="build_number_once"),
            models.UniqueConstraint(
                fields=["environment", "idempotency_key"],
                condition=~Q(idempotency_key=""),
                name="build_idempotency",
            ),
            models.CheckConstraint(
                condition=Q(state__in=sorted(FINISHED)) ^ Q(finished_at=None),
                name="build_finished_iff_final",
            ),
            models.CheckConstraint(
                condition=~Q(state="READY") | Q(lock__isnull=False, prefix__isnull=False),
                name="build_ready_has_prefix",
            ),
            models.CheckConstraint(
                condition=Q(state__in=sorted(WITH_PREFIX)) | Q(prefix=None),
                name="build_prefix_only_published",
            ),
            models.CheckConstraint(
                condition=Q(state__in=sorted(RUNNING)) ^ Q(lease_expires_at=None),
                name="build_leased_iff_running",
            ),
        ]
        indexes = [
            models.Index(fields=["state", "not_before"]),
            models.Index(fields=["state", "deleted_at", "-id"]),
            models.Index(fields=["lock"]),
            models.Index(fields=["-created_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.environment} build {self.number}"

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    def submission_warnings(self) -> list[str]:
        """Return what was accepted in the submitted text but may not be what was meant."""
        first = self.events.filter(state=BuildState.QUEUED).order_by("pk").first()
        return first.message.splitlines() if first is not None else []

    # --- states --------------------------------------------------------------------------------

    def state_when_claimed(self) -> str:
        # A build that is restored from its archive, or tried again, has its lock: no new solve.
        return BuildState.SOLVING if self.lock_id is None else BuildState.FETCHING

    def claimable(self, now: datetime) -> Q:
        return super().claimable(now) & Q(lock_id=self.lock_id)

    def changes_when_claimed(self, now: datetime) -> dict[str, Any]:
        return {"attempt_started_at": now, "progress": {}}

    def move(
        self, to: str, *, lease: Lease | None = None, message: str = "", **changes: Any
    ) -> None:
        if self.restoring and to in {BuildState.FAILED, BuildState.CANCELLED}:
            to = BuildState.ARCHIVED  # it may be restored another day
        super().move(to, lease=lease, message=message, **changes)

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        changes: dict[str, Any] = {"finished_at": now if state in FINISHED else None}
        if state in FINISHED:
            changes["restoring"] = False
        if state not in WITH_PREFIX:
            # Upkeep removes the row and the folder of a prefix that no build has.
            changes["prefix"] = None
        return changes

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        return {} if retried else {"failure": failure_json(error)}

    def record_event(self, state: str, message: str) -> None:
        BuildEvent.objects.create(build=self, state=state, message=message)
        if state in (BuildState.READY, BuildState.FAILED):
            self._notify_finished(BuildState(state), message)

    def _notify_finished(self, state: BuildState, message: str) -> None:
        """Notify webhooks of the end; by mail only the requester who waited for a decision."""
        environment = self.environment
        waited = settings.EMAIL_URL and self.requested_by and self.waiting.exists()
        mail = compose("build_finished", build=self, state=state.value, message=message)
        Notification.tell(
            Event.BUILD_FINISHED,
            namespace=environment.namespace_id,
            subject=mail.subject,
            text=mail.text,
            data={
                "namespace": environment.namespace.name,
                "environment": environment.name,
                "build": self.number,
                "state": state.value,
                "message": message,
                "requested_by": self.requested_by.get_username() if self.requested_by else None,
            },
            emails=[self.requested_by.email] if waited and self.requested_by else (),
        )

    def give_back(self, lease: Lease, message: str = "its worker was stopped") -> None:
        self.refresh_from_db(fields=["state", "attempt"])
        if self.state == BuildState.CANCELLING:
            self.move(BuildState.CANCELLED, lease=lease)
        else:
            super().give_back(lease, message)

    def give_up_lost(self) -> None:
        if self.state == BuildState.CANCELLING:
            self.move(BuildState.CANCELLED, lease=self.current_lease())
        else:
            super().give_up_lost()

    # --- log -----------------------------------------------------------------------------------

    def append_log(self, lines: Sequence[str], *, lease: Lease | None = None) -> None:
        """Append lines (without line ends), at a cost that does not depend on the log's length."""
        if not lines:
            return
        rows = Build.objects.filter(pk=self.pk, log_archive=None)
        if lease is not None:
            rows = rows.filter(lease_token=lease.token)
        with transaction.atomic():
            if not rows.update(log_lines=F("log_lines") + len(lines)):
                raise LeaseLostError(f"Another worker runs {self} now.")
            total = Build.objects.values_list("log_lines", flat=True).get(pk=self.pk)
            LogChunk.objects.create(
                build=self, first=total - len(lines), count=len(lines), text="\n".join(lines)
            )

    def log_from(self, start: int = 0, *, limit: int = 100_000) -> list[str]:
        """The log's lines from number `start` on."""
        if self.origin_id and not self.log_lines:
            return Build.objects.get(pk=self.origin_id).log_from(start, limit=limit)
        archive = Build.objects.values_list("log_archive", flat=True).get(pk=self.pk)
        if archive is not None:
            text = zstandard.ZstdDecompressor().decompress(bytes(archive), max_output_size=1 << 31)
            lines = text.decode().split("\n")
            return lines[start : start + limit] if text else []
        lines = []
        for chunk in self.log_chunks.filter(first__gt=start - F("count")).order_by("first"):
            part = chunk.text.split("\n")
            lines += part[max(0, start - chunk.first) :]
            if len(lines) >= limit:
                break
        return lines[:limit]

    def reopen_log(self) -> None:
        """Let a finished build's log go on: it is run again."""
        lines = self.log_from(limit=1 << 31)
        reopened = Build.objects.filter(pk=self.pk).exclude(log_archive=None)
        if reopened.update(log_archive=None, log_lines=len(lines)) and lines:
            LogChunk.objects.create(build=self, first=0, count=len(lines), text="\n".join(lines))

    def archive_log(self) -> None:
        """Fold the chunks of a finished build into one compressed value."""
        self.refresh_from_db(fields=["log_lines"])
        chunks = self.log_chunks.order_by("first").values_list("text", flat=True)
        compressor = zstandard.ZstdCompressor(level=6).compressobj()
        packed = bytearray()
        for index, text in enumerate(chunks.iterator()):
            packed += compressor.compress((("\n" if index else "") + text).encode())
        packed += compressor.flush()
        with transaction.atomic():
            folded = Build.objects.filter(
                pk=self.pk, log_archive=None, state__in=FINISHED, log_lines=self.log_lines
            ).update(log_archive=bytes(packed))
            if folded:
                self.log_chunks.all().delete()
                self.announce()


class BuildEvent(models.Model):
    """One move of a build."""

    build = models.ForeignKey(Build, models.CASCADE, related_name="events")
    state = models.CharField(max_length=12)
    at = models.DateTimeField(default=timezone.now, editable=False)
    message = models.TextField(blank=True)

    class Meta:
        ordering = ["pk"]
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.build_id} {self.state}"


class LogChunk(models.Model):
    """Some lines of the log of a build that runs."""

    build = models.ForeignKey(Build, models.CASCADE, related_name="log_chunks")
    first = models.PositiveIntegerField(help_text="Number of its first line, from 0.")
    count = models.PositiveIntegerField()
    text = models.TextField()
    at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["build", "first"], name="log_line_once")]

    def __str__(self) -> str:
        return f"{self.build_id} lines {self.first}-{self.first + self.count}"


class BuildTag(models.Model):
    """A movable name of a build of an environment."""

    environment = models.ForeignKey(Environment, models.CASCADE, related_name="tags")
    name = models.CharField(max_length=64)
    build = models.ForeignKey(Build, models.CASCADE, related_name="tags")
    moved_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["name"]
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["environment", "name"], name="tag_once")]

    def __str__(self) -> str:
        return f"{self.environment}:{self.name}"
