"""Base images of namespaces and push rules to registries."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

import strawberry
from django.db.models import QuerySet
from strawberry import ID, Info

from environments.graphql.arguments import NamespaceName, OnlyNamespace
from environments.graphql.connections import Connection, Rows, connection
from environments.graphql.credentials import CredentialNode, CredentialPayload
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import actor_of, described, field
from environments.graphql.namespaces import NamespaceNode
from environments.graphql.nodes import Node, find, ids_of, register_rows
from environments.graphql.scalars import BigInt
from environments.models import Push, PushRule
from environments.operations import images, pushes
from environments.operations.namespaces import find_namespace
from environments.services.image_pushes import expand_target


@strawberry.enum(description="State of a push.")
class PushState(Enum):
    WAITING = strawberry.enum_value(
        "waiting", description="Waiting for a worker or for the next attempt."
    )
    PUSHING = strawberry.enum_value("pushing", description="A worker is sending the image.")
    PUSHED = strawberry.enum_value("pushed", description="The registry has the image.")
    FAILED = strawberry.enum_value(
        "failed", description="Given up after too many attempts; `pushAgain` retries."
    )


@strawberry.type(name="Push", description="State of pushing an environment's image to a registry.")
class PushNode:
    build: str = strawberry.field(description="Reference of the build, as `namespace/name:number`.")
    target: str = strawberry.field(description="Image reference the build is pushed to.")
    state: PushState = strawberry.field(description="State of the push.")
    wanted_at: datetime = strawberry.field(description="When the push was requested.")
    pushed_at: datetime | None = strawberry.field(
        description="When the image was last pushed; null if it never was."
    )
    attempts: int = strawberry.field(
        description="Number of failed attempts since the push was requested."
    )
    next_attempt_at: datetime | None = strawberry.field(
        description="When the next attempt starts; null unless the push is waiting."
    )
    problem: str = strawberry.field(description="Error of the last attempt; empty if it succeeded.")
    digest: str | None = strawberry.field(
        description="Digest of the last pushed manifest, as `sha256:...`; null if none was pushed."
    )
    sent_bytes: BigInt = strawberry.field(description="Bytes that the last push transferred.")

    @classmethod
    def of(cls, row: Push) -> PushNode:
        environment = row.build.environment
        state = PushState(row.state)
        return cls(
            build=f"{environment.namespace.name}/{environment.name}:{row.build.number}",
            target=expand_target(row.rule.target, environment.name, row.build.number),
            state=state,
            wanted_at=row.wanted_at,
            pushed_at=row.pushed_at,
            attempts=row.attempt,
            next_attempt_at=row.not_before if state is PushState.WAITING else None,
            problem=row.problem,
            digest=f"sha256:{row.digest}" if row.digest else None,
            sent_bytes=BigInt(row.sent_bytes),
        )


@strawberry.type(
    name="PushRule",
    description="Rule that pushes the images of matching environments whenever "
    "their current build changes.",
)
class PushRuleNode(Node):
    namespace: str = strawberry.field(description="Name of the namespace.")
    pattern: str = strawberry.field(
        description="Pattern of environment names, such as `ml`, `ml-*` or `*`."
    )
    target: str = strawberry.field(
        description="Image reference to push to; {environment} and {build} are replaced."
    )
    created_at: datetime = strawberry.field(description="When the rule was created.")
    created_by: str | None = strawberry.field(
        description="Name of the user who created the rule; null if the account was deleted."
    )
    pushes: list[PushNode] = strawberry.field(
        description="State of the push of each matching environment."
    )

    @classmethod
    def of(cls, row: PushRule) -> PushRuleNode:
        return cls(
            **ids_of("PushRule", row),
            namespace=row.namespace.name,
            pattern=row.pattern,
            target=row.target,
            created_at=row.created_at,
            created_by=row.created_by.get_username() if row.created_by else None,
            pushes=[PushNode.of(one) for one in row.pushes.all()] if row.pk else [],
        )


PushRulePayload = Annotated[PushRuleNode | OperationError, refusable("PushRulePayload")]
BaseImagePayload = Annotated[NamespaceNode | OperationError, refusable("BaseImagePayload")]
_BESIDE = ("namespace", "created_by")
_PUSHES = ("pushes__build__environment__namespace", "pushes__rule")


def _rows(info: Info) -> QuerySet[PushRule]:
    rows = PushRule.objects.visible_to(actor_of(info))
    return rows.select_related(*_BESIDE).prefetch_related(*_PUSHES)


def _rules(info: Info, namespace: OnlyNamespace = None) -> Iterable[PushRuleNode]:
    rows = _rows(info)
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Rows.each(rows, PushRuleNode.of)
    return found  # type: ignore[no-any-return]


def _found(info: Info, key: ID) -> PushRule:
    rows = PushRule.objects.visible_to(actor_of(info)).select_related(*_BESIDE)
    rule: PushRule = find(rows, key, "rule")
    return rule


@strawberry.type
class ImageQuery:
    push_rules: Connection[PushRuleNode] = connection(
        _rules,
        graphql_type=Connection[PushRuleNode],
        description="Push rules of the namespaces the caller manages.",
    )


@strawberry.type
class ImageMutation:
    @field(description="Set the base of the namespace's container images.")
    def set_base_image(
        self,
        info: Info,
        namespace: NamespaceName,
        base: Annotated[
            str,
            described(
                "Image reference such as registry.example.org/team/debian:12 or "
                "name of a loaded image, as allowed by administrators; empty means "
                "the installation's default."
            ),
        ],
    ) -> BaseImagePayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        images.set_base_image(actor=actor, namespace=found, name=base)
        return found  # type: ignore[no-any-return]

    @field(
        description="Create a push rule; current builds of matching environments are "
        "pushed at once."
    )
    def create_push_rule(
        self,
        info: Info,
        namespace: NamespaceName,
        pattern: Annotated[
            str, described("Pattern of environment names, such as `ml`, `ml-*` or `*`.")
        ],
        target: Annotated[
            str, described("Image reference to push to; {environment} and {build} are replaced.")
        ],
    ) -> PushRulePayload:
        actor = actor_of(info)
        rule = pushes.create_push_rule(
            actor=actor, namespace=find_namespace(actor, namespace), pattern=pattern, target=target
        )
        return PushRuleNode.of(rule)

    @field(
        description="Push the current builds of a rule again, including pushes that were given up."
    )
    def push_again(
        self, info: Info, key: Annotated[ID, described("Id of the push rule.", name="id")]
    ) -> PushRulePayload:
        found = _found(info, key)
        return PushRuleNode.of(pushes.push_again(actor=actor_of(info), rule=found))

    @field(description="Delete a push rule; pushed images stay in the registry.")
    def delete_push_rule(
        self, info: Info, key: Annotated[ID, described("Id of the push rule.", name="id")]
    ) -> PushRulePayload:
        found = _found(info, key)
        shown = PushRuleNode.of(found)
        pushes.delete_push_rule(actor=actor_of(info), rule=found)
        return shown

    @field(
        description="Store the login for a registry: for pushes of a namespace, or "
        "without a namespace for pulling base images (administrators only). "
        "`deleteChannelCredential` deletes it."
    )
    def keep_registry_login(
        self,
        info: Info,
        registry: Annotated[
            str, described("Registry with an optional path, such as registry.example.org/team.")
        ],
        login: Annotated[str, described("Login as `user:password`; it is never shown again.")],
        namespace: Annotated[
            str | None,
            described(
                "Name of the namespace whose pushes use it; null means pulls of base images."
            ),
        ] = None,
    ) -> CredentialPayload:
        actor = actor_of(info)
        place = find_namespace(actor, namespace) if namespace is not None else None
        row = pushes.set_registry_login(
            actor=actor, namespace=place, registry=registry, login=login
        )
        return CredentialNode.of(row)


register_rows("PushRule", _rows, lambda info, row: PushRuleNode.of(row))
