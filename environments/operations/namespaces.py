"""What people ask of namespaces: create them, and say who holds which role."""

from __future__ import annotations

from django.contrib.auth.models import Group
from django.db import IntegrityError, transaction
from guardian.shortcuts import assign_perm, remove_perm

from accounts.access import Actor, require, require_superuser
from accounts.models import User
from accounts.roles import Perm, Role
from environments.domain.errors import AccessDeniedError, ConflictError, NotFoundError
from environments.domain.names import parse_name
from environments.models import AuditEvent, Environment, Namespace, audited
from environments.models.environments import SHARED


def find_namespace(actor: Actor, name: str) -> Namespace:
    """Raises NotFoundError, also for what the actor may not see."""
    found = Namespace.objects.visible_to(actor).filter(name=name).first()
    if found is None:
        raise NotFoundError(f"There is no namespace {name!r}.")
    return found


def namespace_to_build_in(actor: Actor, name: str) -> Namespace:
    """As `find_namespace`; one's own namespace is there as soon as it is needed."""
    own = actor.signed_in and actor.account.username.lower() == name
    if own and not Namespace.objects.filter(name=name).exists():
        return create_namespace(actor=actor, name=name)
    return find_namespace(actor, name)


@audited()
def create_namespace(
    *, actor: Actor, name: str, description: str = "", public: bool = False
) -> Namespace:
    """Superusers create any; everybody else the one that bears their own name."""
    name = parse_name(name, what="namespace")
    own = actor.account.username.lower() == name
    if own:
        _require_unlimited(actor)
    else:
        require_superuser(actor)
    try:
        with transaction.atomic():
            namespace = Namespace.objects.create(
                name=name,
                description=description,
                public=public,
                personal=own,
                created_by=actor.account,
            )
    except IntegrityError:
        raise ConflictError(
            f"There is a namespace {name!r} already.", hint="Choose another name, or use that one."
        ) from None
    namespace.grant(Role.ADMIN, actor.account)
    AuditEvent.record(actor, "namespace.create", namespace, {"public": public})
    return namespace


def _require_unlimited(actor: Actor) -> None:
    """A token with a ceiling below admin, or limited to namespaces, creates none."""
    if not actor.allows(Perm.GRANT) or actor.only_namespaces is not None:
        raise AccessDeniedError("This token may not create namespaces.")


@audited()
def grant_role(
    *, actor: Actor, namespace: Namespace, role: Role, user: str = "", group: str = ""
) -> None:
    """`user` or `group` holds `role` in the namespace, and no other one."""
    require(actor, Perm.GRANT, namespace)
    holder = _holder(user, group)
    before = [held.value for held in namespace.roles_of(holder)]
    namespace.grant(role, holder)
    change = {"holder": user or f"group {group}", "before": before, "after": role.value}
    AuditEvent.record(actor, "namespace.grant", namespace, change)


@audited()
def revoke_role(*, actor: Actor, namespace: Namespace, user: str = "", group: str = "") -> None:
    require(actor, Perm.GRANT, namespace)
    holder = _holder(user, group)
    before = [held.value for held in namespace.roles_of(holder)]
    namespace.revoke(holder)
    change = {"holder": user or f"group {group}", "before": before}
    AuditEvent.record(actor, "namespace.revoke", namespace, change)


@audited()
def share_environment(
    *, actor: Actor, environment: Environment, user: str = "", group: str = ""
) -> None:
    """Let somebody outside the namespace see and download one environment."""
    require(actor, Perm.GRANT, environment)
    assign_perm(SHARED, _holder(user, group), environment)
    AuditEvent.record(actor, "environment.share", environment, {"with": user or f"group {group}"})


@audited()
def unshare_environment(
    *, actor: Actor, environment: Environment, user: str = "", group: str = ""
) -> None:
    require(actor, Perm.GRANT, environment)
    remove_perm(SHARED, _holder(user, group), environment)
    AuditEvent.record(actor, "environment.unshare", environment, {"with": user or f"group {group}"})


def _holder(user: str, group: str) -> User | Group:
    if user and (account := User.objects.filter(username=user, is_active=True).first()):
        return account
    if group and (found := Group.objects.filter(name=group).first()):
        return found
    raise NotFoundError(f"There is no user {user!r}." if user else f"There is no group {group!r}.")
