"""Namespaces, and the roles held in them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import strawberry
import strawberry_django
from django.db.models import (
    QuerySet,
)
from strawberry import ID, Info

from accounts.models import User
from environments.domain.artifacts import ArtifactKind
from environments.graphql.connections import Connection, nested_connection
from environments.graphql.enums import Perm, Role
from environments.graphql.fields import Column, actor_of, column, computed, field
from environments.graphql.nodes import Node, id_field, key_field, register_model
from environments.graphql.permissions import allowed, may_annotation
from environments.graphql.quotas import USED, Quota, quotas_of
from environments.graphql.retention_rules import Retention
from environments.models import (
    Environment,
    Namespace,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
)
from environments.models.namespaces import NamespaceQuerySet, mapped
from environments.operations.quotas import KINDS

if TYPE_CHECKING:
    from environments.graphql.environments import EnvironmentNode

#: Declared in a module that imports this one.
LazyEnvironment = Annotated["EnvironmentNode", strawberry.lazy("environments.graphql.environments")]


@strawberry.type(description="Role held by a user or a group in a namespace.")
class Grant:
    role: Role = strawberry.field(description="Role that is held.")
    user: str | None = strawberry.field(
        default=None, description="Name of the user; null for a group."
    )
    group: str | None = strawberry.field(
        default=None, description="Name of the group; null for a user."
    )
    mapped: bool = strawberry.field(
        default=False, description="True when a role mapping of the administrators gives the role."
    )


@strawberry_django.type(
    Namespace,
    name="Namespace",
    field_cls=Column,
    description="Owner of environments: the unit of roles, policy, quota and retention.",
)
class NamespaceNode(Node):
    id: ID = id_field("Namespace")
    database_id: str = key_field()
    name: str = column("Name of the namespace, unique in the installation.")
    description: str = column("Description of the namespace.")
    personal: bool = column("True when the namespace belongs to one user.")
    public: bool = column("True when everyone may view and download its environments.")
    two_person_approval: bool = column("True when approving a package requires two approvers.")
    eager_artifacts: list[ArtifactKind] = column(
        "Files that are generated for each new build without a request."
    )
    base_image: str = computed(
        lambda row: row.base_image,
        only=["base_image"],
        description="Base of the namespace's container images; empty means the "
        "installation's default.",
    )
    add_pip_as_python_dependency: bool = computed(
        lambda row: row.add_pip_as_python_dependency,
        only=["add_pip_as_python_dependency"],
        description="True when solves add pip as a dependency of Python, as conda and mamba do.",
    )
    created_at: datetime = column("When the namespace was created.")
    environments: Connection[LazyEnvironment] = nested_connection(
        "environments",
        "namespace",
        lambda info: Environment.objects.visible_to(actor_of(info)),
        description="Environments of the namespace that the caller may see, by name.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: NamespaceQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[Namespace]:
        return queryset.visible_to(actor_of(info))

    @field(
        annotate={f"may_{perm}": may_annotation(perm) for perm in Perm},
        description="Permissions of the caller in the namespace.",
    )
    def my_permissions(self: Any, info: Info) -> list[Perm]:
        return [perm for perm in Perm if allowed(self, info, perm, self)]

    quotas: list[Quota] = computed(
        quotas_of,
        only=[kind.limit for kind in KINDS],
        annotate=USED,
        description="Quotas of the namespace and their use.",
    )

    retention: Retention = computed(
        Retention.of,
        only=["keep_last", "keep_days", "keep_tagged", "delete_days"],
        description="Retention rules of the namespace.",
    )

    @field(
        annotate={"may_grant": may_annotation(Perm.GRANT)},
        description="Roles held in the namespace; empty for callers who may not grant roles.",
        prefetch_related=[
            "user_grants__permission",
            "user_grants__user",
            "group_grants__permission",
            "group_grants__group",
            "pending_grants",
            "mapped_roles__group",
            "mapped_roles__user",
        ],
    )
    def grants(self: Any, info: Info) -> list[Grant]:
        if not allowed(self, info, Perm.GRANT, self):
            return []
        held = [
            Grant(role=_role(one.permission.codename), user=one.user.get_username())
            for one in self.user_grants.all()
        ]
        held += [
            Grant(role=_role(one.permission.codename), group=one.group.name)
            for one in self.group_grants.all()
        ]
        # No account or group has these names yet; nothing here shows which ones.
        held += [
            Grant(role=Role(one.role), **{"group" if one.is_group else "user": one.holder})
            for one in self.pending_grants.all()
        ]
        held += [
            Grant(
                role=Role(one.role),
                user=one.user.get_username() if one.user else None,
                group=one.group.name,
                mapped=True,
            )
            for one in self.mapped_roles.all()
        ]
        return sorted(held, key=lambda grant: (grant.user or "", grant.group or ""))


def _role(codename: str) -> Role:
    return Role(codename.removeprefix("role_"))


@strawberry.type(description="Roles the caller holds in one namespace.")
class NamespaceRole:
    namespace: NamespaceNode = strawberry.field(description="The namespace.")
    roles: list[Role] = strawberry.field(
        description="Roles of the caller in it, including roles through groups."
    )


def roles_of(account: User) -> dict[int, set[Role]]:
    """Namespace -> roles, those of groups too."""
    held: dict[int, set[Role]] = {}
    for rows in (
        NamespaceUserObjectPermission.objects.filter(user=account),
        NamespaceGroupObjectPermission.objects.filter(group__user=account),
    ):
        for namespace, codename in rows.values_list("content_object", "permission__codename"):
            held.setdefault(namespace, set()).add(_role(codename))
    for role in Role:
        for namespace in mapped(account.pk, [role]).values_list("namespace", flat=True):
            held.setdefault(namespace, set()).add(role)
    return held


register_model("Namespace", NamespaceNode, lambda info: Namespace.objects.all())
