"""Operations on namespaces: create them, grant and revoke roles, share environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.models import Group
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from guardian.shortcuts import assign_perm, remove_perm

from accounts.access import Actor, kind_of, require, require_superuser, stand_in, values_for
from accounts.models import User
from accounts.roles import Perm, Role
from condastore.errors import (
    AccessDeniedError,
    ConflictError,
    InvalidInputError,
    LimitError,
    NotFoundError,
)
from condastore.statements import Lookup, word
from environments.domain.names import parse_name
from environments.models import AuditEvent, Environment, Namespace, PendingGrant, audited
from environments.models.environments import SHARED

#: Run by every submission, so it is prepared and its SQL compiled once.
_VISIBLE = Lookup(Namespace, own=[field.attname for field in Namespace._meta.concrete_fields])


def find_namespace(actor: Actor, name: str) -> Namespace:
    """Raises NotFoundError, also for namespaces the actor may not see."""
    found = _VISIBLE.first(
        ("visible namespace", *kind_of(actor)),
        lambda: Namespace.objects.visible_to(stand_in(actor)).order_by().filter(name=word("name")),
        values_for(actor) | {word("name"): name},
    )
    if found is None:
        raise NotFoundError(f"There is no namespace {name!r}.")
    return found


def namespace_to_build_in(actor: Actor, name: str) -> Namespace:
    """As `find_namespace`, but create the actor's personal namespace if it does not exist."""
    own = actor.signed_in and actor.account.username.lower() == name
    if own and not Namespace.objects.filter(name=name).exists():
        return create_namespace(actor=actor, name=name)
    return find_namespace(actor, name)


@audited()
def create_namespace(
    *, actor: Actor, name: str, description: str = "", public: bool = False
) -> Namespace:
    """Create a namespace: administrators any, everybody else the one with their own name."""
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
            f"The namespace {name!r} already exists.", hint="Choose another name, or use that one."
        ) from None
    namespace.grant(Role.ADMIN, actor.account)
    AuditEvent.record(actor, "namespace.create", namespace, {"public": public})
    return namespace


def _require_unlimited(actor: Actor) -> None:
    """Refuse tokens limited to namespaces or to roles below admin."""
    if not actor.allows(Perm.GRANT) or actor.only_namespaces is not None:
        raise AccessDeniedError("This token cannot create namespaces.")


@audited()
def set_add_pip(*, actor: Actor, namespace: Namespace, on: bool) -> Namespace:
    """Set whether new solves of the namespace add pip as a dependency of Python."""
    require(actor, Perm.MANAGE, namespace)
    before = namespace.add_pip_as_python_dependency
    namespace.add_pip_as_python_dependency = on
    namespace.save(update_fields=["add_pip_as_python_dependency"])
    AuditEvent.record(actor, "namespace.add-pip", namespace, {"before": before, "after": on})
    return namespace


@audited()
def grant_role(
    *, actor: Actor, namespace: Namespace, role: Role, user: str = "", group: str = ""
) -> None:
    """Grant `role`, replacing the role that was granted to this name before.

    A name without an account or group is accepted like any other, and gets the role when one
    appears: so a grant reveals to nobody which names exist. Actors who may see names get an error
    instead.
    """
    require(actor, Perm.GRANT, namespace)
    holder = _find_holder(actor, user, group)
    before = _granted(namespace, holder)
    if before is None:
        _require_below_limit(
            namespace.user_grants, namespace.group_grants, namespace.pending_grants
        )
    if holder.account is not None:
        holder.pending(namespace.pending_grants).delete()
        namespace.grant(role, holder.account)
    else:
        PendingGrant.objects.update_or_create(
            namespace=namespace,
            holder=holder.name,
            is_group=holder.is_group,
            defaults={"role": role.value},
        )
    change = {"holder": holder.label, "before": before, "after": role.value}
    AuditEvent.record(actor, "namespace.grant", namespace, change)


@audited()
def revoke_role(*, actor: Actor, namespace: Namespace, user: str = "", group: str = "") -> None:
    """Revoke the role granted to this name; roles by groups and role mappings stay.

    Raises:
        ConflictError: no role is granted to the name, whether it exists or not.
    """
    require(actor, Perm.GRANT, namespace)
    holder = _find_holder(actor, user, group)
    before = _granted(namespace, holder)
    if before is None:
        raise ConflictError(
            f"No role is granted to {holder.label} in {namespace}.",
            hint="List roles with `condastore namespace show`.",
        )
    holder.pending(namespace.pending_grants).delete()
    if holder.account is not None:
        namespace.revoke(holder.account)
    change = {"holder": holder.label, "before": before}
    AuditEvent.record(actor, "namespace.revoke", namespace, change)


