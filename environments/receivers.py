"""Signal receivers: role mappings and audit events of directories, pushes of current builds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib.auth.models import AnonymousUser, Group
from django.dispatch import receiver

from accounts.access import Actor
from accounts.models import User
from accounts.signals import account_closed, account_opened, groups_mirrored
from environments.models import AuditEvent, Build, Environment, PushRule
from environments.models.environments import current_changed
from environments.models.role_mappings import materialise
from environments.services.orphaned_accounts import notify_orphaned


def _actor_of(directory: str) -> Actor:
    return Actor(AnonymousUser(), directory=directory)


@receiver(groups_mirrored, dispatch_uid="directories")
def apply_group_changes(
    user: User,
    directory: str,
    added: Sequence[str],
    removed: Sequence[str],
    made: Sequence[Group],
    **kwargs: Any,
) -> None:
    if made:
        materialise(groups=made)
    if added or removed:
        materialise(user=user)
        changes = {"directory": directory, "added": list(added), "removed": list(removed)}
        AuditEvent.record(_actor_of(directory), "account.groups", user.username, changes)


@receiver(account_opened, dispatch_uid="directories")
def record_opened(user: User, directory: str, **kwargs: Any) -> None:
    changes = {"directory": directory}
    AuditEvent.record(_actor_of(directory), "account.open", user.username, changes)


@receiver(account_closed, dispatch_uid="directories")
def record_closed(user: User, directory: str, **kwargs: Any) -> None:
    changes: dict[str, Any] = {"directory": directory}
    if left := notify_orphaned(user, by=_actor_of(directory)):
        changes["service_accounts"] = list(left)
    AuditEvent.record(_actor_of(directory), "account.close", user.username, changes)


@receiver(current_changed, dispatch_uid="pushes")
def push_current_build(environment: Environment, build: Build, **kwargs: Any) -> None:
    """Queue pushes of the new current build by the rules of its namespace."""
    PushRule.follow(environment, build)
