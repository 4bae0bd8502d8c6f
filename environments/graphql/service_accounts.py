"""Service accounts as clients see them: who answers for each, and whether anybody still does."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.conf import settings
from django.db.models import QuerySet
from strawberry import ID, Info

from accounts.models import User
from environments.graphql.errors import OperationError
from environments.graphql.pages import Column, Connection, actor_of, computed, connection, field
from environments.graphql.types import Node
from environments.operations import tokens as operations

_OWNER = {"only": ["is_service", "owner__username", "owner__is_active"]}


@strawberry_django.type(
    User,
    name="ServiceAccount",
    field_cls=Column,
    description="An account that acts by tokens only.",
)
class ServiceAccountNode(Node):
    id: ID
    username: str
    date_joined: datetime
    active: bool = computed(lambda account: account.is_active, only=["is_active"])
    owner: str | None = computed(
        lambda account: account.owner.username if account.owner else None,
        **_OWNER,
        description="Who answers for it.",
    )
    owner_left: bool = computed(
        lambda account: account.owner_left,
        **_OWNER,
        description="Nobody answers for it any more.",
    )
    suspended: bool = computed(
        lambda account: account.owner_left and settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS,
        **_OWNER,
        description="Its tokens rest until it has another owner: so the installation is set up.",
    )

    @classmethod
    def get_queryset(cls, queryset: QuerySet[User], info: Info, **kwargs: Any) -> QuerySet[User]:
        visible = operations.service_accounts(actor_of(info)).order_by().values("pk")
        return queryset.filter(pk__in=visible).select_related("owner")


ServiceAccountPayload = Annotated[
    ServiceAccountNode | OperationError, strawberry.union("ServiceAccountPayload")
]


def _service_accounts(info: Info, owner_left: bool | None = None) -> Iterable[ServiceAccountNode]:
    found: Any = operations.service_accounts(actor_of(info), owner_left=owner_left)
    return found  # type: ignore[no-any-return]


@strawberry.type
class ServiceAccountQueries:
    service_accounts: Connection[ServiceAccountNode] = connection(
        _service_accounts,
        graphql_type=Connection[ServiceAccountNode],
        description="Yours, and those with a role in namespaces in which you give roles that have "
        "built or uploaded there; all for administrators of the installation.",
    )


@strawberry.type
class ServiceAccountMutations:
    @field(description="By administrators of the installation.")
    def create_service_account(self, info: Info, name: str) -> ServiceAccountPayload:
        found: Any = operations.create_service_account(actor=actor_of(info), name=name)
        return found  # type: ignore[no-any-return]

    @field(description="Give it another owner; by administrators of the installation.")
    def assign_service_account(self, info: Info, name: str, owner: str) -> ServiceAccountPayload:
        found: Any = operations.assign_service_account(actor=actor_of(info), name=name, owner=owner)
        return found  # type: ignore[no-any-return]
