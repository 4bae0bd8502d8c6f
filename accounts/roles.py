"""What a role on a namespace allows, as data."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Perm(StrEnum):
    VIEW = "view"  # see the namespace and what is in it
    DOWNLOAD = "download"  # locks, logs, artifacts
    BUILD = "build"  # create environments, build, cancel, roll back, pin, tag
    APPROVE = "approve"  # decide on packages
    MANAGE = "manage"  # delete and move environments, archive builds, policy, quota
    GRANT = "grant"  # give and take roles


class Role(StrEnum):
    """A role is held as guardian's permission row with this codename (see `codename`)."""

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
#: What everybody may do in a public namespace, signed out included.
PUBLIC = _VIEW


def roles_with(perm: Perm) -> frozenset[Role]:
    return frozenset(role for role, perms in ROLES.items() if perm in perms)
