"""Retention rules, legal holds and undeleting."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from itertools import islice
from typing import Annotated, Any

import strawberry
from strawberry import ID, Info

from environments.domain.retention import Fate
from environments.graphql.arguments import (
    EnvironmentId,
    EnvironmentName,
    NamespaceName,
    OnlyNamespace,
)
from environments.graphql.builds import BuildNode
from environments.graphql.connections import Connection, Rows, connection
from environments.graphql.environments import EnvironmentNode
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import actor_of, described, field
from environments.graphql.namespaces import NamespaceNode
from environments.graphql.nodes import Node, find, ids_of, register_rows
from environments.graphql.scalars import BigInt
from environments.models import Build, Environment, LegalHold
from environments.operations import retention
from environments.operations.environments import find_build
from environments.operations.namespaces import find_namespace

#: Builds that a plan names; it counts all of them.
NAMED = 1_000


@strawberry.enum(description="Outcome of the retention rules for a build.")
class BuildFate(Enum):
    ARCHIVE = strawberry.enum_value(
        Fate.ARCHIVE.value, description="The prefix is deleted; the build can be restored."
    )
    DELETE = strawberry.enum_value(Fate.DELETE.value, description="The build is deleted.")


@strawberry.type(description="Build that the retention rules would archive or delete.")
class PlannedBuild:
    build: str = strawberry.field(description="Reference of the build, as `namespace/name:number`.")
    fate: BuildFate = strawberry.field(description="What would happen to the build.")
    why: str = strawberry.field(description="Rule that applies to the build.")
    size: BigInt = strawberry.field(description="Bytes that would be freed.")


@strawberry.type(description="Effect of the retention rules if they were applied now.")
class RetentionPlan:
    archived: int = strawberry.field(description="Number of builds that would be archived.")
    deleted: int = strawberry.field(description="Number of builds that would be deleted.")
    size: BigInt = strawberry.field(description="Total bytes that would be freed.")
    planned: list[PlannedBuild] = strawberry.field(
        description="Builds that would be archived or deleted, at most 1,000."
    )


@strawberry.type(
    name="LegalHold",
    description="Hold that prevents archiving and deleting a build or a whole environment.",
)
class LegalHoldNode(Node):
    environment: str = strawberry.field(description="Environment of the hold, as `namespace/name`.")
    build: int | None = strawberry.field(
        description="Number of the held build; null means the whole environment."
    )
    reason: str = strawberry.field(description="Reason given for the hold.")
    placed_by: str | None = strawberry.field(
        description="Name of the user who placed the hold; null if the account was deleted."
    )
    placed_at: datetime = strawberry.field(description="When the hold was placed.")

    @classmethod
    def of(cls, row: LegalHold) -> LegalHoldNode:
        return cls(
            **ids_of("LegalHold", row),
            environment=str(row.environment),
            build=row.build.number if row.build else None,
            reason=row.reason,
            placed_by=row.placed_by.get_username() if row.placed_by else None,
            placed_at=row.placed_at,
        )


@strawberry.type(description="Deleted build that can still be undeleted.")
class DeletedBuild:
    environment: str = strawberry.field(
        description="Environment of the build, as `namespace/name`."
    )
    number: int = strawberry.field(description="Number of the build.")
    deleted_at: datetime = strawberry.field(description="When the build was deleted.")

    @classmethod
    def of(cls, row: Build) -> DeletedBuild:
        assert row.deleted_at is not None
        return cls(environment=str(row.environment), number=row.number, deleted_at=row.deleted_at)


@strawberry.type(description="Deleted environment that can still be undeleted.")
class DeletedEnvironment:
    name: str = strawberry.field(description="Name of the environment, as `namespace/name`.")
    deleted_at: datetime = strawberry.field(description="When the environment was deleted.")

    @classmethod
    def of(cls, row: Environment) -> DeletedEnvironment:
        assert row.deleted_at is not None
        return cls(name=str(row), deleted_at=row.deleted_at)


RetentionPayload = Annotated[NamespaceNode | OperationError, refusable("RetentionPayload")]
LegalHoldPayload = Annotated[LegalHoldNode | OperationError, refusable("LegalHoldPayload")]
UndeleteBuildPayload = Annotated[BuildNode | OperationError, refusable("UndeleteBuildPayload")]
UndeleteEnvironmentPayload = Annotated[
    EnvironmentNode | OperationError, refusable("UndeleteEnvironmentPayload")
]


def _holds(info: Info, namespace: OnlyNamespace = None) -> Iterable[LegalHoldNode]:
    rows = retention.holds(actor_of(info))
    if namespace is not None:
        rows = rows.filter(environment__namespace__name=namespace)
    found: Any = Rows.each(rows, LegalHoldNode.of)
    return found  # type: ignore[no-any-return]


def _deleted_builds(info: Info, namespace: OnlyNamespace = None) -> Iterable[DeletedBuild]:
    rows = retention.deleted_builds(actor_of(info)).order_by("-deleted_at", "-pk")
    if namespace is not None:
        rows = rows.filter(environment__namespace__name=namespace)
    found: Any = Rows.each(rows, DeletedBuild.of)
    return found  # type: ignore[no-any-return]


def _deleted_environments(
    info: Info, namespace: OnlyNamespace = None
) -> Iterable[DeletedEnvironment]:
    rows = retention.deleted_environments(actor_of(info)).order_by("-deleted_at", "-pk")
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Rows.each(rows, DeletedEnvironment.of)
    return found  # type: ignore[no-any-return]


@strawberry.type
class RetentionQuery:
    legal_holds: Connection[LegalHoldNode] = connection(
        _holds,
        graphql_type=Connection[LegalHoldNode],
        description="Active holds in the namespaces the caller manages.",
    )
    deleted_builds: Connection[DeletedBuild] = connection(
        _deleted_builds,
        graphql_type=Connection[DeletedBuild],
        description="Deleted builds that can be undeleted, in the namespaces the caller manages.",
    )
    deleted_environments: Connection[DeletedEnvironment] = connection(
        _deleted_environments,
        graphql_type=Connection[DeletedEnvironment],
        description="Deleted environments that can be undeleted, in the namespaces the "
        "caller manages.",
    )

    @field(
        description="Builds that the retention rules of a namespace would archive or delete now."
    )
    def retention_plan(self, info: Info, namespace: NamespaceName) -> RetentionPlan:
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
        description="Set retention rules. Omitted arguments stay unchanged; null means "
        "the installation's default, 0 means no such rule. Current, pinned "
        "and held builds are always kept."
    )
    def set_retention(
        self,
        info: Info,
        namespace: NamespaceName,
        keep_last: Annotated[
            int | None, described("Number of newest builds of each environment to keep.")
        ] = strawberry.UNSET,
        keep_days: Annotated[
            int | None, described("Number of days to keep each build.")
        ] = strawberry.UNSET,
        delete_days: Annotated[
            int | None, described("Number of days after which an archived build is deleted.")
        ] = strawberry.UNSET,
        keep_tagged: Annotated[bool | None, described("True to keep builds with a tag.")] = None,
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

    @field(description="Place a legal hold on one build or on a whole environment.")
    def place_hold(
        self,
        info: Info,
        environment_id: EnvironmentId,
        reason: Annotated[str, described("Reason for the hold.")],
        build: Annotated[
            str | None, described("Number or tag of the build; null means the whole environment.")
        ] = None,
    ) -> LegalHoldPayload:
        actor = actor_of(info)
        rows = Environment.objects.visible_to(actor).select_related("namespace", "current")
        environment = find(rows, environment_id, "environment")
        held = find_build(actor, environment, build) if build else None
        return LegalHoldNode.of(
            retention.place_hold(actor=actor, environment=environment, build=held, reason=reason)
        )

    @field(description="Release a legal hold.")
    def release_hold(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the hold.", name="id")],
        reason: Annotated[str, described("Reason for the release.")],
    ) -> LegalHoldPayload:
        actor = actor_of(info)
        hold = find(retention.holds(actor), key, "hold")
        return LegalHoldNode.of(retention.release_hold(actor=actor, hold=hold, reason=reason))

    @field(description="Undelete a build; it is ARCHIVED afterwards and can be restored.")
    def undelete_build(
        self,
        info: Info,
        namespace: NamespaceName,
        environment: EnvironmentName,
        number: Annotated[int, described("Number of the build.")],
    ) -> UndeleteBuildPayload:
        actor = actor_of(info)
        build = retention.find_deleted_build(actor, namespace, environment, number)
        found: Any = retention.undelete_build(actor=actor, build=build)
        return found  # type: ignore[no-any-return]

    @field(description="Undelete an environment; its builds are ARCHIVED afterwards.")
    def undelete_environment(
        self, info: Info, namespace: NamespaceName, name: EnvironmentName
    ) -> UndeleteEnvironmentPayload:
        actor = actor_of(info)
        environment = retention.find_deleted_environment(actor, namespace, name)
        found: Any = retention.undelete_environment(actor=actor, environment=environment)
        return found  # type: ignore[no-any-return]


register_rows(
    "LegalHold",
    lambda info: retention.holds(actor_of(info)),
    lambda info, row: LegalHoldNode.of(row),
)
