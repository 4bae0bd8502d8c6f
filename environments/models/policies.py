"""Policies: rules of the installation and of each namespace, and every version of them."""

from __future__ import annotations

from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from environments.domain.policy import Effect
from environments.models.namespaces import Namespace


class PolicyQuerySet(models.QuerySet["Policy"]):
    def visible_to(self, actor: Actor) -> Self:
        """Policies of visible namespaces; the installation's policy for everybody signed in."""
        found = Q(namespace__in=Namespace.objects.visible_to(actor).order_by().values("pk"))
        if actor.signed_in:
            found |= Q(namespace=None)
        return self.filter(found)


class OfPolicy(models.QuerySet[Any]):
    """Rows that belong to a policy."""

    def visible_to(self, actor: Actor) -> Self:
        return self.filter(policy__in=Policy.objects.visible_to(actor).values("pk"))


class Policy(models.Model):
    """The rules of one namespace, or of the whole installation (no namespace).

    Rules only refuse: rules of a namespace add to those of the installation and cannot loosen them.
    """

    namespace = models.OneToOneField(
        Namespace, models.CASCADE, null=True, blank=True, related_name="policy"
    )
    version = models.PositiveIntegerField(default=0, editable=False)

    objects = PolicyQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "policy", "policies"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                models.Value(1), condition=Q(namespace=None), name="one_global_policy"
            )
        ]

    def __str__(self) -> str:
        return f"policy of {self.namespace.name if self.namespace else 'the installation'}"

    @classmethod
    def of(cls, namespace: Namespace | None) -> Policy:
        return cls.objects.get_or_create(namespace=namespace)[0]


class PolicyRule(models.Model):
    """One rule at its position. The keys of `settings` depend on `kind`."""

    policy = models.ForeignKey(Policy, models.CASCADE, related_name="rules")
    position = models.PositiveIntegerField(default=0)
    kind = models.CharField(max_length=32)
    effect = models.CharField(max_length=8, choices=[(e.value, e.value) for e in Effect])
    name = models.CharField(max_length=100)
    settings: Any = models.JSONField(default=dict, blank=True)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = OfPolicy.as_manager()

    class Meta:
        ordering = ["policy", "position", "pk"]
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["policy", "name"], name="rule_name_once")]

    def __str__(self) -> str:
        return self.name


class PolicyVersion(models.Model):
    """The rules after one change: immutable, referred to by every verdict."""

    policy = models.ForeignKey(Policy, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    rules: Any = models.JSONField()
    change = models.CharField(max_length=200)
    comment = models.TextField(blank=True)
    changed_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    changed_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = OfPolicy.as_manager()

    class Meta:
        ordering = ["policy", "-number"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["policy", "number"], name="policy_version_once")
        ]

    def __str__(self) -> str:
        return f"{self.policy}, version {self.number}"
