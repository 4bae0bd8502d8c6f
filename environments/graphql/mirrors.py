"""Mirrors of remote channels: list, create, change, delete."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import Count, OuterRef, Subquery, Sum
from strawberry import ID, Info

from environments.graphql.connections import Connection, Rows, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import absolute, actor_of, described, field
from environments.graphql.filtering import (
    Direction,
    condition,
    filter_type,
    filtered,
    ordered,
    sort_key,
)
from environments.graphql.nodes import Node, find, ids_of, register_rows
from environments.graphql.scalars import BigInt
from environments.models import Mirror, MirrorIndex, MirrorPackage, Namespace
from environments.operations import mirrors
from environments.operations.namespaces import find_namespace


@strawberry.type(description="State of one subdirectory of a mirror.")
class MirroredSubdir:
    subdir: str = strawberry.field(description="Name of the subdirectory, such as linux-64.")
    records: int = strawberry.field(
        description="Number of packages the upstream channel lists, before rules are applied."
    )
    looked_at: datetime | None = strawberry.field(
        description="When the upstream channel last responded; it is polled periodically."
    )
    changed_at: datetime | None = strawberry.field(
        description="When the upstream index last changed."
    )
    failure: str | None = strawberry.field(
        description="Why the last poll failed; the served index is as old as "
        "`lookedAt`. Null if it did not fail."
    )

    @classmethod
    def of(cls, row: MirrorIndex) -> MirroredSubdir:
        return cls(
            subdir=row.subdir,
            records=row.records,
            looked_at=row.looked_at,
            changed_at=row.changed_at,
            failure=row.failure["message"] if row.failure else None,
        )


@strawberry.type(
    name="Mirror",
    description="Remote channel that is served by this installation, filtered by policy rules.",
)
class MirrorNode(Node):
    name: str = strawberry.field(description="Name of the mirror.")
    url: str = strawberry.field(
        description="URL of the mirror; append `@2026-11-01` to read the channel as "
        "listed on that day."
    )
    upstream: str = strawberry.field(description="URL of the remote channel.")
    namespace: str | None = strawberry.field(
        description="Name of the namespace whose rules filter the mirror and whose "
        "members read it; null means the installation's rules and all "
        "signed-in users."
    )
    public: bool = strawberry.field(description="True when everyone may read the mirror.")
    subdirs: list[MirroredSubdir] = strawberry.field(
        description="State of each mirrored subdirectory."
    )
    packages: int = strawberry.field(
        description="Number of packages clients have requested and that are stored here."
    )
    size: BigInt = strawberry.field(description="Total size of the stored packages, in bytes.")
    created_at: datetime = strawberry.field(description="When the mirror was created.")

    @classmethod
    def of(cls, row: Any, info: Info) -> MirrorNode:
        shown = [index for index in row.indexes.all() if index.subdir in row.subdirs]
        return cls(
            **ids_of("Mirror", row),
            name=row.name,
            url=absolute(info, f"/channel/mirror/{row.name}"),
            upstream=row.upstream,
            namespace=row.namespace.name if row.namespace else None,
            public=row.public,
            subdirs=[MirroredSubdir.of(index) for index in shown],
            packages=row.__dict__.get("kept") or 0,
            size=BigInt(row.__dict__.get("kept_size") or 0),
            created_at=row.created_at,
        )


MirrorPayload = Annotated[MirrorNode | OperationError, refusable("MirrorPayload")]


def _rows(info: Info) -> Any:
    kept = MirrorPackage.objects.filter(mirror=OuterRef("pk")).order_by().values("mirror")
    rows = Mirror.objects.visible_to(actor_of(info)).select_related("namespace")
    return rows.prefetch_related("indexes").annotate(
        kept=Subquery(kept.annotate(n=Count("pk")).values("n")),
        kept_size=Subquery(kept.annotate(n=Sum("blob__size")).values("n")),
    )


@filter_type(
    Mirror, name="MirrorFilter", description="Filter for mirrors; all given conditions must hold."
)
class MirrorFilter:
    namespace: str | None = condition(
        "namespace__name", str, "Name of the namespace whose members read the mirror."
    )
    search: str | None = condition("name__icontains", str, "Part of the mirror's name.")
    public: bool | None = condition(
        "public", bool, "True for public mirrors only, false for others only."
    )


@strawberry_django.order_type(
    Mirror, name="MirrorOrder", description="Sort key of mirrors; give exactly one field."
)
class MirrorOrder:
    name: Direction | None = sort_key("name", description="By name.")
    created_at: Direction | None = sort_key("created_at", "pk", description="By time of creation.")


def _mirrors(
    info: Info,
    filters: Annotated[MirrorFilter | None, described("Conditions on the mirrors.")] = None,
    order: Annotated[
        list[MirrorOrder] | None, described("Sort keys, most significant first.")
    ] = None,
) -> Iterable[MirrorNode]:
    rows = filtered(_rows(info).order_by("name"), filters, info)
    rows = ordered(rows, MirrorOrder, order, info)
    found: Any = Rows.each(rows, lambda row: MirrorNode.of(row, info))
    return found  # type: ignore[no-any-return]


def _place(info: Info, name: str | None) -> Namespace | None:
    return find_namespace(actor_of(info), name) if name else None


@strawberry.type
class MirrorQuery:
    mirrors: Connection[MirrorNode] = connection(
        _mirrors,
        graphql_type=Connection[MirrorNode],
        description="Mirrors the caller may read, by name.",
    )

    @field(description="One mirror; null when it does not exist or is not visible.")
    def mirror(
        self, info: Info, name: Annotated[str, described("Name of the mirror.")]
    ) -> MirrorNode | None:
        row = _rows(info).filter(name=name).first()
        return MirrorNode.of(row, info) if row is not None else None


@strawberry.type
class MirrorMutation:
    @field(
        description="Create a mirror of a remote channel. Administrators only. "
        "Credentials in the URL are moved to the secret store."
    )
    def create_mirror(
        self,
        info: Info,
        name: Annotated[str, described("Name of the mirror.")],
        upstream: Annotated[str, described("URL of the remote channel.")],
        namespace: Annotated[
            str | None,
            described(
                "Name of the namespace whose rules filter the mirror; null means the installation."
            ),
        ] = None,
        public: Annotated[bool, described("True to let everyone read the mirror.")] = False,
        subdirs: Annotated[
            list[str] | None,
            described("Subdirectories to mirror; null means linux-64. noarch is always included."),
        ] = None,
    ) -> MirrorPayload:
        made = mirrors.create_mirror(
            actor=actor_of(info),
            name=name,
            upstream=upstream,
            namespace=_place(info, namespace),
            public=public,
            subdirs=subdirs or (),
        )
        return MirrorNode.of(_rows(info).get(pk=made.pk), info)

    @field(
        description="Change a mirror; omitted arguments leave their value unchanged. "
        "Administrators only. The upstream channel cannot be changed."
    )
    def change_mirror(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the mirror.", name="id")],
        namespace: Annotated[
            str | None,
            described(
                "Name of the namespace whose rules filter the mirror; null means the installation."
            ),
        ] = strawberry.UNSET,
        public: Annotated[bool | None, described("True to let everyone read the mirror.")] = None,
        subdirs: Annotated[
            list[str] | None, described("Subdirectories to mirror; noarch is always included.")
        ] = None,
    ) -> MirrorPayload:
        row: Mirror = find(_rows(info), key, "mirror")
        place = row.namespace if namespace is strawberry.UNSET else _place(info, namespace)
        mirrors.change_mirror(
            actor=actor_of(info), mirror=row, namespace=place, public=public, subdirs=subdirs
        )
        return MirrorNode.of(_rows(info).get(pk=row.pk), info)

    @field(
        description="Delete a mirror and its history; earlier days can no longer be "
        "served. Administrators only."
    )
    def delete_mirror(
        self, info: Info, key: Annotated[ID, described("Id of the mirror.", name="id")]
    ) -> MirrorPayload:
        row: Mirror = find(_rows(info), key, "mirror")
        shown = MirrorNode.of(row, info)
        mirrors.delete_mirror(actor=actor_of(info), mirror=row)
        return shown


register_rows("Mirror", _rows, lambda info, row: MirrorNode.of(row, info))
