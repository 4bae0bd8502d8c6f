"""`user.has_perm(permission, object)` gives the answer of `accounts.access.may`."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Group

from accounts.access import Actor, may
from accounts.models import DirectoryGroup, User
from accounts.roles import Perm, Role
from environments.models import Namespace
from environments.operations.role_mappings import add_role_mapping
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def people() -> dict[str, Any]:
    """People by the way they got a role in `research`."""
    research = factories.make_namespace(
        "research",
        viewer=Role.VIEWER,
        developer=Role.DEVELOPER,
        approver=Role.APPROVER,
        admin=Role.ADMIN,
    )
    root = factories.make_user("root", superuser=True)
    team = Group.objects.create(name="team")
    research.grant(Role.DEVELOPER, team)
    member = factories.make_user("member")
    member.groups.add(team)
    physics = Group.objects.create(name="ldap:physics")
    DirectoryGroup.objects.create(group=physics, directory="ldap")
    mapped = factories.make_user("mapped")
    mapped.groups.add(physics)
    add_role_mapping(
        actor=Actor(root), group="ldap:physics", namespace="research", role=Role.APPROVER
    )
    service = User.objects.create(username="robot", owner=member)
    research.grant(Role.VIEWER, service)
    left = factories.make_user("left")
    research.grant(Role.ADMIN, left)
    User.objects.filter(pk=left.pk).update(is_active=False)
    found = {user.username: user for user in User.objects.all()}
    return {**found, "outsider": factories.make_user("outsider"), "nobody": AnonymousUser()}


def answers(user: Any, guarded: Any) -> set[Perm]:
    return {perm for perm in Perm if user.has_perm(f"environments.{perm.value}", guarded)}


def test_it_answers_like_the_check_of_operations(people: dict[str, Any]) -> None:
    research = Namespace.objects.get(name="research")
    public = factories.make_namespace("open")
    Namespace.objects.filter(pk=public.pk).update(public=True)
    guarded: list[Any] = [research, public, factories.make_environment(research)]
    for name, user in people.items():
        for row in guarded:
            allowed = {perm for perm in Perm if may(Actor(user), perm, row)}
            assert answers(user, row) == allowed, (name, row)


def test_each_way_to_a_role_gives_its_permissions(people: dict[str, Any]) -> None:
    research = Namespace.objects.get(name="research")
    view = {Perm.VIEW, Perm.DOWNLOAD}
    assert answers(people["viewer"], research) == view
    assert answers(people["developer"], research) == view | {Perm.BUILD}
    assert answers(people["admin"], research) == set(Perm)
    assert answers(people["member"], research) == view | {Perm.BUILD}
    assert answers(people["mapped"], research) == view | {Perm.BUILD, Perm.APPROVE}
    assert answers(people["robot"], research) == view
    assert answers(people["root"], research) == set(Perm)


def test_inactive_and_unrelated_accounts_have_none(people: dict[str, Any]) -> None:
    research = Namespace.objects.get(name="research")
    for name in ("left", "outsider", "nobody"):
        assert answers(people[name], research) == set(), name


def test_a_permission_without_an_object_or_by_another_name_is_refused(
    people: dict[str, Any],
) -> None:
    research = Namespace.objects.get(name="research")
    admin = people["admin"]
    assert not admin.has_perm("environments.manage")
    assert not admin.has_perm("environments.role_admin", research)
    assert not admin.has_perm("environments.manage", admin)


def test_all_permissions_of_an_account_on_an_object_are_listed(people: dict[str, Any]) -> None:
    research = Namespace.objects.get(name="research")
    listed = people["developer"].get_all_permissions(research)
    assert listed == {"environments.view", "environments.download", "environments.build"}
