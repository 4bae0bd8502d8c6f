"""Conditions of rights: their text is compiled once, what they find is read each time."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.access import ANONYMOUS, Actor, may
from accounts.models import ApiToken
from accounts.roles import Perm, Role
from environments.models import Build, Environment, Namespace
from tests.factories import make_environment, make_namespace, make_user

pytestmark = pytest.mark.django_db
MANY = 10_000


def test_a_role_counts_from_the_statement_after_it_was_given_or_taken() -> None:
    erin, group = make_user("erin"), Group.objects.create(name="physics")
    namespace = make_namespace("research")
    environment = make_environment(namespace)
    actor = Actor(erin)
    for holder in (erin, group):
        assert not Environment.objects.visible_to(actor).exists()
        namespace.grant(Role.VIEWER, holder)
        erin.groups.add(group)
        assert Environment.objects.visible_to(actor).get() == environment
        namespace.revoke(holder)
    assert not Environment.objects.visible_to(actor).exists()


def test_each_actor_is_asked_for_by_its_own_key_and_its_own_token() -> None:
    erin, bob = make_user("erin"), make_user("bob")
    locations = [make_namespace(name) for name in ("one", "two", "three")]
    for location in locations:
        make_environment(location)
        location.grant(Role.ADMIN, erin)
    locations[2].grant(Role.VIEWER, bob)

    def seen(actor: Actor) -> list[str]:
        rows = Environment.objects.visible_to(actor)
        names = sorted(rows.values_list("namespace__name", flat=True))
        assert names == list(Namespace.objects.visible_to(actor).values_list("name", flat=True))
        return names

    assert seen(Actor(erin)) == ["one", "three", "two"]
    assert seen(Actor(bob)) == ["three"]
    assert seen(Actor(erin, token=ApiToken(user=erin, namespaces=["two"]))) == ["two"]
    assert seen(Actor(erin, token=ApiToken(user=erin, namespaces=["one"]))) == ["one"]
    assert seen(Actor(bob, token=ApiToken(user=bob, namespaces=["one"]))) == []
    limited = ApiToken(user=erin, role=Role.VIEWER.value, namespaces=["one", "two"])
    assert seen(Actor(erin, token=limited)) == ["one", "two"]
    assert not may(Actor(erin, token=limited), Perm.MANAGE, locations[0])
    assert may(Actor(erin), Perm.MANAGE, locations[0])


@pytest.mark.parametrize("perm", list(Perm))
def test_nobody_may_do_in_public_namespaces_what_needs_a_role(perm: Perm) -> None:
    public = make_namespace("open", public=True)
    make_environment(public)
    make_environment(make_namespace("closed"))
    found = Environment.objects.with_perm(ANONYMOUS, perm)
    assert found.count() == (1 if perm in (Perm.VIEW, Perm.DOWNLOAD) else 0)
    assert Namespace.objects.with_perm(ANONYMOUS, perm).count() == found.count()
    assert Build.objects.with_perm(ANONYMOUS, perm).count() == 0


def test_ten_thousand_namespaces_are_one_statement_with_a_few_parameters() -> None:
    erin = make_user("erin")
    rows = Namespace.objects.bulk_create(
        [Namespace(name=f"n{number:05d}", public=True) for number in range(MANY)]
    )
    Environment.objects.bulk_create([Environment(namespace=row, name="ml") for row in rows])
    with CaptureQueriesContext(connection) as sent:
        assert Environment.objects.visible_to(Actor(erin)).count() == MANY
        assert Environment.objects.visible_to(ANONYMOUS).count() == MANY
    assert len(sent) == 2
    _, parameters = Environment.objects.visible_to(Actor(erin)).query.sql_with_params()
    assert len(parameters) < 50
