"""Roles on namespaces and their permissions, as data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Perm(StrEnum):
    VIEW = "view"  # see the namespace and its contents
    DOWNLOAD = "download"  # locks, logs, artifacts
    BUILD = "build"  # create environments, build, cancel, roll back, pin, tag
    APPROVE = "approve"  # decide on packages
    MANAGE = "manage"  # delete and move environments, archive builds, policy, quota
    GRANT = "grant"  # grant and revoke roles


class Role(StrEnum):
    """A role; grants are guardian permission rows with its codename (see `codename`)."""

    VIEWER = "viewer"
    DEVELOPER = "developer"
    APPROVER = "approver"
    ADMIN = "admin"

    @property
    def codename(self) -> str:
        return f"role_{self.value}"


_VIEW = frozenset({Perm.VIEW, Perm.DOWNLOAD})
ROLES: Mapping[Role, frozenset[Perm]] = {
    Role.VIEWER: _VIEW,
    Role.DEVELOPER: _VIEW | {Perm.BUILD},
    Role.APPROVER: _VIEW | {Perm.BUILD, Perm.APPROVE},
    Role.ADMIN: frozenset(Perm),
}
#: Permissions of everybody in a public namespace, signed out included.
PUBLIC = _VIEW


def roles_with(perm: Perm) -> frozenset[Role]:
    return frozenset(role for role, perms in ROLES.items() if perm in perms)
