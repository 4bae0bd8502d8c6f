"""Credentials of channels: list, set and delete them. The secrets are never shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

import strawberry
from django.db.models import QuerySet
from strawberry import ID, Info

from environments.graphql.arguments import OnlyNamespace
from environments.graphql.connections import Connection, Rows, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import actor_of, described, field
from environments.graphql.nodes import Node, find, ids_of, register_rows
from environments.models import ChannelCredential
from environments.operations import credentials
from environments.operations.namespaces import find_namespace


@strawberry.enum(description="How the secret of a credential is sent.")
class CredentialKind(Enum):
    BASIC = strawberry.enum_value("basic", description="As user name and password.")
    TOKEN = strawberry.enum_value("token", description="As /t/TOKEN in the path of the URL.")


@strawberry.type(
    name="ChannelCredential",
    description="Credential sent to a channel or registry. The secret is never shown.",
)
class CredentialNode(Node):
    namespace: str | None = strawberry.field(
        description="Name of the namespace whose builds use it; null means the whole installation."
    )
    url_prefix: str = strawberry.field(
        description="The credential is sent to URLs with this prefix."
    )
    kind: str = strawberry.field(description="How the secret is sent.")
    namespaces: list[str] = strawberry.field(
        description="For a credential of the installation: names and patterns of the "
        "namespaces whose builds use it. Empty means that only mirrors use "
        "it."
    )
    created_at: datetime = strawberry.field(description="When the credential was stored.")

    @classmethod
    def of(cls, row: ChannelCredential) -> CredentialNode:
        return cls(
            **ids_of("ChannelCredential", row),
            namespace=row.namespace.name if row.namespace else None,
            url_prefix=row.url_prefix,
            kind=row.kind,
            namespaces=list(row.namespaces),
            created_at=row.created_at,
        )


CredentialPayload = Annotated[
    CredentialNode | OperationError, refusable("ChannelCredentialPayload")
]


def _rows(info: Info) -> QuerySet[ChannelCredential]:
    return ChannelCredential.objects.visible_to(actor_of(info)).select_related("namespace")


def _credentials(info: Info, namespace: OnlyNamespace = None) -> Iterable[CredentialNode]:
    rows = _rows(info)
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Rows.each(rows.order_by("-pk"), CredentialNode.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class CredentialQuery:
    channel_credentials: Connection[CredentialNode] = connection(
        _credentials,
        graphql_type=Connection[CredentialNode],
        description="Credentials of the namespaces the caller manages.",
    )


@strawberry.type
class CredentialMutation:
    @field(
        description="Set or replace the credential of a channel. Requires permission to "
        "manage the namespace; administrators only for the installation."
    )
    def set_channel_credential(
        self,
        info: Info,
        channel: Annotated[str, described("URL of the channel; it may contain the credential.")],
        secret: Annotated[
            str, described("Token, or `user:password`; empty when the URL contains it.")
        ] = "",
        kind: Annotated[
            CredentialKind, described("How the secret is sent.")
        ] = CredentialKind.BASIC,
        namespace: Annotated[
            str | None,
            described("Name of the namespace whose builds use it; null means the installation."),
        ] = None,
        namespaces: Annotated[
            list[str] | None,
            described(
                "For a credential of the installation: names and patterns of the "
                "namespaces whose builds use it. A pattern matches no personal "
                "namespace."
            ),
        ] = None,
    ) -> CredentialPayload:
        actor = actor_of(info)
        place = find_namespace(actor, namespace) if namespace is not None else None
        sent: Literal["token", "basic"] = "token" if kind is CredentialKind.TOKEN else "basic"
        row = credentials.set_credential(
            actor=actor,
            namespace=place,
            channel=channel,
            kind=sent,
            secret=secret,
            namespaces=namespaces or (),
        )
        return CredentialNode.of(row)

    @field(description="Delete a credential; later requests are sent without it.")
    def delete_channel_credential(
        self, info: Info, key: Annotated[ID, described("Id of the credential.", name="id")]
    ) -> CredentialPayload:
        actor = actor_of(info)
        rows = ChannelCredential.objects.visible_to(actor).select_related("namespace")
        found = find(rows, key, "credential")
        return CredentialNode.of(credentials.delete_credential(actor=actor, credential=found))


register_rows("ChannelCredential", _rows, lambda info, row: CredentialNode.of(row))
