"""Push rules, and the pushes of current builds' images to other registries."""

from __future__ import annotations

from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Perm
from condastore.errors import StoreError
from environments.models.audit import AuditEvent
from environments.models.builds import Build
from environments.models.environments import Environment
from environments.models.leased_work import Lease, LeasedWork, LeasedWorkQuerySet, RetryPolicy
from environments.models.namespaces import Namespace


class PushRuleQuerySet(models.QuerySet["PushRule"]):
    def visible_to(self, actor: Actor) -> Self:
        """For those who run the namespace."""
        run = Namespace.objects.with_perm(actor, Perm.MANAGE).order_by().values("pk")
        return self.filter(namespace__in=run)


class PushRule(models.Model):
    """Environments of a namespace whose current build is sent to another registry, and whereto."""

    namespace = models.ForeignKey(Namespace, models.CASCADE, related_name="push_rules")
    pattern = models.CharField(max_length=64, help_text="Names of environments: `ml`, `ml-*`, `*`.")
    target = models.CharField(
        max_length=300, help_text="registry.example.org/team/{environment}:{build}"
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")

    objects = PushRuleQuerySet.as_manager()

    class Meta:
        ordering = ["namespace__name", "pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["namespace", "pattern", "target"], name="push_rule_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pattern} to {self.target}"

    def is_about(self, environment: Environment) -> bool:
        return fnmatchcase(environment.name, self.pattern)

    @classmethod
    def follow(cls, environment: Environment, build: Build) -> None:
        """Let the rules of the namespace send `build`: it is the current one now."""
        for rule in cls.objects.filter(namespace=environment.namespace_id):
            if rule.is_about(environment):
                Push.want(rule, environment, build)


class PushState(models.TextChoices):
    WAITING = "waiting"
    PUSHING = "pushing"
    PUSHED = "pushed"
    FAILED = "failed"


class PushQuerySet(LeasedWorkQuerySet["Push"]):
    pass


class Push(LeasedWork):
    """The push of the image of an environment's current build to the target of a rule.

    A newer build supersedes the one before it, whatever state its push is in.
    """

    WAITING: ClassVar = (PushState.WAITING,)
    QUEUED_STATE: ClassVar = PushState.WAITING
    LEASED: ClassVar = (PushState.PUSHING,)
    FAILED_STATE: ClassVar = PushState.FAILED
    MOVES: ClassVar = {
        PushState.WAITING: (PushState.PUSHING,),
        PushState.PUSHING: (PushState.PUSHED, PushState.FAILED, PushState.WAITING),
    }
    #: The longest wait between two attempts.
    LONGEST_WAIT = timedelta(hours=6)

    rule = models.ForeignKey(PushRule, models.CASCADE, related_name="pushes")
    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+")
    build = models.ForeignKey(Build, models.CASCADE, related_name="pushes")
    wanted_at = models.DateTimeField(default=timezone.now, editable=False)
    state = models.CharField(max_length=7, choices=PushState.choices, default=PushState.WAITING)
    pushed_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="Given up for good.")
    problem = models.TextField(blank=True, help_text="What went wrong in the last attempt.")
    digest = models.CharField(max_length=64, blank=True, help_text="Of what was sent, sha256.")
    sent_bytes = models.BigIntegerField(default=0, help_text="By the attempt that succeeded.")

    objects = PushQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "push", "pushes"
        ordering = ["-pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["rule", "environment"], name="push_once"),
            models.CheckConstraint(
                condition=Q(state=PushState.PUSHING) ^ Q(lease_expires_at=None),
                name="push_leased_iff_pushing",
            ),
            models.CheckConstraint(
                condition=Q(state=PushState.PUSHED) ^ Q(pushed_at=None),
                name="push_pushed_at_iff_pushed",
            ),
            models.CheckConstraint(
                condition=Q(state=PushState.FAILED) ^ Q(failed_at=None),
                name="push_failed_at_iff_failed",
            ),
        ]
        indexes = [models.Index(fields=["state", "not_before"], name="push_state")]

    def __str__(self) -> str:
        return f"push of {self.build}"

    @classmethod
    def want(cls, rule: PushRule, environment: Environment, build: Build) -> None:
        """Queue the push of `build` from the beginning; an attempt that runs loses its lease."""
        now = timezone.now()
        anew: dict[str, Any] = {
            "state": PushState.WAITING,
            "build": build,
            "wanted_at": now,
            "message_sent_at": None,
            "attempt": 0,
            "not_before": now,
            "lease_owner": "",
            "lease_expires_at": None,
            "pushed_at": None,
            "failed_at": None,
            "problem": "",
        }
        row, created = cls.objects.get_or_create(rule=rule, environment=environment, defaults=anew)
        if not created:
            cls.objects.filter(pk=row.pk).update(**anew, lease_token=F("lease_token") + 1)
            row.announce()

    @classmethod
    def retry_policy(cls) -> RetryPolicy:
        return RetryPolicy(
            attempts=settings.NOTIFICATION_ATTEMPTS,
            backoff=settings.NOTIFICATION_BACKOFF,
            longest=cls.LONGEST_WAIT,
        )

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        if state == PushState.PUSHED:
            return {"pushed_at": now, "problem": ""}
        return {"failed_at": now} if state == PushState.FAILED else {}

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        return {"problem": f"{error} {error.hint}".strip()[:1000]}

    def fail(self, error: StoreError, *, lease: Lease | None = None, retry: bool = True) -> bool:
        with transaction.atomic():
            retried = super().fail(error, lease=lease, retry=retry)
            if not retried:
                change = {"code": error.code, "problem": self.problem[:300], "rule": self.rule_id}
                AuditEvent.record(None, "image.push-failed", self.build, change)
        return retried
