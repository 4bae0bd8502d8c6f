"""The signed-in user and API tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import strawberry
import strawberry_django
from strawberry import ID, Info

from accounts.models import ApiToken
from environments.graphql.enums import Role
from environments.graphql.fields import Column, actor_of, column, computed, field
from environments.graphql.namespaces import NamespaceRole, roles_of
from environments.graphql.nodes import Node, id_field, key_field, register_model
from environments.graphql.optimizer import below, optimized
from environments.models import (
    Namespace,
)
from environments.operations.tokens import tokens_of


@strawberry_django.type(
    ApiToken,
    name="ApiToken",
    field_cls=Column,
    description="API token of a user or a service account. Its secret is never shown again.",
)
class ApiTokenNode(Node):
    id: ID = id_field("ApiToken")
    database_id: str = key_field()
    name: str = column("Name that the owner gave the token.")
    hint: str = column("First characters of the secret, to recognize the token by.")
    namespaces: list[str] = column(
        "Names of the namespaces the token is limited to; empty means no limit."
    )
    created_at: datetime = column("When the token was created.")
    expires_at: datetime = column("When the token expires.")
    last_used_at: datetime | None = column("When the token was last used; null if it never was.")
    last_used_address: str | None = column("IP address of the last use.")

    role: Role | None = computed(
        lambda token: Role(token.role) if token.role else None,
        description="Highest role the token acts with; null means the roles of its account.",
    )
    revoked: bool = computed(
        lambda token: token.revoked_at is not None,
        only=["revoked_at"],
        description="True when the token was revoked.",
    )


@strawberry.type(description="The signed-in user.")
class Me:
    username: str = strawberry.field(description="Name of the user.")
    email: str = strawberry.field(description="E-mail address of the user.")
    is_superuser: bool = strawberry.field(
        description="True when the caller may administer the whole installation."
    )
    token_name: str | None = strawberry.field(
        description="Name of the API token used for this request; null for other sign-ins."
    )

    @field(description="API tokens of the caller and of the caller's service accounts.")
    def tokens(self, info: Info) -> list[ApiTokenNode]:
        found: Any = tokens_of(actor_of(info))
        return found  # type: ignore[no-any-return]

    @field(description="Namespaces in which the caller holds a role, with the roles.")
    def namespaces(self, info: Info) -> list[NamespaceRole]:
        actor = actor_of(info)
        held = roles_of(actor.account)
        rows: Any = optimized(
            Namespace.objects.visible_to(actor).filter(pk__in=held), below(info, "namespace")
        )
        return [
            NamespaceRole(namespace=row, roles=sorted(held[row.pk], key=list(Role).index))
            for row in rows
        ]


register_model("ApiToken", ApiTokenNode, lambda info: tokens_of(actor_of(info)))
