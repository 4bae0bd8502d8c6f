"""How long builds stay, what holds them, what was deleted: what can be asked and changed of it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from itertools import islice
from typing import Annotated, Any

import strawberry
from strawberry import ID, Info

from environments.domain.retention import Fate
from environments.graphql.errors import OperationError
from environments.graphql.governance import Shown
from environments.graphql.packages import BigInt
from environments.graphql.pages import Connection, Key, actor_of, connection, field
from environments.graphql.types import BuildNode, EnvironmentNode, NamespaceNode, find
from environments.models import Build, Environment, LegalHold
from environments.operations import retention
from environments.operations.environments import find_build
from environments.operations.namespaces import find_namespace

#: Builds that a plan names; it counts all of them.
NAMED = 1_000


@strawberry.enum(description="ARCHIVE: its folder goes, and it can be restored.")
class BuildFate(Enum):
    ARCHIVE = Fate.ARCHIVE.value
    DELETE = Fate.DELETE.value


@strawberry.type(description="What would become of a build, and why.")
class PlannedBuild:
    build: str
    fate: BuildFate
    why: str
    size: BigInt = strawberry.field(description="Bytes that would be free.")


@strawberry.type(description="What the rules would do now.")
class RetentionPlan:
    archived: int
    deleted: int
    size: BigInt = strawberry.field(description="Bytes that would be free, of all of them.")
    planned: list[PlannedBuild] = strawberry.field(description=f"The first {NAMED}.")


@strawberry.type(
    name="LegalHold", description="Nobody archives or deletes the build, or the environment."
)
class LegalHoldNode:
    id: ID
    environment: str
    build: int | None = strawberry.field(description="Its number; null: all of the environment.")
    reason: str
    placed_by: str | None
    placed_at: datetime

    @classmethod
    def of(cls, row: LegalHold) -> LegalHoldNode:
        return cls(
            id=ID(str(row.pk)),
            environment=str(row.environment),
            build=row.build.number if row.build else None,
            reason=row.reason,
            placed_by=row.placed_by.get_username() if row.placed_by else None,
            placed_at=row.placed_at,
        )


@strawberry.type(description="A build that can be brought back.")
class DeletedBuild:
    environment: str
    number: int
    deleted_at: datetime

    @classmethod
    def of(cls, row: Build) -> DeletedBuild:
        assert row.deleted_at is not None
        return cls(environment=str(row.environment), number=row.number, deleted_at=row.deleted_at)


@strawberry.type(description="An environment that can be brought back.")
class DeletedEnvironment:
    name: str
    deleted_at: datetime

    @classmethod
    def of(cls, row: Environment) -> DeletedEnvironment:
        assert row.deleted_at is not None
        return cls(name=str(row), deleted_at=row.deleted_at)


RetentionPayload = Annotated[NamespaceNode | OperationError, strawberry.union("RetentionPayload")]
LegalHoldPayload = Annotated[LegalHoldNode | OperationError, strawberry.union("LegalHoldPayload")]
UndeleteBuildPayload = Annotated[
    BuildNode | OperationError, strawberry.union("UndeleteBuildPayload")
]
UndeleteEnvironmentPayload = Annotated[
    EnvironmentNode | OperationError, strawberry.union("UndeleteEnvironmentPayload")
]


def _holds(info: Info, namespace: str | None = None) -> Iterable[LegalHoldNode]:
    rows = retention.holds(actor_of(info))
    if namespace is not None:
        rows = rows.filter(environment__namespace__name=namespace)
    found: Any = Shown(rows, LegalHoldNode.of)
    return found  # type: ignore[no-any-return]


def _deleted_builds(info: Info, namespace: str | None = None) -> Iterable[DeletedBuild]:
    rows = retention.deleted_builds(actor_of(info)).order_by("-deleted_at", "-pk")
    if namespace is not None:
        rows = rows.filter(environment__namespace__name=namespace)
    found: Any = Shown(rows, DeletedBuild.of)
    return found  # type: ignore[no-any-return]


def _deleted_environments(info: Info, namespace: str | None = None) -> Iterable[DeletedEnvironment]:
    rows = retention.deleted_environments(actor_of(info)).order_by("-deleted_at", "-pk")
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Shown(rows, DeletedEnvironment.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class RetentionQuery:
    legal_holds: Connection[LegalHoldNode] = connection(
        _holds,
        graphql_type=Connection[LegalHoldNode],
        description="The active ones, of the namespaces that you run.",
    )
    deleted_builds: Connection[DeletedBuild] = connection(
        _deleted_builds,
        graphql_type=Connection[DeletedBuild],
        description="Those that can be brought back, of the namespaces that you run.",
    )
    deleted_environments: Connection[DeletedEnvironment] = connection(
        _deleted_environments,
        graphql_type=Connection[DeletedEnvironment],
        description="Those that can be brought back, of the namespaces that you run.",
    )

    @field(description="What the rules of a namespace would archive and delete now.")
    def retention_plan(self, info: Info, namespace: str) -> RetentionPlan:
        actor = actor_of(info)
        planned = retention.plan(actor=actor, namespace=find_namespace(actor, namespace))
        named = [
            PlannedBuild(
                build=str(one.build).replace(" build ", ":"),
                fate=BuildFate(one.fate.value),
                why=one.why,
                size=BigInt(one.size),
            )
            for one in islice(planned, NAMED)
        ]
        archived = sum(one.fate is BuildFate.ARCHIVE for one in named)
        deleted = len(named) - archived
        size = sum(int(one.size) for one in named)
        for more in planned:
            archived += more.fate is Fate.ARCHIVE
            deleted += more.fate is Fate.DELETE
            size += more.size
        return RetentionPlan(archived=archived, deleted=deleted, size=BigInt(size), planned=named)


@strawberry.type
class RetentionMutation:
    @field(
        description="0: no such rule; null: the installation's default; left out: as it is. What "
        "is current, pinned, held, or tagged (while keepTagged) always stays."
    )
    def set_retention(
        self,
        info: Info,
        namespace: str,
        keep_last: int | None = strawberry.UNSET,
        keep_days: int | None = strawberry.UNSET,
        delete_days: int | None = strawberry.UNSET,
        keep_tagged: bool | None = None,
    ) -> RetentionPayload:
        actor = actor_of(info)
        asked = {"keep_last": keep_last, "keep_days": keep_days, "delete_days": delete_days}
        found: Any = retention.set_retention(
            actor=actor,
            namespace=find_namespace(actor, namespace),
            rules={
                name: number for name, number in asked.items() if number is not strawberry.UNSET
            },
            keep_tagged=keep_tagged,
        )
        return found  # type: ignore[no-any-return]

    @field(description="On one build, by its number or tag, or on the whole environment.")
    def place_hold(
        self, info: Info, environment_id: ID, reason: str, build: str | None = None
    ) -> LegalHoldPayload:
        actor = actor_of(info)
        rows = Environment.objects.visible_to(actor).select_related("namespace", "current")
        environment = find(rows, environment_id, "environment")
        held = find_build(actor, environment, build) if build else None
        return LegalHoldNode.of(
            retention.place_hold(actor=actor, environment=environment, build=held, reason=reason)
        )

    @field()
    def release_hold(self, info: Info, key: Key, reason: str) -> LegalHoldPayload:
        actor = actor_of(info)
        hold = find(retention.holds(actor), key, "hold")
        return LegalHoldNode.of(retention.release_hold(actor=actor, hold=hold, reason=reason))

    @field(description="It is ARCHIVED afterwards: restore it to have its folder.")
    def undelete_build(
        self, info: Info, namespace: str, environment: str, number: int
    ) -> UndeleteBuildPayload:
        actor = actor_of(info)
        build = retention.find_deleted_build(actor, namespace, environment, number)
        found: Any = retention.undelete_build(actor=actor, build=build)
        return found  # type: ignore[no-any-return]

    @field(description="Its builds are ARCHIVED afterwards.")
    def undelete_environment(
        self, info: Info, namespace: str, name: str
    ) -> UndeleteEnvironmentPayload:
        actor = actor_of(info)
        environment = retention.find_deleted_environment(actor, namespace, name)
        found: Any = retention.undelete_environment(actor=actor, environment=environment)
        return found  # type: ignore[no-any-return]
