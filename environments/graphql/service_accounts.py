"""Service accounts and their owners."""

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
from environments.graphql.connections import Connection, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import Column, actor_of, column, computed, described, field
from environments.graphql.nodes import Node, id_field, key_field, register_model
from environments.operations import tokens as operations

_OWNER = {"only": ["is_service", "owner__username", "owner__is_active"]}


@strawberry_django.type(
    User,
    name="ServiceAccount",
    field_cls=Column,
    description="Account for programs; it signs in with API tokens only.",
)
class ServiceAccountNode(Node):
    id: ID = id_field("ServiceAccount")
    database_id: str = key_field()
    username: str = column("Name of the account.")
    date_joined: datetime = column("When the account was created.")
    active: bool = computed(
        lambda account: account.is_active,
        only=["is_active"],
        description="True when the account may sign in.",
    )
    owner: str | None = computed(
        lambda account: account.owner.username if account.owner else None,
        **_OWNER,
        description="Name of the user responsible for the account; null if there is none.",
    )
    owner_left: bool = computed(
        lambda account: account.owner_left,
        **_OWNER,
        description="True when the account has no active owner.",
    )
    suspended: bool = computed(
        lambda account: account.owner_left and settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS,
        **_OWNER,
        description="True when its tokens are refused until it has an active owner.",
    )

    @classmethod
    def get_queryset(cls, queryset: QuerySet[User], info: Info, **kwargs: Any) -> QuerySet[User]:
        visible = operations.service_accounts(actor_of(info)).order_by().values("pk")
        return queryset.filter(pk__in=visible).select_related("owner")


ServiceAccountPayload = Annotated[
    ServiceAccountNode | OperationError, refusable("ServiceAccountPayload")
]


def _service_accounts(
    info: Info,
    owner_left: Annotated[
        bool | None,
        described("True for accounts without an active owner only, false for others only."),
    ] = None,
) -> Iterable[ServiceAccountNode]:
    found: Any = operations.service_accounts(actor_of(info), owner_left=owner_left)
    return found  # type: ignore[no-any-return]


@strawberry.type
class ServiceAccountQueries:
    service_accounts: Connection[ServiceAccountNode] = connection(
        _service_accounts,
        graphql_type=Connection[ServiceAccountNode],
        description="Service accounts the caller owns, and those that build or upload "
        "in namespaces where the caller grants roles; all for "
        "administrators.",
    )


@strawberry.type
class ServiceAccountMutations:
    @field(description="Create a service account owned by the caller. Administrators only.")
    def create_service_account(
        self, info: Info, name: Annotated[str, described("Name of the account.")]
    ) -> ServiceAccountPayload:
        found: Any = operations.create_service_account(actor=actor_of(info), name=name)
        return found  # type: ignore[no-any-return]

    @field(description="Assign a service account to another owner. Administrators only.")
    def assign_service_account(
        self,
        info: Info,
        name: Annotated[str, described("Name of the account.")],
        owner: Annotated[str, described("Name of the new owner.")],
    ) -> ServiceAccountPayload:
        found: Any = operations.assign_service_account(actor=actor_of(info), name=name, owner=owner)
        return found  # type: ignore[no-any-return]


register_model("ServiceAccount", ServiceAccountNode, lambda info: User.objects.all())