@audited()
def share_environment(
    *, actor: Actor, environment: Environment, user: str = "", group: str = ""
) -> None:
    """Let a person or group outside the namespace view and download one environment.

    A name that does not exist is accepted, as in `grant_role`.
    """
    require(actor, Perm.GRANT, environment)
    holder = _find_holder(actor, user, group)
    if not _is_shared(environment, holder):
        _require_below_limit(
            environment.user_shares, environment.group_shares, environment.pending_shares
        )
    if holder.account is not None:
        assign_perm(SHARED, holder.account, environment)
    else:
        PendingGrant.objects.get_or_create(
            environment=environment, holder=holder.name, is_group=holder.is_group
        )
    AuditEvent.record(actor, "environment.share", environment, {"with": holder.label})


@audited()
def unshare_environment(
    *, actor: Actor, environment: Environment, user: str = "", group: str = ""
) -> None:
    """End the share of an environment.

    Raises:
        ConflictError: it is not shared with this name, whether the name exists or not.
    """
    require(actor, Perm.GRANT, environment)
    holder = _find_holder(actor, user, group)
    if not _is_shared(environment, holder):
        raise ConflictError(f"{environment} is not shared with {holder.label}.")
    holder.pending(environment.pending_shares).delete()
    if holder.account is not None:
        remove_perm(SHARED, holder.account, environment)
    AuditEvent.record(actor, "environment.unshare", environment, {"with": holder.label})


#: Maximum of grants of one namespace, and of shares of one environment.
MAX_GRANTS = 2_000
_LONGEST_NAME = 150


def may_see_names(actor: Actor) -> bool:
    """Return whether errors may reveal which user and group names exist."""
    return actor.is_superuser or (settings.USERS_VISIBLE and actor.signed_in)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """A name of a user or group, and the account or group of that name, if one exists."""

    name: str
    is_group: bool
    account: User | Group | None

    @property
    def label(self) -> str:
        return f"group {self.name}" if self.is_group else self.name

    def pending(self, rows: Any) -> QuerySet[PendingGrant]:
        """Return those of `rows` that are for this name."""
        found: QuerySet[PendingGrant] = rows.filter(holder=self.name, is_group=self.is_group)
        return found


def _find_holder(actor: Actor, user: str, group: str) -> _Holder:
    """Return the named holder.

    Raises:
        InvalidInputError: not exactly one user or group is named.
        NotFoundError: it does not exist, and the actor may know that.
    """
    name = user or group
    if bool(user) == bool(group) or len(name) > _LONGEST_NAME or not name.isprintable():
        raise InvalidInputError(
            f"Give either one user or one group, in at most {_LONGEST_NAME} characters.",
            where="group" if group else "user",
        )
    account: User | Group | None
    if user:
        account = User.objects.filter(username=user).first()
        known = account is not None and account.is_active
    else:
        account = Group.objects.filter(name=group).first()
        known = account is not None
    if not known and may_see_names(actor):
        raise NotFoundError(f"There is no {'user' if user else 'group'} {name!r}.")
    return _Holder(name=name, is_group=bool(group), account=account)


def _granted(namespace: Namespace, holder: _Holder) -> str | None:
    """Return the role granted to the name itself.

    Roles that a person has through groups are left out, as the grantor would learn of the
    membership.
    """
    if holder.account is not None and (role := namespace.granted_role(holder.account)):
        return role.value
    return holder.pending(namespace.pending_grants).values_list("role", flat=True).first()


def _is_shared(environment: Environment, holder: _Holder) -> bool:
    account = holder.account
    if isinstance(account, User) and environment.user_shares.filter(user=account).exists():
        return True
    if isinstance(account, Group) and environment.group_shares.filter(group=account).exists():
        return True
    return holder.pending(environment.pending_shares).exists()


def _require_below_limit(*rows: Any) -> None:
    if sum(one.count() for one in rows) >= MAX_GRANTS:
        raise LimitError(f"There are already {MAX_GRANTS} grants.", hint="Grant to groups instead.")
