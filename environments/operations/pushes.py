"""Operations on push rules and registry logins."""

from __future__ import annotations

import re

from django.db import IntegrityError, transaction

from accounts.access import Actor, require, require_superuser
from accounts.roles import Perm
from condastore.errors import ConflictError, InvalidInputError, LimitError
from environments.engine.images.remote import Login, Reference
from environments.models import (
    AuditEvent,
    ChannelCredential,
    Environment,
    Namespace,
    Push,
    PushRule,
    audited,
)
from environments.models.channels import REGISTRY
from environments.operations.credentials import record_set
from environments.services.image_pushes import expand_target

#: Maximum of rules of one namespace.
MAX_RULES = 50
_PATTERN = re.compile(r"[a-z0-9*?._-]{1,64}")
_PLACE = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*")


@audited()
def create_push_rule(*, actor: Actor, namespace: Namespace, pattern: str, target: str) -> PushRule:
    """Push the current build of each environment that matches `pattern` to `target`, from now on.

    Builds that are already current are pushed at once. In `target`, `{environment}` and `{build}`
    are replaced by name and number.

    Raises:
        InvalidInputError: names everything wrong with pattern and target.
    """
    require(actor, Perm.MANAGE, namespace)
    _check(pattern, target)
    if PushRule.objects.filter(namespace=namespace).count() >= MAX_RULES:
        raise LimitError(f"There are already {MAX_RULES} rules.", hint="Delete one first.")
    try:
        with transaction.atomic():
            rule = PushRule.objects.create(
                namespace=namespace, pattern=pattern, target=target, created_by=actor.account
            )
    except IntegrityError:
        raise ConflictError("The same rule already exists.") from None
    _request_pushes(rule)
    reported = {"pattern": pattern, "target": target}
    AuditEvent.record(actor, "push-rule.create", namespace, reported)
    return rule


def _check(pattern: str, target: str) -> None:
    faults: list[str] = []
    if not _PATTERN.fullmatch(pattern):
        faults.append(f"{pattern!r:.100} is not an environment name or pattern")
    sample = expand_target(target, "sample", 1)
    try:
        Reference.parse(sample)
    except InvalidInputError as error:
        faults.append(f"the target is not a reference: {error.message.rstrip('.')}")
    if re.search(r"[{}]", sample):
        faults.append("the target may use only {environment} and {build} in braces")
    if "@" in target:
        faults.append("the target must not have a digest")
    if re.search(r"[*?]", pattern) and "{environment}" not in target:
        faults.append("several environments would be pushed to the same reference")
    if faults:
        raise InvalidInputError(
            "; ".join(faults)[:900] + ".",
            where="target",
            hint="Use a target such as registry.example.org/team/{environment}:{build}.",
        )


def _request_pushes(rule: PushRule) -> None:
    found = Environment.objects.present().filter(namespace=rule.namespace).exclude(current=None)
    for environment in found.select_related("current"):
        if rule.is_about(environment) and environment.current is not None:
            Push.want(rule, environment, environment.current)


@audited()
def push_again(*, actor: Actor, rule: PushRule) -> PushRule:
    """Push current builds again, including those that were given up or pushed before."""
    require(actor, Perm.MANAGE, rule.namespace)
    _request_pushes(rule)
    AuditEvent.record(actor, "push-rule.again", rule.namespace, {"target": rule.target})
    return rule


@audited()
def delete_push_rule(*, actor: Actor, rule: PushRule) -> PushRule:
    """Delete a rule; images that were pushed stay in the registry."""
    require(actor, Perm.MANAGE, rule.namespace)
    key = rule.pk
    rule.delete()
    rule.pk = key  # the deleted row is returned to the caller
    reported = {"pattern": rule.pattern, "target": rule.target}
    AuditEvent.record(actor, "push-rule.delete", rule.namespace, reported)
    return rule


@audited()
def set_registry_login(
    *, actor: Actor, namespace: Namespace | None, registry: str, login: str
) -> ChannelCredential:
    """Store the login of `registry` (a host, optionally with a path) for pushes of a namespace.

    Without a namespace it is used to pull base images, and needs an administrator.
    """
    if namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, namespace)
    if len(registry) > 300 or not _PLACE.fullmatch(registry):
        raise InvalidInputError(
            f"{registry!r:.100} is not a registry.",
            where="registry",
            hint="Use registry.example.org, or registry.example.org/team.",
        )
    if len(login) > 8000 or "\0" in login:
        raise InvalidInputError("A login has at most 8000 characters.", where="login")
    Login.parse(login)
    row, created = ChannelCredential.objects.get_or_create(
        namespace=namespace, url_prefix=f"{REGISTRY}{registry}", defaults={"kind": "basic"}
    )
    row.seal(login)
    row.save()
    record_set(actor, row, replaced=not created)
    return row
