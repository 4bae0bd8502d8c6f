"""Policies: rules, versions and simulation."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import strawberry
import strawberry_django
from django.db.models import F, QuerySet
from strawberry import ID, Info
from strawberry.scalars import JSON

from accounts.access import Actor
from condastore.errors import NotFoundError, StoreError
from environments.graphql.arguments import BasedOnVersion, ChangeComment, PolicyOwner
from environments.graphql.connections import Connection, connection
from environments.graphql.errors import OperationError, refusable
from environments.graphql.fields import Column, actor_of, column, computed, described, field
from environments.graphql.nodes import (
    Node,
    id_field,
    ids_of,
    key_field,
    key_in,
    register_model,
    register_rows,
)
from environments.models import Namespace, Policy, PolicyRule, PolicyVersion
from environments.operations import policies as operations
from environments.operations import policy_simulation
from environments.operations.namespaces import find_namespace
from environments.services.policies import policy_of, rule_of


@strawberry.type(name="PolicyRule", description="One rule of a policy.")
class Rule(Node):
    name: str = strawberry.field(description="Name of the rule, unique in its policy.")
    kind: str = strawberry.field(description="Kind of the rule.")
    effect: str = strawberry.field(description="Effect of the rule.")
    enabled: bool = strawberry.field(description="True when the rule is in force.")
    position: int = strawberry.field(
        description="Position of the rule in its policy, starting at 0."
    )
    settings: JSON = strawberry.field(
        description="Rule settings; the keys depend on `kind` (see docs/policies.md)."
    )
    summary: str = strawberry.field(description="Description of the rule in one line.")

    @classmethod
    def of(cls, row: PolicyRule) -> Rule:
        try:
            summary = rule_of(row).summary
        except StoreError as error:  # of an older release, or changed by hand
            summary = f"This rule cannot be read: {error.message}"
        return cls(
            **ids_of("PolicyRule", row),
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
    description="Written rules of one namespace or of the installation.",
)
class PolicyNode(Node):
    id: ID = id_field("Policy")
    database_id: str = key_field()
    version: int = column("Version number of the policy; it grows with each change.")
    namespace: str | None = computed(
        lambda row: row.namespace.name if row.namespace else None,
        only=["namespace__name"],
        description="Name of the namespace; null means the installation.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[Policy], info: Info, **kwargs: Any
    ) -> QuerySet[Policy]:
        visible = Policy.objects.visible_to(actor_of(info)).order_by().values("pk")
        return queryset.filter(pk__in=visible).select_related("namespace")

    @field(prefetch_related=["rules"], description="Rules of the policy, in order.")
    def rules(self: Any) -> list[Rule]:
        return [Rule.of(row) for row in self.rules.all()]


@strawberry.type(description="Policy rule that is in force without having been written.")
class BuiltInRule:
    name: str = strawberry.field(description="Name of the rule, as used in verdicts.")
    kind: str = strawberry.field(
        description="Kind of the rule; a rule of this kind in the installation's policy "
        "replaces it."
    )
    effect: str = strawberry.field(description="Effect of the rule.")
    summary: str = strawberry.field(description="Description of the rule in one line.")


@strawberry.type(description="All policy rules in force in one namespace or in the installation.")
class EffectivePolicy:
    namespace: str | None = strawberry.field(
        description="Name of the namespace; null means the installation."
    )
    version: int = strawberry.field(description="Version number of the policy's own rules.")
    digest: str = strawberry.field(
        description="Digest of everything in force in the namespace, including "
        "decisions and recalls; verdicts refer to it."
    )
    rules: list[Rule] = strawberry.field(
        description="Rules written for this namespace or installation."
    )
    inherited: list[Rule] = strawberry.field(
        description="Rules of the installation that also hold in the namespace."
    )
    built_in: list[BuiltInRule] = strawberry.field(
        description="Rules in force without having been written, such as the allowed "
        "channels of the settings."
    )
    may_change: bool = strawberry.field(description="True when the caller may change the rules.")

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
    description="Rules of one policy after one change.",
)
class PolicyVersionNode(Node):
    id: ID = id_field("PolicyVersion")
    database_id: str = key_field()
    number: int = column("Version number of the policy.")
    change: str = column("Description of the change.")
    comment: str = column("Comment of the user who made the change.")
    changed_at: datetime = column("When the change was made.")
    rules: JSON = column("Rules after the change.")
    changed_by: str | None = computed(
        lambda row: row.changed_by.username if row.changed_by else None,
        only=["changed_by__username"],
        description="Name of the user who made the change; null if the account was deleted.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: QuerySet[PolicyVersion], info: Info, **kwargs: Any
    ) -> QuerySet[PolicyVersion]:
        return queryset.visible_to(actor_of(info)).select_related("changed_by")  # type: ignore[attr-defined,no-any-return]


@strawberry.input(name="PolicyRuleInput", description="Rule to simulate.")
class RuleInput:
    kind: str = strawberry.field(description="Kind of the rule.")
    effect: str = strawberry.field(description="Effect of the rule.")
    settings: JSON = strawberry.field(
        description="Rule settings; the keys depend on `kind` (see docs/policies.md)."
    )
    name: str = strawberry.field(
        default="a new rule", description="Name of the rule, as used in the simulation's hits."
    )

    def draft(self) -> policy_simulation.Draft:
        settings: Any = self.settings
        return policy_simulation.Draft(
            kind=self.kind, effect=self.effect, name=self.name, settings=settings
        )


@strawberry.type(description="Effect of a simulated rule on one package or on a whole lock.")
class SimulatedHit:
    rule: str = strawberry.field(description="Name of the rule.")
    effect: str = strawberry.field(description="Effect of the rule.")
    package: str = strawberry.field(
        description="Package, or platform when the rule concerns a whole lock."
    )
    reason: str = strawberry.field(description="Reason that the rule gives.")
    chain: list[str] = strawberry.field(
        description="Dependency chain from a requested package to this one."
    )


@strawberry.type(description="Environment whose current build the simulated rules affect.")
class SimulatedEnvironment:
    namespace: str = strawberry.field(description="Name of the namespace.")
    environment: str = strawberry.field(description="Name of the environment.")
    build: int = strawberry.field(description="Number of the current build.")
    effect: str = strawberry.field(description="Most severe effect.")
    packages: int = strawberry.field(description="Number of affected packages.")
    hits: list[SimulatedHit] = strawberry.field(description="Affected packages, up to a limit.")


@strawberry.type(description="Effect of rules on all current builds, without changing anything.")
class PolicySimulation:
    environments: int = strawberry.field(description="Number of environments that were checked.")
    packages: int = strawberry.field(description="Number of distinct packages that were checked.")
    blocked: int = strawberry.field(description="Number of environments that would be refused.")
    asked: int = strawberry.field(
        description="Number of environments that would be held for approval."
    )
    warned: int = strawberry.field(
        description="Number of environments that would get warnings only."
    )
    touched: list[SimulatedEnvironment] = strawberry.field(
        description="Affected environments by name, up to a limit."
    )
    seconds: float = strawberry.field(description="Time that the simulation took, in seconds.")

    @classmethod
    def of(cls, found: policy_simulation.Simulation) -> PolicySimulation:
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
                for each in found.affected
            ],
        )


@strawberry.type(description="Rule that was removed.")
class RemovedPolicyRule:
    name: str = strawberry.field(description="Name of the rule.")


PolicyRulePayload = Annotated[Rule | OperationError, refusable("PolicyRulePayload")]
RemovedPolicyRulePayload = Annotated[
    RemovedPolicyRule | OperationError, refusable("RemovedPolicyRulePayload")
]
PolicyPayload = Annotated[EffectivePolicy | OperationError, refusable("PolicyPayload")]
SimulationPayload = Annotated[
    PolicySimulation | OperationError, refusable("PolicySimulationPayload")
]


def _place(info: Info, namespace: str | None) -> Namespace | None:
    return None if namespace is None else find_namespace(actor_of(info), namespace)


def _rule_rows(info: Info) -> QuerySet[PolicyRule]:
    rows: QuerySet[PolicyRule] = PolicyRule.objects.visible_to(actor_of(info))
    return rows


def _policies(info: Info) -> Iterable[PolicyNode]:
    found: Any = Policy.objects.order_by(F("namespace__name").asc(nulls_first=True), "pk")
    return found  # type: ignore[no-any-return]


def _versions(info: Info, namespace: PolicyOwner = None) -> Iterable[PolicyVersionNode]:
    policy = operations.find_policy(actor_of(info), _place(info, namespace))
    found: Any = PolicyVersion.objects.filter(policy=policy.pk or 0).order_by("-number")
    return found  # type: ignore[no-any-return]


@strawberry.type
class PolicyQueries:
    policies: Connection[PolicyNode] = connection(
        _policies,
        graphql_type=Connection[PolicyNode],
        description="Policies that have or had rules.",
    )
    policy_versions: Connection[PolicyVersionNode] = connection(
        _versions,
        graphql_type=Connection[PolicyVersionNode],
        description="Versions of one policy, newest first.",
    )

    @field(
        description="Rules in force in a namespace or in the installation; null when "
        "the namespace is not visible."
    )
    def policy(self, info: Info, namespace: PolicyOwner = None) -> EffectivePolicy | None:
        try:
            return EffectivePolicy.of(actor_of(info), _place(info, namespace))
        except NotFoundError:
            return None


@strawberry.type
class PolicyMutations:
    @field(
        description="Add a rule to the policy of a namespace, or without a namespace to "
        "that of the installation."
    )
    def add_policy_rule(
        self,
        info: Info,
        kind: Annotated[str, described("Kind of the rule.")],
        effect: Annotated[str, described("Effect of the rule.")],
        name: Annotated[str, described("Name of the rule, unique in its policy.")],
        settings: Annotated[
            JSON, described("Rule settings; the keys depend on `kind` (see docs/policies.md).")
        ],
        namespace: PolicyOwner = None,
        enabled: Annotated[bool, described("True to put the rule in force at once.")] = True,
        position: Annotated[
            int | None, described("Position of the rule, starting at 0; null means the end.")
        ] = None,
        comment: ChangeComment = "",
        version: BasedOnVersion = None,
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

    @field(description="Change a rule; omitted arguments leave their value unchanged.")
    def change_policy_rule(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the rule.", name="id")],
        effect: Annotated[str | None, described("New effect of the rule.")] = None,
        name: Annotated[str | None, described("New name of the rule.")] = None,
        settings: Annotated[
            JSON | None, described("New settings; the keys depend on the rule's kind.")
        ] = None,
        enabled: Annotated[bool | None, described("True to put the rule in force.")] = None,
        comment: ChangeComment = "",
        version: BasedOnVersion = None,
    ) -> PolicyRulePayload:
        actor = actor_of(info)
        content: Any = settings
        return Rule.of(
            operations.change_rule(
                actor=actor,
                rule=operations.find_rule(actor, key_in(key, "PolicyRule")),
                effect=effect,
                name=name,
                settings=content,
                enabled=enabled,
                comment=comment,
                version=version,
            )
        )

    @field(
        description="Move a rule to another position. The order affects only how rules are listed."
    )
    def move_policy_rule(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the rule.", name="id")],
        position: Annotated[int, described("New position of the rule, starting at 0.")],
        comment: ChangeComment = "",
        version: BasedOnVersion = None,
    ) -> PolicyRulePayload:
        actor = actor_of(info)
        return Rule.of(
            operations.move_rule(
                actor=actor,
                rule=operations.find_rule(actor, key_in(key, "PolicyRule")),
                position=position,
                comment=comment,
                version=version,
            )
        )

    @field(description="Remove a rule from its policy.")
    def remove_policy_rule(
        self,
        info: Info,
        key: Annotated[ID, described("Id of the rule.", name="id")],
        comment: ChangeComment = "",
        version: BasedOnVersion = None,
    ) -> RemovedPolicyRulePayload:
        actor = actor_of(info)
        rule = operations.find_rule(actor, key_in(key, "PolicyRule"))
        operations.remove_rule(actor=actor, rule=rule, comment=comment, version=version)
        return RemovedPolicyRule(name=rule.name)

    @field(description="Restore the rules of an earlier version as a new version.")
    def restore_policy_version(
        self,
        info: Info,
        number: Annotated[int, described("Number of the version to restore.")],
        namespace: PolicyOwner = None,
        comment: ChangeComment = "",
        version: BasedOnVersion = None,
    ) -> PolicyPayload:
        actor, place = actor_of(info), _place(info, namespace)
        operations.restore_version(
            actor=actor,
            restored=operations.find_version(actor, place, number),
            comment=comment,
            version=version,
        )
        return EffectivePolicy.of(actor, place)

    @field(description="Evaluate rules against all current builds without changing anything.")
    def simulate_policy(
        self,
        info: Info,
        namespace: PolicyOwner = None,
        rules: Annotated[
            list[RuleInput] | None,
            described(
                "Rules to add for the simulation; null or an empty list means the rules in force."
            ),
        ] = None,
    ) -> SimulationPayload:
        return PolicySimulation.of(
            policy_simulation.simulate(
                actor=actor_of(info),
                namespace=_place(info, namespace),
                drafts=[rule.draft() for rule in rules or ()],
            )
        )


register_model("Policy", PolicyNode, lambda info: Policy.objects.all())
register_model("PolicyVersion", PolicyVersionNode, lambda info: PolicyVersion.objects.all())
register_rows("PolicyRule", _rule_rows, lambda info, row: Rule.of(row))
