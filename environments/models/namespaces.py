"""Namespaces, which own environments, and the roles of users and groups in them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Self

from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.utils import timezone
from guardian.models import GroupObjectPermissionBase, UserObjectPermissionBase
from guardian.shortcuts import get_perms

from accounts.access import Actor
from accounts.models import User
from accounts.roles import PUBLIC, Perm, Role, roles_with
from condastore.statements import subquery
from environments.models.row_loading import LoadedDirectly

#: Django permissions that apply in all namespaces, granted to users or groups in the admin.
DECIDE_EVERYWHERE = "decide_everywhere"
RECALL_PACKAGES = "recall_packages"
READ_METRICS = "read_metrics"


def holding(actor: Actor, codename: str) -> models.QuerySet[Permission]:
    """Return the permission `codename` if the actor's account or one of its groups has it."""
    return _permission(actor.account.pk, codename)


def _permission(account: int, codename: str) -> models.QuerySet[Permission]:
    named = Permission.objects.filter(codename=codename, content_type__app_label="environments")
    return named.filter(Q(user=account) | Q(group__user=account))


def holds_everywhere(actor: Actor, codename: str, perm: Perm) -> bool:
    """Return whether the actor is a superuser or has the permission `codename`.

    A token must allow `perm` and must not be limited to namespaces.
    """
    if not actor.signed_in or not actor.allows(perm) or actor.only_namespaces is not None:
        return False
    return actor.rules_everything or holding(actor, codename).exists()


class NamespaceQuerySet(models.QuerySet["Namespace"]):
    def with_perm(self, actor: Actor, perm: Perm) -> Self:
        """Namespaces in which `actor` has the permission `perm`."""
        return self.none() if never(actor, perm) else self.filter(held(actor, perm))

    def visible_to(self, actor: Actor) -> Self:
        return self.with_perm(actor, Perm.VIEW)


def held(actor: Actor, perm: Perm, *, through: str = "") -> Q:
    """Return the condition of `with_perm` on a namespace, or on the one that `through` leads to."""
    if never(actor, perm):
        return Q(**{f"{through}pk__in": ()})
    if actor.sees_everything:
        return ~Q(**{f"{through}pk__in": ()})
    return Q(**{f"{through}pk__in": _keys(actor, perm)})


def never(actor: Actor, perm: Perm) -> bool:
    """Return whether `actor` cannot have the permission in any namespace, regardless of roles."""
    return not actor.allows(perm) or (not actor.signed_in and perm not in PUBLIC)


def _keys(actor: Actor, perm: Perm) -> RawSQL:
    """Return the subquery of the keys of these namespaces.

    Only its SQL is cached: roles are read when the statement runs.
    """
    return subquery(
        ("keys", *kind_of(actor, perm)),
        lambda key, names: one_of(keys_held(actor, perm, key, names)),
        key=key_of(actor),
        words=actor.only_namespaces,
    )


def one_of(parts: Sequence[models.QuerySet[Any, Any]]) -> models.QuerySet[Any, Any]:
    """Return the union of the parts. Duplicates stay: `IN` removes them anyway."""
    first, *others = parts
    return first.union(*others, all=True) if others else first


def kind_of(actor: Actor, perm: Perm) -> tuple[Hashable, ...]:
    """Return what the SQL of `keys_held` depends on, besides the namespaces of a token."""
    return perm, actor.rules_everything, actor.signed_in


def key_of(actor: Actor) -> int:
    return int(actor.account.pk) if actor.signed_in else 0


def keys_held(
    actor: Actor, perm: Perm, key: int, names: Sequence[str] | None
) -> list[models.QuerySet[Any, Any]]:
    """Return querysets that together have the keys of the namespaces of `held`.

    Each way to a role is a part of its own, so that the database reads the roles of one account
    and not every namespace.

    Args:
        key: of the account.
        names: of the namespaces that a token is limited to.
    """
    own = {} if names is None else {"name__in": names}
    through = {} if names is None else {"content_object__name__in": names}
    namespaces = Namespace.objects.order_by().filter(**own)
    if actor.rules_everything:
        return [namespaces.values("pk")]
    parts: list[models.QuerySet[Any, Any]] = []
    if perm in PUBLIC:
        parts.append(namespaces.filter(public=True).values("pk"))
    if not actor.signed_in:
        return parts
    roles = {"permission__codename__in": sorted(role.codename for role in roles_with(perm))}
    users = NamespaceUserObjectPermission.objects.filter(user=key, **roles, **through)
    groups = NamespaceGroupObjectPermission.objects.filter(
        group__in=groups_of(key), **roles, **through
    )
    mappings = mapped(key, roles_with(perm))
    if names is not None:
        mappings = mappings.filter(namespace__name__in=names)
    parts += [users.values("content_object"), groups.values("content_object"), mappings]
    if perm is Perm.APPROVE:
        everywhere = models.Exists(_permission(key, DECIDE_EVERYWHERE))
        parts.append(namespaces.filter(everywhere).values("pk"))
    return parts


def groups_of(account: int) -> models.QuerySet[Any, Any]:
    """Return the keys of the account's groups, without a join to the groups themselves."""
    return User.groups.through.objects.filter(user=account).values("group")


def mapped(account: int, roles: Iterable[Role]) -> models.QuerySet[Any, Any]:
    """Namespaces in which role mappings give `account` one of `roles` through its groups."""
    rows = MappedRole.objects.filter(role__in=sorted(roles), group__in=groups_of(account))
    return rows.filter(Q(user=None) | Q(user=account)).values("namespace")


