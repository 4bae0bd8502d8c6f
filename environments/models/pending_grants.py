"""Grants to names without an account or group; applied when one of that name is created.

A grantor must not learn whether a name exists, so a grant to an unknown name is accepted like any
other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.contrib.auth.models import Group
from django.db import models, transaction
from django.db.models import Q
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils import timezone
from guardian.shortcuts import assign_perm

from accounts.models import User
from accounts.roles import Role
from environments.models.audit import AuditEvent
from environments.models.environments import SHARED, Environment
from environments.models.namespaces import Namespace


class PendingGrant(models.Model):
    """A role in a namespace, or the share of an environment, for a name that does not exist yet."""

    namespace = models.ForeignKey(
        Namespace, models.CASCADE, null=True, related_name="pending_grants"
    )
    environment = models.ForeignKey(
        Environment, models.CASCADE, null=True, related_name="pending_shares"
    )
    holder = models.CharField(max_length=150, help_text="Name of the user or group.")
    is_group = models.BooleanField(default=False)
    role = models.CharField(max_length=16, choices=[(r.value, r.value) for r in Role], blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()
        constraints = [
            models.CheckConstraint(
                condition=Q(namespace=None, environment__isnull=False, role="")
                | (Q(namespace__isnull=False, environment=None) & ~Q(role="")),
                name="pending_grant_of_one_thing",
            ),
            models.UniqueConstraint(
                fields=["namespace", "holder", "is_group"], name="pending_role_once"
            ),
            models.UniqueConstraint(
                fields=["environment", "holder", "is_group"], name="pending_share_once"
            ),
        ]
        indexes = [models.Index(fields=["holder"], name="pending_holder")]

    def __str__(self) -> str:
        return f"{self.label} in {self.namespace or self.environment}"

    @property
    def label(self) -> str:
        return f"group {self.holder}" if self.is_group else self.holder

    def apply(self, holder: User | Group) -> None:
        """Apply the grant to `holder` and delete the row."""
        if self.namespace is not None:
            self.namespace.grant(Role(self.role), holder)
        else:
            assign_perm(SHARED, holder, self.environment)
        self.delete()


def settle(holder: User | Group) -> None:
    """Apply the pending grants for the name of `holder`."""
    name = holder.username if isinstance(holder, User) else holder.name
    rows = PendingGrant.objects.filter(holder=name, is_group=isinstance(holder, Group))
    with transaction.atomic():
        found = list(rows.select_related("namespace", "environment__namespace"))
        for row in found:
            row.apply(holder)
    if found:
        # Recorded without a namespace: its managers must not learn of the account.
        reported = {"granted": sorted({str(row.namespace or row.environment) for row in found})}
        transaction.on_commit(partial(AuditEvent.record, None, "account.grants", name, reported))


def settle_all() -> None:
    """Apply grants whose name was created concurrently."""
    waiting = PendingGrant.objects.order_by().distinct()
    users = waiting.filter(is_group=False).values("holder")
    groups = waiting.filter(is_group=True).values("holder")
    holders: Iterable[User | Group] = (
        *User.objects.filter(username__in=users),
        *Group.objects.filter(name__in=groups),
    )
    for holder in holders:
        settle(holder)


@receiver(post_save, sender=User, dispatch_uid="pending-grants")
@receiver(post_save, sender=Group, dispatch_uid="pending-grants-of-groups")
def _saved(instance: Any, raw: bool, **kwargs: Any) -> None:
    if not raw:
        settle(instance)
