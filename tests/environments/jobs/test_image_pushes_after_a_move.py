"""Pushes by rule, once their environment belongs to another namespace."""

from __future__ import annotations

import pytest

from accounts.access import Actor
from accounts.roles import Role
from environments.jobs import image_pushes
from environments.models import AuditEvent, Environment, Namespace, Push
from environments.operations.environments import move_environment
from environments.operations.pushes import create_push_rule
from tests import factories
from tests.environments.graphql.asking import ask

RULES = "{ pushRules { edges { node { pattern pushes { build target } } } } }"


@pytest.mark.django_db
def test_rules_of_the_namespace_that_an_environment_left_neither_send_nor_show_it(
    environment: Environment, research: Namespace, dora: Actor, root: Actor
) -> None:
    secret = factories.make_namespace("secret", alice=Role.ADMIN)
    factories.make_build(environment)
    create_push_rule(
        actor=dora, namespace=research, pattern="*", target="r.example.org/x/{environment}"
    )
    [node] = ask(dora, RULES)["pushRules"]["edges"]
    assert [push["build"] for push in node["node"]["pushes"]] == ["research/ml:1"]
    waiting = Push.objects.get().pk
    move_environment(actor=root, environment=environment, namespace=secret)
    [node] = ask(dora, RULES)["pushRules"]["edges"]
    assert node["node"]["pushes"] == []
    image_pushes.push(waiting)
    assert not AuditEvent.objects.filter(action__startswith="image.push").exists()
