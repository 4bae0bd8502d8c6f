"""Operations on policies: read, add, change, move and remove rules, restore a version.

Each change creates a version of the whole policy with its author and comment. It takes effect at
once: on the next solve, on held builds, and on every later evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F, Max

from accounts.access import Actor, require, require_superuser
from accounts.roles import Perm
from condastore.errors import (
    ConflictError,
    FaultError,
    LimitError,
    NotFoundError,
    RuleError,
    StoreError,
)
from environments.domain.policy import (
    Rule,
    parse_rule,
)
from environments.models import (
    AuditEvent,
    Namespace,
    Policy,
    PolicyRule,
    PolicyVersion,
    audited,
)
from environments.operations.approvals import reconsider
from environments.services.policies import (
    applicable_rules,
    assemble,
    built_in,
    recalls_in_force,
    rule_of,
)

#: Each package name of a solve is compared with each rule.
MAX_RULES = 500


# --- reading --------------------------------------------------------------------------------------


def find_policy(actor: Actor, namespace: Namespace | None) -> Policy:
    """Return the policy of a namespace, or of the installation; without rules it is empty.

    Raises:
        NotFoundError: also for namespaces the actor may not see.
    """
    if namespace is None and not actor.signed_in:
        raise NotFoundError("There is no such policy.")
    if (
        namespace is not None
        and not Namespace.objects.visible_to(actor).filter(pk=namespace.pk).exists()
    ):
        raise NotFoundError("There is no such policy.")
    found = Policy.objects.filter(namespace=namespace).first()
    return found or Policy(namespace=namespace)


def find_rule(actor: Actor, key: object) -> PolicyRule:
    known = str(key).isdecimal() and len(str(key)) <= 18
    rows = PolicyRule.objects.visible_to(actor).select_related("policy__namespace")
    found = rows.filter(pk=int(str(key))).first() if known else None
    if found is None:
        raise NotFoundError("There is no such rule.")
    rule: PolicyRule = found
    return rule


def rules_in_force(namespace: Namespace | None) -> list[Rule]:
    """Return the rules in force for the installation (None), or for a namespace including those."""
    rows = PolicyRule.objects.filter(enabled=True, policy__namespace=None)
    found = applicable_rules([rule_of(row) for row in rows], namespace)
    rules = built_in({rule.kind for rule in found})
    if namespace is not None:
        own = PolicyRule.objects.filter(enabled=True, policy__namespace=namespace)
        found += [rule_of(row) for row in own]
    return [*assemble(found, recalled=recalls_in_force(), built_in=rules).rules]


def built_in_rules() -> tuple[Rule, ...]:
    """Return the default rules that apply everywhere without being configured."""
    rows = PolicyRule.objects.filter(enabled=True, policy__namespace=None)
    return built_in(set(rows.values_list("kind", flat=True)))


def may_change(actor: Actor, namespace: Namespace | None) -> bool:
    if namespace is None:
        return actor.is_superuser
    return Namespace.objects.with_perm(actor, Perm.MANAGE).filter(pk=namespace.pk).exists()


def require_policy_access(actor: Actor, namespace: Namespace | None) -> None:
    """Require the permission to change or simulate a policy; None means the installation."""
    if namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, namespace)


# --- changing -------------------------------------------------------------------------------------


@audited()
def add_rule(
    *,
    actor: Actor,
    namespace: Namespace | None,
    kind: str,
    effect: str,
    name: str,
    settings: Mapping[str, Any],
    enabled: bool = True,
    position: int | None = None,
    comment: str = "",
    version: int | None = None,
) -> PolicyRule:
    """Add a rule to a namespace, or with None to the whole installation.

    Args:
        position: index among the rules, from 0; None appends.
        version: expected version of the policy.
    Raises:
        ConflictError: the policy has another version than expected.
    """
    require_policy_access(actor, namespace)
    parse_rule(kind=kind, effect=effect, name=name, settings=settings)
    policy = _next_version(Policy.of(namespace), version)
    if policy.rules.count() >= MAX_RULES:
        raise LimitError(f"A policy has at most {MAX_RULES} rules.")
    last = policy.rules.aggregate(last=Max("position"))["last"]
    rule = PolicyRule(
        policy=policy,
        position=0 if last is None else last + 1,
        kind=kind,
        effect=effect,
        name=name.strip(),
        settings=dict(settings),
        enabled=enabled,
    )
    _save(rule)
    if position is not None:
        _set_position(rule, position)
    _save_version(
        actor, policy, "add-rule", f"added “{rule.name}”", comment, {"after": _json(rule)}
    )
    return rule


@audited()
def change_rule(
    *,
    actor: Actor,
    rule: PolicyRule,
    effect: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    enabled: bool | None = None,
    comment: str = "",
    version: int | None = None,
) -> PolicyRule:
    """Change the given fields of a rule; None leaves a field unchanged."""
    require_policy_access(actor, rule.policy.namespace)
    policy = _next_version(rule.policy, version)
    rule = _current(rule, policy)
    before = _json(rule)
    rule.effect = rule.effect if effect is None else effect
    rule.name = rule.name if name is None else name.strip()
    rule.settings = rule.settings if settings is None else dict(settings)
    rule.enabled = rule.enabled if enabled is None else enabled
    parse_rule(kind=rule.kind, effect=rule.effect, name=rule.name, settings=rule.settings)
    _save(rule)
    changes = {"before": before, "after": _json(rule)}
    _save_version(actor, policy, "change-rule", f"changed “{rule.name}”", comment, changes)
    return rule


@audited()
def remove_rule(
    *, actor: Actor, rule: PolicyRule, comment: str = "", version: int | None = None
) -> None:
    require_policy_access(actor, rule.policy.namespace)
    policy = _next_version(rule.policy, version)
    rule = _current(rule, policy)
    before = _json(rule)
    rule.delete()
    _save_version(
        actor, policy, "remove-rule", f"removed “{rule.name}”", comment, {"before": before}
    )


@audited()
def move_rule(
    *,
    actor: Actor,
    rule: PolicyRule,
    position: int,
    comment: str = "",
    version: int | None = None,
) -> PolicyRule:
    """Move a rule: reports list rules in this order; the verdict does not depend on it."""
    require_policy_access(actor, rule.policy.namespace)
    policy = _next_version(rule.policy, version)
    rule = _current(rule, policy)
    before = rule.position
    _set_position(rule, position)
    changes = {"rule": rule.name, "before": before, "after": rule.position}
    _save_version(actor, policy, "move-rule", f"moved “{rule.name}”", comment, changes, acts=False)
    return rule


def find_version(actor: Actor, namespace: Namespace | None, number: int) -> PolicyVersion:
    policy = find_policy(actor, namespace)
    rows = PolicyVersion.objects.filter(policy=policy.pk or 0, number=number)
    version: PolicyVersion | None = rows.select_related("policy__namespace").first()
    if version is None:
        raise NotFoundError(
            f"The {policy} has no version {number}.",
            where="number",
            hint="List the versions with `condastore policy history`.",
        )
    return version


@audited()
def restore_version(
    *, actor: Actor, restored: PolicyVersion, comment: str = "", version: int | None = None
) -> Policy:
    """Restore the rules of an older version as a new version; rules with the same name keep their
    ids.

    Raises:
        RuleError: rules of the older version are no longer valid; lists all faults.
        ConflictError: the rules are already the same.
    """
    require_policy_access(actor, restored.policy.namespace)
    _refuse_unreadable(restored.rules)
    policy = _next_version(restored.policy, version)
    rows = list(policy.rules.order_by("position", "pk"))
    before = [_json(row) for row in rows]
    if before == restored.rules:
        raise ConflictError(f"The {policy} already has the rules of version {restored.number}.")
    held = {row.name: row for row in rows}
    requested = {rule["name"] for rule in restored.rules}
    policy.rules.exclude(name__in=requested).delete()
    for position, rule in enumerate(restored.rules):
        row = held.get(rule["name"]) or PolicyRule(policy=policy, name=rule["name"])
        row.position = position
        for key in ("kind", "effect", "enabled", "settings"):
            setattr(row, key, rule[key])
        row.save()
    changes = {"restored": restored.number, "before": before, "after": restored.rules}
    _save_version(
        actor, policy, "restore-version", f"restored version {restored.number}", comment, changes
    )
    return policy


def _refuse_unreadable(rules: Sequence[Mapping[str, Any]]) -> None:
    faults: list[StoreError] = []
    for rule in rules:
        try:
            parse_rule(**{key: rule[key] for key in ("kind", "effect", "name", "settings")})
        except RuleError as error:
            faults += [
                FaultError(fault.message, where=f"{rule['name']}: {fault.where}", hint=fault.hint)
                for fault in error.faults
            ]
    if faults:
        raise RuleError(faults)


def _next_version(policy: Policy, expected: int | None) -> Policy:
    """Increment the version; the row lock makes concurrent changes of one policy wait."""
    same = Policy.objects.filter(pk=policy.pk)
    if expected is not None:
        same = same.filter(version=expected)
    taken = same.update(version=F("version") + 1)
    policy = Policy.objects.select_related("namespace").get(pk=policy.pk)
    if not taken:
        raise ConflictError(
            f"The {policy} has version {policy.version} now; you saw version {expected}.",
            hint="Load it again, and repeat the change if it is still right.",
        )
    return policy


def _current(rule: PolicyRule, policy: Policy) -> PolicyRule:
    found = PolicyRule.objects.filter(pk=rule.pk, policy=policy).first()
    if found is None:
        raise NotFoundError(f"The rule “{rule.name}” was deleted.")
    found.policy = policy
    current: PolicyRule = found
    return current


def _save(rule: PolicyRule) -> None:
    try:
        with transaction.atomic():
            rule.save()
    except IntegrityError:
        raise ConflictError(
            f"A rule named “{rule.name}” already exists.",
            where="name",
            hint="Choose another name.",
        ) from None


def _set_position(rule: PolicyRule, position: int) -> None:
    others = [other for other in rule.policy.rules.order_by("position", "pk") if other != rule]
    others.insert(max(0, position), rule)
    for index, each in enumerate(others):
        each.position = index
    PolicyRule.objects.bulk_update(others, ["position"])


def _json(rule: PolicyRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "kind": rule.kind,
        "effect": rule.effect,
        "enabled": rule.enabled,
        "settings": rule.settings,
    }


def _save_version(
    actor: Actor,
    policy: Policy,
    action: str,
    change: str,
    comment: str,
    changes: Mapping[str, Any],
    *,
    acts: bool = True,
) -> None:
    PolicyVersion.objects.create(
        policy=policy,
        number=policy.version,
        rules=[_json(rule) for rule in policy.rules.order_by("position", "pk")],
        change=change[:200],
        comment=comment.strip()[:2000],
        changed_by=actor.account,
    )
    if acts:
        reconsider(policy.namespace)
    details = {**changes, "version": policy.version, "comment": comment.strip()[:500]}
    AuditEvent.record(actor, f"policy.{action}", policy, details)