class Namespace(LoadedDirectly):
    """Owner of environments; the unit of permissions, policy and quotas."""

    name = models.CharField(max_length=64, unique=True)
    description = models.TextField(blank=True)
    personal = models.BooleanField(default=False, help_text="Belongs to one person.")
    public = models.BooleanField(default=False, help_text="Everybody may view and download.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, related_name="+")
    #: Quotas. None: the installation's default (settings.QUOTA_...). 0: unlimited, also there.
    max_bytes = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="Bytes on disk; shared files count proportionally.",
    )
    max_environments = models.PositiveIntegerField(null=True, blank=True)
    max_builds_at_once = models.PositiveIntegerField(
        null=True, blank=True, help_text="Queued or running builds."
    )
    max_builds_a_day = models.PositiveIntegerField(null=True, blank=True)
    served_at = models.DateTimeField(
        null=True, editable=False, help_text="When a worker last started one of its builds."
    )
    two_person_approval = models.BooleanField(
        default=False, help_text="Two people must agree before a package is approved."
    )
    eager_artifacts = models.JSONField(
        default=list, blank=True, help_text="Kinds of artifacts made for each new build."
    )
    base_image = models.CharField(
        max_length=300,
        blank=True,
        help_text="Base image of its container images: a reference or a loaded name; empty means "
        "the installation's.",
    )
    add_pip_as_python_dependency = models.BooleanField(
        default=True,
        help_text="Solve with pip as a dependency of Python, as conda and mamba do.",
    )
    #: Retention. None: the installation's default (settings.RETENTION_...), within its bounds.
    keep_last = models.PositiveIntegerField(
        null=True, blank=True, help_text="Number of newest builds of each environment to keep."
    )
    keep_days = models.PositiveIntegerField(
        null=True, blank=True, help_text="Days for which each build is kept."
    )
    keep_tagged = models.BooleanField(default=True, help_text="Keep builds with a tag.")
    delete_days = models.PositiveIntegerField(
        null=True, blank=True, help_text="Days after which an archived build is deleted."
    )

    objects = NamespaceQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        default_permissions = ()
        permissions = [(role.codename, f"Is {role.value} of the namespace") for role in Role]

    def __str__(self) -> str:
        return self.name

    def grant(self, role: Role, holder: User | Group) -> None:
        """Give `holder` this role in place of any other.

        A constraint allows one role for each holder, so concurrent grants leave the last one.
        """
        permission = Permission.objects.get(
            codename=role.codename, content_type=ContentType.objects.get_for_model(Namespace)
        )
        rows, held_by = self._grants(holder)
        rows.update_or_create(**held_by, defaults={"permission": permission})

    def revoke(self, holder: User | Group) -> None:
        """Take the role that was granted to `holder` by name, if any."""
        rows, held_by = self._grants(holder)
        rows.filter(**held_by).delete()

    def granted_role(self, holder: User | Group) -> Role | None:
        """Return the role granted to `holder` by name, without roles by groups and mappings."""
        rows, held_by = self._grants(holder)
        codename = rows.filter(**held_by).values_list("permission__codename", flat=True).first()
        return Role(codename.removeprefix("role_")) if codename else None

    def _grants(self, holder: User | Group) -> tuple[Any, dict[str, Any]]:
        if isinstance(holder, User):
            return self.user_grants, {"user": holder}
        return self.group_grants, {"group": holder}

    def roles_of(self, holder: User | Group) -> list[Role]:
        """Return all roles; for a user including roles by groups and mappings."""
        held = set(get_perms(holder, self))
        if isinstance(holder, User):
            rows = self.mapped_roles.filter(group__user=holder)
            rows = rows.filter(Q(user=None) | Q(user=holder))
        else:
            rows = self.mapped_roles.filter(group=holder, user=None)
        held |= {Role(role).codename for role in rows.values_list("role", flat=True)}
        return [role for role in Role if role.codename in held]


class NamespaceUserObjectPermission(UserObjectPermissionBase):
    content_object = models.ForeignKey(Namespace, models.CASCADE, related_name="user_grants")

    class Meta(UserObjectPermissionBase.Meta):
        verbose_name, verbose_name_plural = (
            "user's role in a namespace",
            "users' roles in namespaces",
        )
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["user", "content_object"], name="one_role_per_user")
        ]


class NamespaceGroupObjectPermission(GroupObjectPermissionBase):
    content_object = models.ForeignKey(Namespace, models.CASCADE, related_name="group_grants")

    class Meta(GroupObjectPermissionBase.Meta):
        verbose_name, verbose_name_plural = (
            "group's role in a namespace",
            "groups' roles in namespaces",
        )
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["group", "content_object"], name="one_role_per_group")
        ]


class MappedRole(models.Model):
    """Row computed from a mapping: a role in one namespace for a group, or for one member."""

    mapping = models.ForeignKey("environments.RoleMapping", models.CASCADE, related_name="mapped")
    group = models.ForeignKey(Group, models.CASCADE, related_name="mapped_roles")
    namespace = models.ForeignKey(Namespace, models.CASCADE, related_name="mapped_roles")
    user = models.ForeignKey(User, models.CASCADE, null=True, related_name="mapped_roles")
    role = models.CharField(max_length=16, choices=[(r.value, r.value) for r in Role])

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["mapping", "group", "namespace"],
                condition=Q(user=None),
                name="mapped_role_once",
            ),
            models.UniqueConstraint(
                fields=["mapping", "group", "namespace", "user"],
                condition=Q(user__isnull=False),
                name="mapped_personal_role_once",
            ),
        ]
        indexes = [models.Index(fields=["group", "role"])]

    def __str__(self) -> str:
        return f"{self.user or self.group} is {self.role} in {self.namespace}"
