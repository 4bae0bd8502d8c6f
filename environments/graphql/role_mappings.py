"""Role mappings: roles of the members of directory groups."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import QuerySet
from strawberry import ID, Info

from environments.graphql.connections import Connection, connection
from environments.graphql.enums import Role
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import Column, actor_of, column, computed, described, field
from environments.graphql.nodes import Node, find, id_field, key_field, register_model
from environments.models import RoleMapping
from environments.models.role_mappings import matching_groups
from environments.operations import role_mappings as operations


@strawberry_django.type(
    RoleMapping,
    name="RoleMapping",
    field_cls=Column,
    description="Rule that gives members of matching directory groups a role in "
    "matching namespaces.",
)
class RoleMappingNode(Node):
    id: ID = id_field("RoleMapping")
    database_id: str = key_field()
    group: str = column("Pattern of directory groups, as `directory:pattern`.")
    namespace: str = column("Pattern of namespaces; {username} stands for the member's name.")
    created_at: datetime = column("When the mapping was created.")
    role: Role = computed(
        lambda row: Role(row.role), only=["role"], description="Role that is given."
    )

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[RoleMapping], info: Info, **kwargs: Any
    ) -> QuerySet[RoleMapping]:
        visible = operations.role_mappings(actor_of(info)).order_by().values("pk")
        return queryset.filter(pk__in=visible)

    @field(only=["group"], description="Directory groups that currently match.")
    def groups(self: Any) -> list[str]:
        return matching_groups(self.group)


@strawberry.type(description="Role mapping that was removed.")
class RemovedRoleMapping:
    group: str = strawberry.field(description="Pattern of directory groups.")
    namespace: str = strawberry.field(description="Pattern of namespaces.")


RoleMappingPayload = Annotated[RoleMappingNode | OperationError, refusable("RoleMappingPayload")]
RemovedRoleMappingPayload = Annotated[
    RemovedRoleMapping | OperationError, refusable("RemovedRoleMappingPayload")
]


def _role_mappings(info: Info) -> Iterable[RoleMappingNode]:
    found: Any = RoleMapping.objects.all()
    return found  # type: ignore[no-any-return]


@strawberry.type
class RoleMappingQueries:
    role_mappings: Connection[RoleMappingNode] = connection(
        _role_mappings,
        graphql_type=Connection[RoleMappingNode],
        description="Role mappings of the installation. Administrators only.",
    )


@strawberry.type
class RoleMappingMutations:
    @field(description="Add a role mapping. Administrators only.")
    def add_role_mapping(
        self,
        info: Info,
        group: Annotated[str, described("Directory groups, as `directory:pattern`.")],
        namespace: Annotated[
            str,
            described(
                "Pattern of namespaces; {username} stands for the member's name in "
                "personal namespaces."
            ),
        ],
        role: Annotated[Role, described("Role to give.")],
    ) -> RoleMappingPayload:
        found: Any = operations.add_role_mapping(
            actor=actor_of(info), group=group, namespace=namespace, role=role
        )
        return found  # type: ignore[no-any-return]

    @field(description="Remove a role mapping; roles granted by name stay. Administrators only.")
    def remove_role_mapping(
        self, info: Info, key: Annotated[ID, described("Id of the role mapping.", name="id")]
    ) -> RemovedRoleMappingPayload:
        actor = actor_of(info)
        mapping = find(operations.role_mappings(actor), key, "role mapping")
        operations.remove_role_mapping(actor=actor, mapping=mapping)
        return RemovedRoleMapping(group=mapping.group, namespace=mapping.namespace)


register_model("RoleMapping", RoleMappingNode, lambda info: RoleMapping.objects.all())
