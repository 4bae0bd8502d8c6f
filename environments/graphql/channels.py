"""Channels and the packages they offer."""

from __future__ import annotations

from datetime import datetime

import strawberry
import strawberry_django
from strawberry import ID

from environments.graphql.builds import BuildNode
from environments.graphql.environments import EnvironmentNode
from environments.graphql.fields import Column, column, computed
from environments.graphql.nodes import Node, id_field, key_field
from environments.graphql.packages import (
    LockedPackage,
)
from environments.models import (
    Channel,
    IndexedPackage,
)


@strawberry_django.type(
    Channel,
    name="Channel",
    field_cls=Column,
    description="Conda channel known to the installation.",
)
class ChannelNode(Node):
    id: ID = id_field("Channel")
    database_id: str = key_field()
    url: str = column("URL of the channel.")
    first_seen_at: datetime = column("When the installation first used the channel.")
    indexed_at: datetime | None = column(
        "When the channel was last indexed for search; null if it never was."
    )

    name: str = computed(
        lambda channel: channel.url.rstrip("/").rsplit("/", 1)[-1],
        only=["url"],
        description="Last path segment of the channel's URL.",
    )


@strawberry_django.type(
    IndexedPackage,
    name="IndexedPackage",
    field_cls=Column,
    description="Package offered by a channel, as found by the package search.",
)
class IndexedPackageNode:
    name: str = column("Name of the package.")
    latest_version: str = column("Newest version in the channel.")
    versions: int = column("Number of versions in the channel.")
    subdirs: list[str] = column("Platform subdirectories that contain the package.")
    license: str = column("License of the newest version.")
    summary: str = column("One-line description of the package.")
    channel: ChannelNode = column("Channel that offers the package.")


@strawberry.type(description="Build that contains a package.")
class LockedPackageUse:
    package: LockedPackage = strawberry.field(description="The package as locked.")
    environment: EnvironmentNode = strawberry.field(description="Environment of the build.")
    build: BuildNode = strawberry.field(description="Build that contains the package.")
