"""Hosted channels and their packages: list, create, change, delete, yank."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
from django.db.models import Count, OuterRef, Subquery, Sum
from strawberry import Info

from environments.graphql.arguments import OnlyNamespace
from environments.graphql.connections import Connection, Rows, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import actor_of, described, field
from environments.graphql.nodes import Node, ids_of, register_rows
from environments.graphql.scalars import BigInt
from environments.models import HostedChannel, HostedPackage
from environments.operations import hosted_channels
from environments.operations.namespaces import find_namespace
from environments.services import hosted_channels as hosting


@strawberry.type(
    name="HostedChannel", description="Channel whose packages users of a namespace upload."
)
class HostedChannelNode(Node):
    name: str = strawberry.field(description="Name of the channel, unique in the installation.")
    namespace: str = strawberry.field(
        description="Name of the namespace whose roles control uploads and reads."
    )
    description: str = strawberry.field(description="Description of the channel.")
    public: bool = strawberry.field(description="True when everyone may read the channel.")
    url: str = strawberry.field(
        description="URL of the channel; specifications may also name it `hosted/NAME`."
    )
    packages: int = strawberry.field(description="Number of packages in the channel.")
    size: BigInt = strawberry.field(
        description="Total size of the channel's packages, in bytes; it counts toward the quota."
    )
    created_at: datetime = strawberry.field(description="When the channel was created.")

    @classmethod
    def of(cls, row: Any) -> HostedChannelNode:
        return cls(
            **ids_of("HostedChannel", row),
            name=row.name,
            namespace=row.namespace.name,
            description=row.description,
            public=row.public,
            url=hosting.url_of(row),
            packages=row.__dict__.get("held") or 0,
            size=BigInt(row.__dict__.get("held_size") or 0),
            created_at=row.created_at,
        )


@strawberry.type(name="HostedPackage", description="Package of a hosted channel.")
class HostedPackageNode(Node):
    channel: str = strawberry.field(description="Name of the channel.")
    subdir: str = strawberry.field(description="Platform subdirectory, such as linux-64 or noarch.")
    file_name: str = strawberry.field(description="Name of the package file.")
    name: str = strawberry.field(description="Name of the package.")
    version: str = strawberry.field(description="Version of the package.")
    build: str = strawberry.field(description="Build string of the package.")
    sha256: str = strawberry.field(
        description="SHA-256 digest of the package file, in hexadecimal."
    )
    size: BigInt = strawberry.field(description="Size of the package file, in bytes.")
    uploaded_at: datetime = strawberry.field(description="When the package was uploaded.")
    uploaded_by: str | None = strawberry.field(
        description="Name of the user who uploaded it; null if the account was deleted."
    )
    yanked_at: datetime | None = strawberry.field(
        description="When the package was yanked: solves no longer choose it, existing "
        "locks stay valid. Null if it is not yanked."
    )
    yanked_by: str | None = strawberry.field(description="Name of the user who yanked it.")
    yank_reason: str = strawberry.field(description="Reason given for yanking.")

    @classmethod
    def of(cls, row: HostedPackage) -> HostedPackageNode:
        return cls(
            **ids_of("HostedPackage", row),
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
    HostedChannelNode | OperationError, refusable("HostedChannelPayload")
]
HostedPackagePayload = Annotated[
    HostedPackageNode | OperationError, refusable("HostedPackagePayload")
]


def _rows(info: Info) -> Any:
    held = HostedPackage.objects.filter(channel=OuterRef("pk")).order_by().values("channel")
    return hosted_channels.channels(actor_of(info)).annotate(
        held=Subquery(held.annotate(n=Count("pk")).values("n")),
        held_size=Subquery(held.annotate(n=Sum("size")).values("n")),
    )


def _channels(info: Info, namespace: OnlyNamespace = None) -> Iterable[HostedChannelNode]:
    rows = _rows(info).order_by("name")
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Rows.each(rows, HostedChannelNode.of)
    return found  # type: ignore[no-any-return]


def _packages(
    info: Info,
    channel: Annotated[str, described("Name of the hosted channel.")],
    name: Annotated[str | None, described("Exact name of the package.")] = None,
) -> Iterable[HostedPackageNode]:
    rows = hosted_channels.packages(actor_of(info), channel)
    if name is not None:
        rows = rows.filter(name=name)
    found: Any = Rows.each(rows, HostedPackageNode.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class HostedQuery:
    hosted_channels: Connection[HostedChannelNode] = connection(
        _channels,
        graphql_type=Connection[HostedChannelNode],
        description="Hosted channels the caller may read, by name.",
    )
    hosted_packages: Connection[HostedPackageNode] = connection(
        _packages,
        graphql_type=Connection[HostedPackageNode],
        description="Packages of one hosted channel, newest first.",
    )

    @field(description="One hosted channel; null when it does not exist or is not visible.")
    def hosted_channel(
        self, info: Info, name: Annotated[str, described("Name of the hosted channel.")]
    ) -> HostedChannelNode | None:
        row = _rows(info).filter(name=name).first()
        return HostedChannelNode.of(row) if row is not None else None


@strawberry.type
class HostedMutation:
    @field(
        description="Create a hosted channel named NAMESPACE/NAME. Administrators may "
        "choose a name without a namespace. A name is never reused by "
        "another namespace."
    )
    def create_hosted_channel(
        self,
        info: Info,
        namespace: Annotated[str, described("Name of the namespace that owns the channel.")],
        name: Annotated[str, described("Name of the channel.")],
        description: Annotated[str, described("Description of the channel.")] = "",
        public: Annotated[bool, described("True to let everyone read the channel.")] = False,
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

    @field(description="Change a hosted channel; omitted arguments leave their value unchanged.")
    def change_hosted_channel(
        self,
        info: Info,
        name: Annotated[str, described("Name of the channel.")],
        description: Annotated[str | None, described("New description.")] = None,
        public: Annotated[bool | None, described("True to let everyone read the channel.")] = None,
    ) -> HostedChannelPayload:
        channel = _found(info, name)
        hosted_channels.change_channel(
            actor=actor_of(info), channel=channel, description=description, public=public
        )
        return HostedChannelNode.of(_rows(info).get(pk=channel.pk))

    @field(
        description="Delete a hosted channel and its packages; builds keep the packages "
        "they use. The name stays reserved."
    )
    def delete_hosted_channel(
        self, info: Info, name: Annotated[str, described("Name of the channel.")]
    ) -> HostedChannelPayload:
        channel = _found(info, name)
        return HostedChannelNode.of(
            hosted_channels.delete_channel(actor=actor_of(info), channel=channel)
        )

    @field(
        description="Yank a hosted package: solves no longer choose it, but it can "
        "still be downloaded."
    )
    def yank_package(
        self,
        info: Info,
        channel: Annotated[str, described("Name of the hosted channel.")],
        subdir: Annotated[str, described("Platform subdirectory, such as linux-64.")],
        file_name: Annotated[str, described("Name of the package file.")],
        reason: Annotated[str, described("Reason for yanking.")],
    ) -> HostedPackagePayload:
        actor = actor_of(info)
        found = hosted_channels.find_package(actor, channel, subdir, file_name)
        return HostedPackageNode.of(hosted_channels.yank(actor=actor, package=found, reason=reason))

    @field(description="Undo the yanking of a hosted package.")
    def unyank_package(
        self,
        info: Info,
        channel: Annotated[str, described("Name of the hosted channel.")],
        subdir: Annotated[str, described("Platform subdirectory, such as linux-64.")],
        file_name: Annotated[str, described("Name of the package file.")],
    ) -> HostedPackagePayload:
        actor = actor_of(info)
        found = hosted_channels.find_package(actor, channel, subdir, file_name)
        return HostedPackageNode.of(hosted_channels.unyank(actor=actor, package=found))


def _found(info: Info, name: str) -> HostedChannel:
    return hosted_channels.find_channel(actor_of(info), name)


register_rows("HostedChannel", _rows, lambda info, row: HostedChannelNode.of(row))
register_rows(
    "HostedPackage",
    lambda info: HostedPackage.objects.visible_to(actor_of(info)).select_related(
        "channel", "uploaded_by", "yanked_by"
    ),
    lambda info, row: HostedPackageNode.of(row),
)
