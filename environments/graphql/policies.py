"""Policies as clients see them: the rules, their versions, and what a rule would do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import QuerySet
from strawberry import ID, Info
from strawberry.scalars import JSON

from accounts.access import Actor
from condastore.errors import NotFoundError, StoreError
from environments.graphql.errors import OperationError
from environments.graphql.pages import (
    Column,
    Connection,
    Key,
    actor_of,
    computed,
    connection,
    field,
)
from environments.graphql.types import Node
from environments.models import Namespace, Policy, PolicyRule, PolicyVersion
from environments.operations import policies as operations
from environments.operations.namespaces import find_namespace
from environments.services.policies import policy_of, rule_of


@strawberry.type(name="PolicyRule", description="One rule of a policy, in its place.")
class Rule:
    id: ID
    name: str
    kind: str
    effect: str = strawberry.field(description="enforce, ask (hold for approval) or warn.")
    enabled: bool
    position: int
    settings: JSON = strawberry.field(description="By the kind.")
    summary: str = strawberry.field(description="In one line of plain language.")

    @classmethod
    def of(cls, row: PolicyRule) -> Rule:
        try:
            summary = rule_of(row).summary
        except StoreError as error:  # of an older release, or changed by hand
            summary = f"This rule cannot be read: {error.message}"
        return cls(
            id=ID(str(row.pk)),
            name=row.name,
            kind=row.kind,
            effect=row.effect,
            enabled=row.enabled,
            position=row.position,
            settings=JSON(row.settings),
            summary=summary,
        )


@strawberry_django.type(
    Policy,
    name="Policy",
    field_cls=Column,
    description="The rules of one namespace, or of the installation (no namespace).",
)
class PolicyNode(Node):
    id: ID
    version: int
    namespace: str | None = computed(
        lambda row: row.namespace.name if row.namespace else None,
        only=["namespace__name"],
        description="Its name.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[Policy], info: Info, **kwargs: Any
    ) -> QuerySet[Policy]:
        visible = Policy.objects.visible_to(actor_of(info)).order_by().values("pk")
        return queryset.filter(pk__in=visible).select_related("namespace")

    @field(prefetch_related=["rules"])
    def rules(self: Any) -> list[Rule]:
        return [Rule.of(row) for row in self.rules.all()]


@strawberry.type(description="A rule that holds without having been written.")
class BuiltInRule:
    name: str = strawberry.field(description="Name of the rule, as verdicts give it.")
    kind: str = strawberry.field(
        description="Kind of the rule. A rule of the installation of this kind replaces it."
    )
    effect: str = strawberry.field(description="enforce, ask (hold for approval) or warn.")
    summary: str = strawberry.field(description="The rule in one line of plain language.")


@strawberry.type(description="All that holds in one place.")
class EffectivePolicy:
    namespace: str | None
    version: int = strawberry.field(description="Of the rules that are written here.")
    digest: str = strawberry.field(
        description="Of all that is in force here, decisions and recalls too; verdicts name it."
    )
    rules: list[Rule]
    inherited: list[Rule] = strawberry.field(description="The installation's, which hold as well.")
    built_in: list[BuiltInRule] = strawberry.field(
        description="Rules that hold without having been written: the allowed channels of the "
        "settings, and the default for unlisted packages."
    )
    may_change: bool

    @classmethod
    def of(cls, actor: Actor, place: Namespace | None) -> EffectivePolicy:
        found = operations.find_policy(actor, place)
        own = [Rule.of(row) for row in PolicyRule.objects.filter(policy=found.pk or 0)]
        above = PolicyRule.objects.filter(policy__namespace=None) if place else []
        return cls(
            namespace=place.name if place else None,
            version=found.version,
            digest=policy_of(place).version if place else "",
            rules=own,
            inherited=[Rule.of(row) for row in above],
            built_in=[
                BuiltInRule(
                    name=rule.name, kind=rule.kind, effect=rule.effect.value, summary=rule.summary
                )
                for rule in operations.built_in_rules()
            ],
            may_change=operations.may_change(actor, place),
        )


@strawberry_django.type(
    PolicyVersion,
    name="PolicyVersion",
    field_cls=Column,
    description="The rules of one policy as they were after one change.",
)
class PolicyVersionNode(Node):
    id: ID
    number: int
    change: str
    comment: str
    changed_at: datetime
    rules: JSON
    changed_by: str | None = computed(
        lambda row: row.changed_by.username if row.changed_by else None,
        only=["changed_by__username"],
    )

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[PolicyVersion], info: Info, **kwargs: Any
    ) -> QuerySet[PolicyVersion]:
        return queryset.visible_to(actor_of(info)).select_related("changed_by")  # type: ignore[attr-defined,no-any-return]


@strawberry.input(name="PolicyRuleInput", description="A rule as it might be written.")
class RuleInput:
    kind: str
    effect: str
    settings: JSON
    name: str = "a new rule"

    def draft(self) -> operations.Draft:
        settings: Any = self.settings
        return operations.Draft(
            kind=self.kind, effect=self.effect, name=self.name, settings=settings
        )


@strawberry.type(description="What a rule would say of one package, or of a whole platform.")
class SimulatedHit:
    rule: str
    effect: str
    package: str
    reason: str
    chain: list[str]


@strawberry.type(description="An environment whose current build the rules would object to.")
class SimulatedEnvironment:
    namespace: str
    environment: str
    build: int
    effect: str = strawberry.field(description="The gravest.")
    packages: int
    hits: list[SimulatedHit] = strawberry.field(description="The first of them.")


@strawberry.type(description="What would become of the current builds; nothing is changed.")
class PolicySimulation:
    environments: int = strawberry.field(description="That were looked at.")
    packages: int = strawberry.field(description="Distinct ones that were judged.")
    blocked: int
    asked: int
    warned: int
    touched: list[SimulatedEnvironment] = strawberry.field(description="The first, by name.")
    seconds: float

    @classmethod
    def of(cls, found: operations.Simulation) -> PolicySimulation:
        return cls(
            environments=found.environments,
            packages=found.packages,
            blocked=found.blocked,
            asked=found.asked,
            warned=found.warned,
            seconds=found.seconds,
            touched=[
                SimulatedEnvironment(
                    namespace=each.environment.namespace.name,
                    environment=each.environment.name,
                    build=each.environment.current.number if each.environment.current else 0,
                    effect=each.effect.value,
                    packages=each.packages,
                    hits=[
                        SimulatedHit(
                            rule=hit.rule,
                            effect=hit.effect.value,
                            package=hit.package,
                            reason=hit.reason,
                            chain=list(hit.chain),
                        )
                        for hit in each.hits
                    ],
                )
                for each in found.touched
            ],
        )


@strawberry.type(description="A rule that is no more.")
class RemovedPolicyRule:
    name: str


PolicyRulePayload = Annotated[Rule | OperationError, strawberry.union("PolicyRulePayload")]
RemovedPolicyRulePayload = Annotated[
    RemovedPolicyRule | OperationError, strawberry.union("RemovedPolicyRulePayload")
]
PolicyPayload = Annotated[EffectivePolicy | OperationError, strawberry.union("PolicyPayload")]
SimulationPayload = Annotated[
    PolicySimulation | OperationError, strawberry.union("PolicySimulationPayload")
]


def _place(info: Info, namespace: str | None) -> Namespace | None:
    return None if namespace is None else find_namespace(actor_of(info), namespace)


def _policies(info: Info) -> Iterable[PolicyNode]:
    found: Any = Policy.objects.order_by("namespace__name", "pk")
    return found  # type: ignore[no-any-return]


def _versions(info: Info, namespace: str | None = None) -> Iterable[PolicyVersionNode]:
    policy = operations.find_policy(actor_of(info), _place(info, namespace))
    found: Any = PolicyVersion.objects.filter(policy=policy.pk or 0).order_by("-number")
    return found  # type: ignore[no-any-return]


@strawberry.type
class PolicyQueries:
    policies: Connection[PolicyNode] = connection(
        _policies,
        graphql_type=Connection[PolicyNode],
        description="Those that have rules, or had some.",
    )
    policy_versions: Connection[PolicyVersionNode] = connection(
        _versions,
        graphql_type=Connection[PolicyVersionNode],
        description="Of a namespace, or of the installation; the newest first.",
    )

    @field(description="Of a namespace; without one, the installation's.")
    def policy(self, info: Info, namespace: str | None = None) -> EffectivePolicy | None:
        try:
            return EffectivePolicy.of(actor_of(info), _place(info, namespace))
        except NotFoundError:
            return None


@strawberry.type
class PolicyMutations:
    @field(
        description="To a namespace, or without one to the whole installation. `version`: of the "
        "policy that you saw; the change is refused where there is another one by now."
    )
    def add_policy_rule(
        self,
        info: Info,
        kind: str,
        effect: str,
        name: str,
        settings: JSON,
        namespace: str | None = None,
        enabled: bool = True,
        position: int | None = None,
        comment: str = "",
        version: int | None = None,
    ) -> PolicyRulePayload:
        content: Any = settings
        return Rule.of(
            operations.add_rule(
                actor=actor_of(info),
                namespace=_place(info, namespace),
                kind=kind,
                effect=effect,
                name=name,
                settings=content,
                enabled=enabled,
                position=position,
                comment=comment,
                version=version,
            )
        )

    @field(description="What is left out stays as it is.")
    def change_policy_rule(
        self,
        info: Info,
        key: Key,
        effect: str | None = None,
        name: str | None = None,
        settings: JSON | None = None,
        enabled: bool | None = None,
        comment: str = "",
        version: int | None = None,
    ) -> PolicyRulePayload:
        actor = actor_of(info)
        content: Any = settings
        return Rule.of(
            operations.change_rule(
                actor=actor,
                rule=operations.find_rule(actor, key),
                effect=effect,
                name=name,
                settings=content,
                enabled=enabled,
                comment=comment,
                version=version,
            )
        )

    @field(description="Rules are told in their order; what is allowed does not depend on it.")
    def move_policy_rule(
        self,
        info: Info,
        key: Key,
        position: int,
        comment: str = "",
        version: int | None = None,
    ) -> PolicyRulePayload:
        actor = actor_of(info)
        return Rule.of(
            operations.move_rule(
                actor=actor,
                rule=operations.find_rule(actor, key),
                position=position,
                comment=comment,
                version=version,
            )
        )

    @field()
    def remove_policy_rule(
        self, info: Info, key: Key, comment: str = "", version: int | None = None
    ) -> RemovedPolicyRulePayload:
        actor = actor_of(info)
        rule = operations.find_rule(actor, key)
        operations.remove_rule(actor=actor, rule=rule, comment=comment, version=version)
        return RemovedPolicyRule(name=rule.name)

    @field(
        description="Make the rules of an older version those of a new one. `version`: of the "
        "policy that you saw."
    )
    def restore_policy_version(
        self,
        info: Info,
        number: int,
        namespace: str | None = None,
        comment: str = "",
        version: int | None = None,
    ) -> PolicyPayload:
        actor, place = actor_of(info), _place(info, namespace)
        operations.restore_version(
            actor=actor,
            restored=operations.find_version(actor, place, number),
            comment=comment,
            version=version,
        )
        return EffectivePolicy.of(actor, place)

    @field(
        description="Hold rules against all current builds of a namespace, or of the installation, "
        "without switching them on. No rules: those that are in force."
    )
    def simulate_policy(
        self,
        info: Info,
        namespace: str | None = None,
        rules: list[RuleInput] | None = None,
    ) -> SimulationPayload:
        return PolicySimulation.of(
            operations.simulate(
                actor=actor_of(info),
                namespace=_place(info, namespace),
                drafts=[rule.draft() for rule in rules or ()],
            )
        )
