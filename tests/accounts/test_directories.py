"""Accounts belong to identities; groups and what is mapped to them follow the directory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db.models import QuerySet
from django.test import Client
from django.utils import timezone

from accounts import directories
from accounts.access import Actor, may
from accounts.authentication import TokenInvalidError, actor_with_token
from accounts.directories import Person, check_directory, lost, welcome
from accounts.models import DirectoryGroup, Identity, User
from accounts.roles import Perm, Role
from condastore.errors import AccessDeniedError, ConflictError, InvalidInputError
from environments.models import AuditEvent, MappedRole, Namespace, RoleMapping
from environments.operations.namespaces import create_namespace
from environments.operations.role_mappings import add_role_mapping, remove_role_mapping
from environments.operations.tokens import create_token
from environments.services.approval_requests import deciders
from tests import factories

pytestmark = pytest.mark.django_db


def person(name: str = "erin", *groups: str, **changes: Any) -> Person:
    values = {
        "directory": "ldap",
        "issuer": "ldap:dc=example",
        "subject": f"id-of-{name}",
        "username": name,
        "email": f"{name}@example.org",
        "groups": frozenset(groups),
    }
    return Person(**(values | changes))


def group_names(user: User) -> set[str]:
    return set(user.groups.values_list("name", flat=True))


# --- identities ---------------------------------------------------------------------------------


def test_the_same_identity_is_the_same_account_whatever_else_changes() -> None:
    first = welcome(person("erin"))
    again = welcome(person("erin", username="erin.smith", email="new@example.org"))
    assert again.pk == first.pk
    assert again.username == "erin"
    assert again.email == "new@example.org"


@pytest.mark.parametrize("name", ["alice", "ALICE"])
def test_a_matching_user_name_takes_no_account_over(research: Namespace, name: str) -> None:
    with pytest.raises(ConflictError, match="belongs to another account"):
        welcome(person(name))
    assert not Identity.objects.exists()


def test_a_matching_mail_address_takes_no_account_over(research: Namespace) -> None:
    erin = welcome(person("erin", email="alice@example.org"))
    assert erin.username == "erin"
    assert not may(Actor(erin), Perm.VIEW, research)


def test_the_subject_of_another_issuer_is_somebody_else() -> None:
    erin = welcome(person("erin"))
    other = welcome(person("erin", issuer="https://idp.example", directory="idp", username="e2"))
    assert other.pk != erin.pk


def test_an_administrator_may_add_an_identity_to_an_account(alice: Actor) -> None:
    Identity.objects.create(
        user=alice.account, issuer="ldap:dc=example", subject="id-of-alice", directory="ldap"
    )
    assert welcome(person("alice")).pk == alice.account.pk


def test_a_closed_account_stays_closed() -> None:
    erin = welcome(person())
    User.objects.filter(pk=erin.pk).update(is_active=False)
    with pytest.raises(AccessDeniedError, match="is closed"):
        welcome(person())


def test_a_name_that_cannot_be_a_user_name_is_refused() -> None:
    with pytest.raises(ConflictError, match="cannot be a user name"):
        welcome(person("a b/c"))


# --- groups ---------------------------------------------------------------------------------------


def test_groups_are_those_of_the_last_sign_in_and_local_ones_stay() -> None:
    erin = welcome(person("erin", "physics", "science"))
    local = Group.objects.create(name="local")
    erin.groups.add(local)
    assert group_names(erin) == {"ldap:physics", "ldap:science", "local"}
    welcome(person("erin", "science"))
    assert group_names(erin) == {"ldap:science", "local"}


def test_a_directory_that_says_nothing_of_groups_changes_none() -> None:
    erin = welcome(person("erin", "physics"))
    welcome(person("erin", groups=None))
    assert group_names(erin) == {"ldap:physics"}


def test_no_directory_forges_a_group_of_another_or_of_ours() -> None:
    Group.objects.create(name="ldap:admins")  # by hand
    erin = welcome(person("erin", "admins"))
    (mirrored,) = group_names(erin)
    assert mirrored != "ldap:admins"
    assert DirectoryGroup.objects.get(group__name=mirrored).name == "admins"
    frank = welcome(person("frank", "physics", directory="other", issuer="other"))
    assert group_names(frank) == {"other:physics"}
    odd = welcome(person("odd", "physics", directory="x", issuer="x"))
    assert not group_names(odd) & group_names(frank)


def test_long_names_of_groups_stay_different() -> None:
    long = "g" * 200
    erin = welcome(person("erin", long + "a", long + "b"))
    assert len(group_names(erin)) == 2
    welcome(person("erin", long + "a"))
    assert len(group_names(erin)) == 1


def test_members_of_named_groups_run_the_installation(settings: Any) -> None:
    settings.ADMIN_GROUPS = ["ldap:it"]
    assert welcome(person("erin", "it")).is_superuser
    erin = welcome(person("erin"))
    erin.refresh_from_db()
    assert (erin.is_superuser, erin.is_staff) == (False, False)


# --- role mappings --------------------------------------------------------------------------------


def roles(user: User, namespace: Namespace) -> set[Perm]:
    found = {perm for perm in Perm if may(Actor(user), perm, namespace)}
    for perm in Perm:
        listed = Namespace.objects.with_perm(Actor(user), perm).filter(pk=namespace.pk)
        assert listed.exists() == (perm in found)
    return found


def test_a_group_changes_its_namespace_and_nothing_else(root: Actor) -> None:
    physics, chemistry = (factories.make_namespace(name) for name in ("physics", "chemistry"))
    add_role_mapping(actor=root, group="ldap:physics", namespace="physics", role=Role.DEVELOPER)
    erin = welcome(person("erin", "physics"))
    assert Perm.BUILD in roles(erin, physics)
    assert Perm.GRANT not in roles(erin, physics)
    assert not roles(erin, chemistry)
    welcome(person("erin"))
    assert not roles(erin, physics)


def test_a_mapping_holds_at_once_for_members_and_namespaces_of_today_and_tomorrow(
    root: Actor,
) -> None:
    lab = factories.make_namespace("lab-one")
    erin = welcome(person("erin", "lab"))
    mapping = add_role_mapping(actor=root, group="ldap:l*", namespace="lab-*", role=Role.VIEWER)
    assert Perm.VIEW in roles(erin, lab)
    assert Perm.VIEW in roles(erin, create_namespace(actor=root, name="lab-two"))
    assert Perm.VIEW in roles(welcome(person("frank", "lost-and-found")), lab)
    remove_role_mapping(actor=root, mapping=mapping)
    assert not roles(erin, lab)
    actions = AuditEvent.objects.order_by("pk").values_list("action", flat=True)
    assert {"role-mapping.add", "role-mapping.remove", "account.groups"} <= set(actions)


def test_the_highest_role_wins_and_a_grant_outlives_a_mapping(root: Actor) -> None:
    lab = factories.make_namespace("lab")
    erin = welcome(person("erin", "a", "b"))
    lab.grant(Role.VIEWER, erin)
    add_role_mapping(actor=root, group="ldap:a", namespace="lab", role=Role.DEVELOPER)
    add_role_mapping(actor=root, group="ldap:b", namespace="*", role=Role.ADMIN)
    assert roles(erin, lab) == set(Perm)
    welcome(person("erin", "a"))
    assert Perm.BUILD in roles(erin, lab)
    assert Perm.GRANT not in roles(erin, lab)
    welcome(person("erin"))
    assert roles(erin, lab) == {Perm.VIEW, Perm.DOWNLOAD}


def test_a_personal_mapping_reaches_the_persons_own_namespace_only(root: Actor) -> None:
    add_role_mapping(actor=root, group="ldap:*", namespace="{username}", role=Role.VIEWER)
    add_role_mapping(actor=root, group="ldap:*", namespace="lab-{username}", role=Role.DEVELOPER)
    add_role_mapping(actor=root, group="ldap:*", namespace="*", role=Role.VIEWER)
    shared = factories.make_namespace("frank")  # not personal: it only bears his name
    MappedRole.objects.filter(namespace=shared).delete()
    erin, frank = welcome(person("erin", "all")), welcome(person("frank", "all"))
    lab = factories.make_namespace("lab-erin")
    own = create_namespace(actor=Actor(erin), name="erin")
    assert Perm.BUILD in roles(erin, lab)
    assert Perm.BUILD not in roles(frank, lab)
    assert not roles(frank, own)  # not by "*" either
    assert not MappedRole.objects.filter(namespace=shared, user=frank).exists()
    assert MappedRole.objects.filter(namespace=own, user=erin).exists()


def test_a_local_group_that_looks_like_a_mirror_is_none(root: Actor) -> None:
    lab = factories.make_namespace("lab")
    add_role_mapping(actor=root, group="ldap:physics", namespace="lab", role=Role.ADMIN)
    local = Group.objects.create(name="ldap:physics")
    erin = factories.make_user("erin")
    erin.groups.add(local)
    assert not roles(erin, lab)


@pytest.mark.parametrize(
    ("group", "namespace", "where"),
    [
        ("*:physics", "lab", "group"),
        ("physics", "lab", "group"),
        ("ldap:physics", "", "namespace"),
        ("ldap:physics", "lab/x", "namespace"),
        ("ldap:physics", "{username}-*", "namespace"),
        ("ldap:physics", "{username}{username}", "namespace"),
    ],
)
def test_a_pattern_that_means_too_much_is_refused(
    root: Actor, group: str, namespace: str, where: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        add_role_mapping(actor=root, group=group, namespace=namespace, role=Role.VIEWER)
    assert caught.value.where == where
    assert not RoleMapping.objects.exists()


def test_only_administrators_of_the_installation_map_roles(dora: Actor, root: Actor) -> None:
    with pytest.raises(AccessDeniedError):
        add_role_mapping(actor=dora, group="ldap:a", namespace="research", role=Role.VIEWER)
    mapping = add_role_mapping(actor=root, group="ldap:a", namespace="research", role=Role.VIEWER)
    with pytest.raises(AccessDeniedError):
        remove_role_mapping(actor=dora, mapping=mapping)


# --- who is gone ----------------------------------------------------------------------------------


class Fake:
    """A directory in memory: a stand-in at the seam to the network."""

    name = "ldap"

    def __init__(self, *people: Person) -> None:
        self.people = {one.subject: one for one in people}

    def askable(self, identities: QuerySet[Identity]) -> QuerySet[Identity]:
        return identities

    def look_up(self, identity: Identity) -> Person | None:
        return self.people.get(identity.subject)


def check(directory: Fake) -> None:
    check_directory(directory, before=timezone.now() + timedelta(days=1))


def test_who_is_gone_loses_groups_tokens_and_sessions_and_comes_back_without_them() -> None:
    erin = welcome(person("erin", "physics"))
    client = Client()
    client.force_login(erin)
    created = create_token(actor=Actor(erin), name="mine")
    check(Fake())
    assert "erin" not in client.get("/environments/").content.decode()
    with pytest.raises(TokenInvalidError):
        actor_with_token(created.secret)
    assert not group_names(erin)
    back = welcome(person("erin"))
    assert (back.pk, back.is_active) == (erin.pk, True)
    assert "erin" not in client.get("/environments/").content.decode()
    with pytest.raises(TokenInvalidError):
        actor_with_token(created.secret)


def test_a_check_brings_groups_up_to_date() -> None:
    erin = welcome(person("erin", "physics"))
    check(Fake(person("erin", "chemistry")))
    assert group_names(erin) == {"ldap:chemistry"}


def test_who_is_known_elsewhere_keeps_the_account() -> None:
    erin = welcome(person("erin"))
    Identity.objects.create(user=erin, issuer="other", subject="1", directory="other")
    check(Fake())
    erin.refresh_from_db()
    assert erin.is_active


def test_a_directory_that_suddenly_knows_nobody_closes_nobody() -> None:
    people = [person(f"user{number}") for number in range(10)]
    for one in people:
        welcome(one)
    check(Fake())
    assert User.objects.filter(is_active=True).count() == 10
    check(Fake(*people[:8]))
    assert User.objects.filter(is_active=True).count() == 8


def test_who_was_confirmed_lately_is_not_asked_about() -> None:
    welcome(person("erin"))
    check_directory(Fake(), before=timezone.now() - timedelta(hours=1))
    assert User.objects.get().is_active


def test_local_people_act_only_where_local_accounts_are_on(
    alice: Actor, environment: Any, settings: Any
) -> None:
    erin = welcome(person("erin"))
    robot = User.objects.create(username="robot", is_service=True, owner=erin)
    owners = [alice.account, erin, robot]
    secrets = [create_token(actor=Actor(one), name="mine").secret for one in owners]
    client = Client()
    client.force_login(alice.account)
    assert "alice" in client.get("/environments/").content.decode()
    settings.LOCAL_ACCOUNTS = False
    assert "alice" not in client.get("/environments/").content.decode()
    with pytest.raises(TokenInvalidError):
        actor_with_token(secrets[0])
    assert actor_with_token(secrets[1]).account == erin
    assert actor_with_token(secrets[2]).account == robot
    lost(Identity.objects.get())
    with pytest.raises(TokenInvalidError):
        actor_with_token(secrets[1])


def test_no_directory_is_asked_where_none_is_configured() -> None:
    assert directories.directories() == []


def test_who_may_decide_by_a_mapping_is_told_so(root: Actor, research: Namespace) -> None:
    add_role_mapping(actor=root, group="ldap:a", namespace="research", role=Role.APPROVER)
    add_role_mapping(actor=root, group="ldap:*", namespace="research", role=Role.VIEWER)
    welcome(person("erin", "a"))
    welcome(person("frank", "b"))
    names = [user.username for user in deciders([research.pk])[research.pk]]
    assert names == ["anna", "dora", "erin"]
