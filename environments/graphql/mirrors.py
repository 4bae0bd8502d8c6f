"""Mirrors of remote channels: which there are, how they follow their channels, declaring them."""

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
from environments.graphql.pages import Connection, Key, absolute, actor_of, connection, field
from environments.graphql.types import find
from environments.models import Mirror, MirrorIndex, MirrorPackage, Namespace
from environments.operations import mirrors
from environments.operations.namespaces import find_namespace


@strawberry.type(description="What a mirror knows of one subdir of its channel.")
class MirroredSubdir:
    subdir: str
    records: int = strawberry.field(description="What the channel lists, before any rule.")
    looked_at: datetime | None = strawberry.field(
        description="When the channel last answered; it is asked again and again."
    )
    changed_at: datetime | None
    failure: str | None = strawberry.field(
        description="Why the last look failed: what is served is as old as `lookedAt`."
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
    name="Mirror", description="A remote channel, read here through the rules of a namespace."
)
class MirrorNode:
    id: ID
    name: str
    url: str = strawberry.field(description="Add @2026-11-01 for what was listed on that day.")
    upstream: str
    namespace: str | None = strawberry.field(
        description="Whose rules hold and whose people read it; null: the installation's rules, "
        "for all who sign in."
    )
    public: bool = strawberry.field(description="Everybody may read it.")
    subdirs: list[MirroredSubdir]
    packages: int = strawberry.field(description="That were asked for, and are kept.")
    size: BigInt = strawberry.field(description="Their bytes.")
    created_at: datetime

    @classmethod
    def of(cls, row: Any, info: Info) -> MirrorNode:
        shown = [index for index in row.indexes.all() if index.subdir in row.subdirs]
        return cls(
            id=ID(str(row.pk)),
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


MirrorPayload = Annotated[MirrorNode | OperationError, strawberry.union("MirrorPayload")]


def _rows(info: Info) -> Any:
    kept = MirrorPackage.objects.filter(mirror=OuterRef("pk")).order_by().values("mirror")
    rows = Mirror.objects.visible_to(actor_of(info)).select_related("namespace")
    return rows.prefetch_related("indexes").annotate(
        kept=Subquery(kept.annotate(n=Count("pk")).values("n")),
        kept_size=Subquery(kept.annotate(n=Sum("blob__size")).values("n")),
    )


def _mirrors(info: Info) -> Iterable[MirrorNode]:
    found: Any = Shown(_rows(info).order_by("name"), lambda row: MirrorNode.of(row, info))
    return found  # type: ignore[no-any-return]


def _place(info: Info, name: str | None) -> Namespace | None:
    return find_namespace(actor_of(info), name) if name else None


@strawberry.type
class MirrorQuery:
    mirrors: Connection[MirrorNode] = connection(
        _mirrors, graphql_type=Connection[MirrorNode], description="That you may read."
    )

    @field()
    def mirror(self, info: Info, name: str) -> MirrorNode | None:
        row = _rows(info).filter(name=name).first()
        return MirrorNode.of(row, info) if row is not None else None


@strawberry.type
class MirrorMutation:
    @field(
        description="By administrators. Credentials in the URL of the channel go to the secret "
        "store. Subdirs: linux-64 and noarch, unless others are given; noarch always."
    )
    def create_mirror(
        self,
        info: Info,
        name: str,
        upstream: str,
        namespace: str | None = None,
        public: bool = False,
        subdirs: list[str] | None = None,
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
        description="By administrators. What is left out stays as it is; namespace null: of the "
        "installation. Another channel is another mirror."
    )
    def change_mirror(
        self,
        info: Info,
        key: Key,
        namespace: str | None = strawberry.UNSET,
        public: bool | None = None,
        subdirs: list[str] | None = None,
    ) -> MirrorPayload:
        row: Mirror = find(_rows(info), key, "mirror")
        place = row.namespace if namespace is strawberry.UNSET else _place(info, namespace)
        mirrors.change_mirror(
            actor=actor_of(info), mirror=row, namespace=place, public=public, subdirs=subdirs
        )
        return MirrorNode.of(_rows(info).get(pk=row.pk), info)

    @field(
        description="By administrators. Its history goes with it: the same days cannot be had "
        "again."
    )
    def delete_mirror(self, info: Info, key: Key) -> MirrorPayload:
        row: Mirror = find(_rows(info), key, "mirror")
        shown = MirrorNode.of(row, info)
        mirrors.delete_mirror(actor=actor_of(info), mirror=row)
        return shown
