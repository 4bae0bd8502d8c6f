"""Role mappings as clients see them: what members of directory groups may do, and where."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import QuerySet
from strawberry import ID, Info

from accounts.roles import Role
from condastore.errors import NotFoundError
from environments.graphql.errors import OperationError
from environments.graphql.pages import (
    Column,
    Connection,
    Key,
    actor_of,
    computed,
    connection,
    field,
)
from environments.graphql.types import Node
from environments.models import RoleMapping
from environments.models.role_mappings import mirrors
from environments.operations import role_mappings as operations


@strawberry_django.type(
    RoleMapping,
    name="RoleMapping",
    field_cls=Column,
    description="Members of the directory groups that match hold the role where it matches.",
)
class RoleMappingNode(Node):
    id: ID
    group: str
    namespace: str
    created_at: datetime
    role: Role = computed(lambda row: Role(row.role), only=["role"])

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[RoleMapping], info: Info, **kwargs: Any
    ) -> QuerySet[RoleMapping]:
        visible = operations.role_mappings(actor_of(info)).order_by().values("pk")
        return queryset.filter(pk__in=visible)

    @field(only=["group"], description="The groups that match now.")
    def groups(self: Any) -> list[str]:
        return mirrors(self.group)


@strawberry.type(description="A role mapping that is no more.")
class RemovedRoleMapping:
    group: str
    namespace: str


RoleMappingPayload = Annotated[
    RoleMappingNode | OperationError, strawberry.union("RoleMappingPayload")
]
RemovedRoleMappingPayload = Annotated[
    RemovedRoleMapping | OperationError, strawberry.union("RemovedRoleMappingPayload")
]


def _role_mappings(info: Info) -> Iterable[RoleMappingNode]:
    found: Any = RoleMapping.objects.all()
    return found  # type: ignore[no-any-return]


@strawberry.type
class RoleMappingQueries:
    role_mappings: Connection[RoleMappingNode] = connection(
        _role_mappings,
        graphql_type=Connection[RoleMappingNode],
        description="For administrators of the installation.",
    )


@strawberry.type
class RoleMappingMutations:
    @field(
        description="Groups as `directory:pattern`; namespaces by pattern, or {username} for "
        "personal ones. By administrators of the installation."
    )
    def add_role_mapping(
        self, info: Info, group: str, namespace: str, role: Role
    ) -> RoleMappingPayload:
        found: Any = operations.add_role_mapping(
            actor=actor_of(info), group=group, namespace=namespace, role=role
        )
        return found  # type: ignore[no-any-return]

    @field(description="What was granted by hand stays.")
    def remove_role_mapping(self, info: Info, key: Key) -> RemovedRoleMappingPayload:
        actor = actor_of(info)
        known = key.isdecimal() and len(key) <= 18
        rows = operations.role_mappings(actor)
        mapping = rows.filter(pk=key).first() if known else None
        if mapping is None:
            raise NotFoundError("There is no such role mapping.", where="id")
        operations.remove_role_mapping(actor=actor, mapping=mapping)
        return RemovedRoleMapping(group=mapping.group, namespace=mapping.namespace)
