"""Hosted channels and their packages: which there are, making and deleting them, yanking."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
from django.db.models import Count, OuterRef, Subquery, Sum
from strawberry import ID, Info

from environments.graphql.errors import OperationError
from environments.graphql.governance import Shown
from environments.graphql.packages import BigInt
from environments.graphql.pages import Connection, actor_of, connection, field
from environments.models import HostedChannel, HostedPackage
from environments.operations import hosted_channels
from environments.operations.namespaces import find_namespace
from environments.services import hosted_channels as hosting


@strawberry.type(
    name="HostedChannel", description="A channel of packages that people of a namespace upload."
)
class HostedChannelNode:
    id: ID
    name: str
    namespace: str = strawberry.field(description="Whose roles say who uploads and who reads.")
    description: str
    public: bool = strawberry.field(description="Everybody may read it.")
    url: str = strawberry.field(description="Builds also know it as hosted/NAME.")
    packages: int
    size: BigInt = strawberry.field(description="Bytes of its packages; they count as quota.")
    created_at: datetime

    @classmethod
    def of(cls, row: Any) -> HostedChannelNode:
        return cls(
            id=ID(str(row.pk)),
            name=row.name,
            namespace=row.namespace.name,
            description=row.description,
            public=row.public,
            url=hosting.url_of(row),
            packages=row.__dict__.get("held") or 0,
            size=BigInt(row.__dict__.get("held_size") or 0),
            created_at=row.created_at,
        )


@strawberry.type(name="HostedPackage", description="A package of a hosted channel.")
class HostedPackageNode:
    id: ID
    channel: str
    subdir: str
    file_name: str
    name: str
    version: str
    build: str
    sha256: str
    size: BigInt
    uploaded_at: datetime
    uploaded_by: str | None
    yanked_at: datetime | None = strawberry.field(
        description="Since then no solve chooses it; locks that have it stay good."
    )
    yanked_by: str | None
    yank_reason: str

    @classmethod
    def of(cls, row: HostedPackage) -> HostedPackageNode:
        return cls(
            id=ID(str(row.pk)),
            channel=row.channel.name,
            subdir=row.subdir,
            file_name=row.file_name,
            name=row.name,
            version=row.version,
            build=row.build,
            sha256=row.sha256,
            size=BigInt(row.size),
            uploaded_at=row.uploaded_at,
            uploaded_by=row.uploaded_by.get_username() if row.uploaded_by else None,
            yanked_at=row.yanked_at,
            yanked_by=row.yanked_by.get_username() if row.yanked_by else None,
            yank_reason=row.yank_reason,
        )


HostedChannelPayload = Annotated[
    HostedChannelNode | OperationError, strawberry.union("HostedChannelPayload")
]
HostedPackagePayload = Annotated[
    HostedPackageNode | OperationError, strawberry.union("HostedPackagePayload")
]


def _rows(info: Info) -> Any:
    held = HostedPackage.objects.filter(channel=OuterRef("pk")).order_by().values("channel")
    return hosted_channels.channels(actor_of(info)).annotate(
        held=Subquery(held.annotate(n=Count("pk")).values("n")),
        held_size=Subquery(held.annotate(n=Sum("size")).values("n")),
    )


def _channels(info: Info, namespace: str | None = None) -> Iterable[HostedChannelNode]:
    rows = _rows(info).order_by("name")
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Shown(rows, HostedChannelNode.of)
    return found  # type: ignore[no-any-return]


def _packages(info: Info, channel: str, name: str | None = None) -> Iterable[HostedPackageNode]:
    rows = hosted_channels.packages(actor_of(info), channel)
    if name is not None:
        rows = rows.filter(name=name)
    found: Any = Shown(rows, HostedPackageNode.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class HostedQuery:
    hosted_channels: Connection[HostedChannelNode] = connection(
        _channels,
        graphql_type=Connection[HostedChannelNode],
        description="That you may read.",
    )
    hosted_packages: Connection[HostedPackageNode] = connection(
        _packages,
        graphql_type=Connection[HostedPackageNode],
        description="Of one hosted channel, the newest first.",
    )

    @field()
    def hosted_channel(self, info: Info, name: str) -> HostedChannelNode | None:
        row = _rows(info).filter(name=name).first()
        return HostedChannelNode.of(row) if row is not None else None


@strawberry.type
class HostedMutation:
    @field(
        description="It is called NAMESPACE/NAME. Administrators may choose a name without a "
        "namespace, which is unique in the installation. A name never becomes another namespace's."
    )
    def create_hosted_channel(
        self,
        info: Info,
        namespace: str,
        name: str,
        description: str = "",
        public: bool = False,
    ) -> HostedChannelPayload:
        actor = actor_of(info)
        return HostedChannelNode.of(
            hosted_channels.create_channel(
                actor=actor,
                namespace=find_namespace(actor, namespace),
                name=name,
                description=description,
                public=public,
            )
        )

    @field(description="What is left out stays.")
    def change_hosted_channel(
        self, info: Info, name: str, description: str | None = None, public: bool | None = None
    ) -> HostedChannelPayload:
        channel = _found(info, name)
        hosted_channels.change_channel(
            actor=actor_of(info), channel=channel, description=description, public=public
        )
        return HostedChannelNode.of(_rows(info).get(pk=channel.pk))

    @field(description="Its packages go; builds keep those that they have. Its name stays taken.")
    def delete_hosted_channel(self, info: Info, name: str) -> HostedChannelPayload:
        channel = _found(info, name)
        return HostedChannelNode.of(
            hosted_channels.delete_channel(actor=actor_of(info), channel=channel)
        )

    @field(description="No solve chooses it any more; its bytes are still given.")
    def yank_package(
        self, info: Info, channel: str, subdir: str, file_name: str, reason: str
    ) -> HostedPackagePayload:
        actor = actor_of(info)
        found = hosted_channels.find_package(actor, channel, subdir, file_name)
        return HostedPackageNode.of(hosted_channels.yank(actor=actor, package=found, reason=reason))

    @field()
    def unyank_package(
        self, info: Info, channel: str, subdir: str, file_name: str
    ) -> HostedPackagePayload:
        actor = actor_of(info)
        found = hosted_channels.find_package(actor, channel, subdir, file_name)
        return HostedPackageNode.of(hosted_channels.unyank(actor=actor, package=found))


def _found(info: Info, name: str) -> HostedChannel:
    return hosted_channels.find_channel(actor_of(info), name)
