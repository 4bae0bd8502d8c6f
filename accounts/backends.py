"""Authentication backends: local passwords, Django's own permissions, and roles on objects."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.models import AnonymousUser

from accounts.access import Actor, may
from accounts.models import User
from accounts.roles import Perm


class LocalBackend(ModelBackend):
    """Accounts with a local password, and Django's model permissions of all accounts."""

    def user_can_authenticate(self, user: Any) -> bool:
        """Whether the account may sign in; called at each request with a session."""
        return isinstance(user, User) and user.may_act


class RoleBackend(BaseBackend):
    """Answer `user.has_perm("environments.build", namespace)` like `accounts.access.may`.

    The permissions are those of `accounts.roles.Perm`, on any row whose manager has `with_perm`:
    namespaces, environments, builds, hosted channels, mirrors. The limits of an API token are
    unknown here, so operations call `require()` with their actor.
    """

    def has_perm(
        self,
        user_obj: User | AnonymousUser,
        perm: str,
        obj: Any = None,
    ) -> bool:
        if not _is_guarded(obj):
            return False
        name = perm.removeprefix(f"{obj._meta.app_label}.")
        return name in set(Perm) and may(Actor(user_obj), Perm(name), obj)

    def get_user_permissions(self, user_obj: Any, obj: Any = None) -> set[str]:
        if not _is_guarded(obj):
            return set()
        app = obj._meta.app_label
        return {f"{app}.{perm.value}" for perm in Perm if may(Actor(user_obj), perm, obj)}


def _is_guarded(obj: Any) -> bool:
    return hasattr(getattr(type(obj), "objects", None), "with_perm")
