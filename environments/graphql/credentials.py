"""Credentials of channels: list, set and delete them. The secrets are never shown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

import strawberry
from strawberry import ID, Info

from environments.graphql.errors import OperationError
from environments.graphql.governance import Shown
from environments.graphql.pages import Connection, Key, actor_of, connection, field
from environments.graphql.types import find
from environments.models import ChannelCredential
from environments.operations import credentials
from environments.operations.namespaces import find_namespace


@strawberry.enum(description="How the secret of a channel is sent.")
class CredentialKind(Enum):
    BASIC = strawberry.enum_value("basic", description="As user name and password.")
    TOKEN = strawberry.enum_value("token", description="As /t/TOKEN in the path of the URL.")


@strawberry.type(
    name="ChannelCredential", description="A secret that is sent to a channel; it is never shown."
)
class CredentialNode:
    id: ID
    namespace: str | None = strawberry.field(description="Null: of the whole installation.")
    url_prefix: str = strawberry.field(description="It is sent to what begins so.")
    kind: str
    namespaces: list[str] = strawberry.field(
        description="Of a credential of the installation: names and patterns of the namespaces "
        "whose builds use it. Empty for one that only mirrors use."
    )
    created_at: datetime

    @classmethod
    def of(cls, row: ChannelCredential) -> CredentialNode:
        return cls(
            id=ID(str(row.pk)),
            namespace=row.namespace.name if row.namespace else None,
            url_prefix=row.url_prefix,
            kind=row.kind,
            namespaces=list(row.namespaces),
            created_at=row.created_at,
        )


CredentialPayload = Annotated[
    CredentialNode | OperationError, strawberry.union("ChannelCredentialPayload")
]


def _credentials(info: Info, namespace: str | None = None) -> Iterable[CredentialNode]:
    rows = ChannelCredential.objects.visible_to(actor_of(info)).select_related("namespace")
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Shown(rows.order_by("-pk"), CredentialNode.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class CredentialQuery:
    channel_credentials: Connection[CredentialNode] = connection(
        _credentials,
        graphql_type=Connection[CredentialNode],
        description="Of the namespaces that you run.",
    )


@strawberry.type
class CredentialMutation:
    @field(
        description="Set or replace the credential of a channel, for builds of a namespace that "
        "you manage. `secret` is a token or user:password; it may stand in the URL instead. "
        "Without a namespace: of the installation, by administrators, for the namespaces that "
        "`namespaces` names (names and patterns; a pattern matches no personal namespace)."
    )
    def set_channel_credential(
        self,
        info: Info,
        channel: str,
        secret: str = "",
        kind: CredentialKind = CredentialKind.BASIC,
        namespace: str | None = None,
        namespaces: list[str] | None = None,
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

    @field(description="Builds that start later are refused by the channel.")
    def delete_channel_credential(self, info: Info, key: Key) -> CredentialPayload:
        actor = actor_of(info)
        rows = ChannelCredential.objects.visible_to(actor).select_related("namespace")
        found = find(rows, key, "credential")
        return CredentialNode.of(credentials.delete_credential(actor=actor, credential=found))
