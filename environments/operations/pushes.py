"""What people ask of pushes by rule: make a rule, try again, keep a login of a registry."""

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

#: Rules of one namespace.
MOST = 50
_PATTERN = re.compile(r"[a-z0-9*?._-]{1,64}")
_PLACE = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*")


@audited()
def create_push_rule(*, actor: Actor, namespace: Namespace, pattern: str, target: str) -> PushRule:
    """Send the current build of each environment that fits `pattern` to `target`, from now on.

    What is current already is sent at once. In `target`, `{environment}` and `{build}` stand for
    the name and the number.

    Raises:
        InvalidInputError: what is wrong with pattern and target.
    """
    require(actor, Perm.MANAGE, namespace)
    _check(pattern, target)
    if PushRule.objects.filter(namespace=namespace).count() >= MOST:
        raise LimitError(f"There are {MOST} rules already.", hint="Delete one first.")
    try:
        with transaction.atomic():
            rule = PushRule.objects.create(
                namespace=namespace, pattern=pattern, target=target, created_by=actor.account
            )
    except IntegrityError:
        raise ConflictError("There is such a rule already.") from None
    _want(rule)
    told = {"pattern": pattern, "target": target}
    AuditEvent.record(actor, "push-rule.create", namespace, told)
    return rule


def _check(pattern: str, target: str) -> None:
    faults: list[str] = []
    if not _PATTERN.fullmatch(pattern):
        faults.append(f"{pattern!r:.100} is no name of environments, nor a pattern of names")
    sample = expand_target(target, "sample", 1)
    try:
        Reference.parse(sample)
    except InvalidInputError as error:
        faults.append(f"the target, as {error.message.rstrip('.')}")
    if re.search(r"[{}]", sample):
        faults.append("the target has braces around other words than {environment} and {build}")
    if "@" in target:
        faults.append("the target has a digest: what is pushed has its own")
    if re.search(r"[*?]", pattern) and "{environment}" not in target:
        faults.append("many environments would go to one place")
    if faults:
        raise InvalidInputError(
            "; ".join(faults)[:900] + ".",
            where="target",
            hint="Write registry.example.org/team/{environment}:{build}.",
        )


def _want(rule: PushRule) -> None:
    found = Environment.objects.present().filter(namespace=rule.namespace).exclude(current=None)
    for environment in found.select_related("current"):
        if rule.is_about(environment) and environment.current is not None:
            Push.want(rule, environment, environment.current)


@audited()
def push_again(*, actor: Actor, rule: PushRule) -> PushRule:
    """Send what is current, also what was given up, or was sent before."""
    require(actor, Perm.MANAGE, rule.namespace)
    _want(rule)
    AuditEvent.record(actor, "push-rule.again", rule.namespace, {"target": rule.target})
    return rule


@audited()
def delete_push_rule(*, actor: Actor, rule: PushRule) -> PushRule:
    """What was sent stays where it is."""
    require(actor, Perm.MANAGE, rule.namespace)
    key = rule.pk
    rule.delete()
    rule.pk = key  # what was deleted is shown once more
    told = {"pattern": rule.pattern, "target": rule.target}
    AuditEvent.record(actor, "push-rule.delete", rule.namespace, told)
    return rule


@audited()
def keep_registry_login(
    *, actor: Actor, namespace: Namespace | None, registry: str, login: str
) -> ChannelCredential:
    """What the pushes of a namespace show to `registry` (a host, or a folder of one).

    Without a namespace: what is shown where bases are pulled from, by administrators.
    """
    if namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, namespace)
    if len(registry) > 300 or not _PLACE.fullmatch(registry):
        raise InvalidInputError(
            f"{registry!r:.100} names no registry.",
            where="registry",
            hint="Write registry.example.org, or registry.example.org/team.",
        )
    if len(login) > 8000 or "\0" in login:
        raise InvalidInputError("At most 8000 characters of text.", where="login")
    Login.parse(login)
    row, created = ChannelCredential.objects.get_or_create(
        namespace=namespace, url_prefix=f"{REGISTRY}{registry}", defaults={"kind": "basic"}
    )
    row.seal(login)
    row.save()
    record_set(actor, row, replaced=not created)
    return row
