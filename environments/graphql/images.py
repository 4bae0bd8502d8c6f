"""What container images lie on, and where they are sent: what can be asked and changed of it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

import strawberry
from strawberry import ID, Info

from environments.graphql.credentials import CredentialNode, CredentialPayload
from environments.graphql.errors import OperationError
from environments.graphql.governance import Shown
from environments.graphql.packages import BigInt
from environments.graphql.pages import Connection, Key, actor_of, connection, field
from environments.graphql.types import NamespaceNode, find
from environments.jobs.image_pushes import filled
from environments.models import Push, PushRule
from environments.operations import images, pushes
from environments.operations.namespaces import find_namespace


@strawberry.enum(description="FAILED: given up; pushAgain tries again.")
class PushState(Enum):
    WAITING = "waiting"
    PUSHING = "pushing"
    PUSHED = "pushed"
    FAILED = "failed"


@strawberry.type(name="Push", description="An environment's current build on its way.")
class PushNode:
    build: str
    target: str
    state: PushState
    wanted_at: datetime
    pushed_at: datetime | None
    attempts: int
    next_attempt_at: datetime | None = strawberry.field(description="Where it waits for one.")
    problem: str = strawberry.field(description="What went wrong in the last attempt.")
    digest: str | None = strawberry.field(description="Of what was sent last, sha256:...")
    sent_bytes: BigInt = strawberry.field(description="That were missing there.")

    @classmethod
    def of(cls, row: Push) -> PushNode:
        environment = row.build.environment
        state = PushState(row.state)
        return cls(
            build=f"{environment.namespace.name}/{environment.name}:{row.build.number}",
            target=filled(row.rule.target, environment.name, row.build.number),
            state=state,
            wanted_at=row.wanted_at,
            pushed_at=row.pushed_at,
            attempts=row.attempts,
            next_attempt_at=row.not_before if state is PushState.WAITING else None,
            problem=row.problem,
            digest=f"sha256:{row.digest}" if row.digest else None,
            sent_bytes=BigInt(row.sent_bytes),
        )


@strawberry.type(
    name="PushRule",
    description="Sends the image of each environment that fits, whenever its current build is "
    "another one.",
)
class PushRuleNode:
    id: ID
    namespace: str
    pattern: str = strawberry.field(description="Names of environments: ml, ml-*, *.")
    target: str = strawberry.field(description="With {environment} and {build} put in.")
    created_at: datetime
    created_by: str | None
    pushes: list[PushNode] = strawberry.field(description="One for each environment.")

    @classmethod
    def of(cls, row: PushRule) -> PushRuleNode:
        return cls(
            id=ID(str(row.pk)),
            namespace=row.namespace.name,
            pattern=row.pattern,
            target=row.target,
            created_at=row.created_at,
            created_by=row.created_by.get_username() if row.created_by else None,
            pushes=[PushNode.of(one) for one in row.pushes.all()] if row.pk else [],
        )


PushRulePayload = Annotated[PushRuleNode | OperationError, strawberry.union("PushRulePayload")]
BaseImagePayload = Annotated[NamespaceNode | OperationError, strawberry.union("BaseImagePayload")]
_BESIDE = ("namespace", "created_by")
_PUSHES = ("pushes__build__environment__namespace", "pushes__rule")


def _rules(info: Info, namespace: str | None = None) -> Iterable[PushRuleNode]:
    rows = PushRule.objects.visible_to(actor_of(info))
    rows = rows.select_related(*_BESIDE).prefetch_related(*_PUSHES)
    if namespace is not None:
        rows = rows.filter(namespace__name=namespace)
    found: Any = Shown(rows, PushRuleNode.of)
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
        description="Of the namespaces that you run.",
    )


@strawberry.type
class ImageMutation:
    @field(
        description="What its container images lie on; empty: what the installation's do. A "
        "reference (registry.example.org/team/debian:12) or a loaded name, of those that "
        "administrators allow."
    )
    def set_base_image(self, info: Info, namespace: str, base: str) -> BaseImagePayload:
        actor = actor_of(info)
        found: Any = find_namespace(actor, namespace)
        images.set_base_image(actor=actor, namespace=found, name=base)
        return found  # type: ignore[no-any-return]

    @field(description="What is current already is sent at once.")
    def create_push_rule(
        self, info: Info, namespace: str, pattern: str, target: str
    ) -> PushRulePayload:
        actor = actor_of(info)
        rule = pushes.create_push_rule(
            actor=actor, namespace=find_namespace(actor, namespace), pattern=pattern, target=target
        )
        return PushRuleNode.of(rule)

    @field(description="Send what is current, also what was given up.")
    def push_again(self, info: Info, key: Key) -> PushRulePayload:
        found = _found(info, key)
        return PushRuleNode.of(pushes.push_again(actor=actor_of(info), rule=found))

    @field(description="What was sent stays where it is.")
    def delete_push_rule(self, info: Info, key: Key) -> PushRulePayload:
        found = _found(info, key)
        shown = PushRuleNode.of(found)
        pushes.delete_push_rule(actor=actor_of(info), rule=found)
        return shown

    @field(
        description="What pushes of the namespace show to a registry (registry.example.org/team); "
        "login is user:password, and never shown again. Without a namespace: what is shown where "
        "bases are pulled from, by administrators. `deleteChannelCredential` takes it away."
    )
    def keep_registry_login(
        self, info: Info, registry: str, login: str, namespace: str | None = None
    ) -> CredentialPayload:
        actor = actor_of(info)
        place = find_namespace(actor, namespace) if namespace is not None else None
        row = pushes.keep_registry_login(
            actor=actor, namespace=place, registry=registry, login=login
        )
        return CredentialNode.of(row)
