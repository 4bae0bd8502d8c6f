"""Which images are sent to other registries when an environment moves on, and how far is that?"""

from __future__ import annotations

from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Self

from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from accounts.roles import Perm
from environments.models.builds import Build
from environments.models.environments import Environment
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


class PushQuerySet(models.QuerySet["Push"]):
    def due(self, now: datetime) -> Self:
        return self.filter(pushed_at=None, failed_at=None, not_before__lte=now)


class Push(models.Model):
    """The image of an environment's current build on its way to where a rule says.

    A newer build takes the place of the one before it, wherever that had got to.
    """

    rule = models.ForeignKey(PushRule, models.CASCADE, related_name="pushes")
    environment = models.ForeignKey(Environment, models.CASCADE, related_name="+")
    build = models.ForeignKey(Build, models.CASCADE, related_name="pushes")
    wanted_at = models.DateTimeField(default=timezone.now, editable=False)
    message_sent_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0)
    #: Grows with each claim and each newer build: who works with an older one is to stop.
    turn = models.PositiveBigIntegerField(default=0)
    not_before = models.DateTimeField(default=timezone.now)
    pushed_at = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True, help_text="Given up for good.")
    problem = models.TextField(blank=True, help_text="What went wrong in the last attempt.")
    digest = models.CharField(max_length=64, blank=True, help_text="Of what was sent, sha256.")
    sent_bytes = models.BigIntegerField(default=0, help_text="By the attempt that succeeded.")

    objects = PushQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["rule", "environment"], name="push_once"),
            models.CheckConstraint(
                condition=Q(pushed_at=None) | Q(failed_at=None), name="push_ends_once"
            ),
        ]
        indexes = [
            models.Index(
                fields=["not_before"],
                condition=Q(pushed_at=None, failed_at=None),
                name="push_due",
            ),
        ]

    def __str__(self) -> str:
        return f"push of {self.build}"

    @property
    def state(self) -> str:
        """waiting, pushing, pushed or failed."""
        if self.pushed_at or self.failed_at:
            return "pushed" if self.pushed_at else "failed"
        return "pushing" if self.turn % 2 else "waiting"

    @classmethod
    def want(cls, rule: PushRule, environment: Environment, build: Build) -> None:
        """Send `build` from the beginning, whatever was sent before, or is being sent."""
        now = timezone.now()
        anew: dict[str, Any] = {
            "build": build,
            "wanted_at": now,
            "message_sent_at": None,
            "attempts": 0,
            "not_before": now,
            "pushed_at": None,
            "failed_at": None,
            "problem": "",
        }
        row, made = cls.objects.get_or_create(rule=rule, environment=environment, defaults=anew)
        if not made:
            cls.objects.filter(pk=row.pk).update(**anew, turn=F("turn") + 2 - F("turn") % 2)

    def claim(self, *, patience: timedelta) -> bool:
        """Start the next attempt; False where it is not due, or another tries at this moment."""
        now = timezone.now()
        claimed = Push.objects.due(now).filter(pk=self.pk)
        # Odd while somebody sends.
        if not claimed.update(
            attempts=F("attempts") + 1,
            turn=F("turn") + 1 + F("turn") % 2,
            not_before=now + patience,
        ):
            return False
        self.refresh_from_db()
        return True

    def keep_on(self, *, patience: timedelta) -> bool:
        """Say that this attempt goes on; False where it is another's turn by now."""
        mine = Push.objects.filter(pk=self.pk, turn=self.turn)
        return bool(mine.update(not_before=timezone.now() + patience))

    def end(self, **changes: Any) -> bool:
        """Write how the attempt ended; False where it is another's turn by now."""
        return bool(
            Push.objects.filter(pk=self.pk, turn=self.turn).update(**changes, turn=F("turn") + 1)
        )

    def give_back(self) -> bool:
        """Make the attempt undone; False where it is another's turn by now."""
        again = {"not_before": timezone.now(), "message_sent_at": None}
        return self.end(attempts=F("attempts") - 1, **again)
