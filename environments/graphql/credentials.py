"""Credentials of channels: which there are; never the secrets."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
from strawberry import ID, Info

from environments.graphql.errors import OperationError
from environments.graphql.governance import Shown
from environments.graphql.pages import Connection, Key, actor_of, connection, field
from environments.graphql.types import find
from environments.models import ChannelCredential
from environments.operations import credentials


@strawberry.type(
    name="ChannelCredential", description="A secret that is sent to a channel; it is never shown."
)
class CredentialNode:
    id: ID
    namespace: str | None = strawberry.field(description="Null: of the whole installation.")
    url_prefix: str = strawberry.field(description="It is sent to what begins so.")
    kind: str
    created_at: datetime

    @classmethod
    def of(cls, row: ChannelCredential) -> CredentialNode:
        return cls(
            id=ID(str(row.pk)),
            namespace=row.namespace.name if row.namespace else None,
            url_prefix=row.url_prefix,
            kind=row.kind,
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
    @field(description="Builds that start later are refused by the channel.")
    def delete_channel_credential(self, info: Info, key: Key) -> CredentialPayload:
        actor = actor_of(info)
        rows = ChannelCredential.objects.visible_to(actor).select_related("namespace")
        found = find(rows, key, "credential")
        return CredentialNode.of(credentials.delete_credential(actor=actor, credential=found))
