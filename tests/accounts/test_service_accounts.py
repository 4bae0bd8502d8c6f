"""A service account keeps working when its owner leaves; administrators are notified."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor
from accounts.authentication import TokenInvalidError, actor_with_token
from accounts.directories import Person, lost, welcome
from accounts.models import Identity, User
from accounts.roles import Role
from condastore.errors import AccessDeniedError, NotFoundError
from environments.models import AuditEvent, Build, Namespace, Notification, Webhook
from environments.operations.namespaces import grant_role
from environments.operations.people import close_account
from environments.operations.tokens import (
    assign_service_account,
    create_service_account,
    create_token,
    service_accounts,
)
from tests import factories
from tests.environments.graphql.asking import ask

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner(research: Namespace, dora: Actor) -> Actor:
    """An administrator, whose robot builds in `research`."""
    found = factories.actor(factories.make_user("owen", superuser=True))
    create_service_account(actor=found, name="robot")
    grant_role(actor=dora, namespace=research, role=Role.DEVELOPER, user="robot")
    build = factories.make_build(factories.make_environment(research, "nightly"))
    Build.objects.filter(pk=build.pk).update(requested_by=robot())
    return found


def token_of_robot(owner: Actor) -> str:
    return create_token(actor=owner, name="nightly", service_account="robot").secret


def robot() -> User:
    return User.objects.get(username="robot")


def test_its_tokens_go_on_when_the_owner_leaves(owner: Actor, root: Actor) -> None:
    secret = token_of_robot(owner)
    close_account(actor=root, user=owner.account)
    assert actor_with_token(secret).account == robot()
    assert robot().owner_left


def test_its_tokens_rest_where_that_is_set_until_it_has_another_owner(
    owner: Actor, root: Actor, settings: Any
) -> None:
    settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS = True
    secret = token_of_robot(owner)
    assert actor_with_token(secret).account == robot()
    close_account(actor=root, user=owner.account)
    with pytest.raises(TokenInvalidError):
        actor_with_token(secret)
    assign_service_account(actor=root, name="robot", owner="alice")
    assert actor_with_token(secret).account == robot()
    create_token(actor=factories.actor(robot().owner), name="own", service_account="robot")


def test_tokens_of_people_are_not_concerned(alice: Actor, settings: Any) -> None:
    settings.SUSPEND_ORPHANED_SERVICE_ACCOUNTS = True
    assert actor_with_token(factories.make_token(alice.account)).account == alice.account


def _closed_here(owner: Actor, root: Actor) -> None:
    close_account(actor=root, user=owner.account)


def _lost_by_the_directory(owner: Actor, root: Actor) -> None:
    Identity.objects.create(
        user=owner.account, issuer="ldap:dc=example", subject="owen", directory="ldap"
    )
    welcome(Person(directory="ldap", issuer="ldap:dc=example", subject="owen", username="owen"))
    lost(Identity.objects.get(subject="owen"))


def _closed_by_the_form(owner: Actor, root: Actor) -> None:
    client = Client()
    client.force_login(root.account)
    account = owner.account
    inline = {f"identities-{name}_FORMS": "0" for name in ("TOTAL", "INITIAL")}
    joined = {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    form = {"username": "owen", "email": account.email, **inline, **joined}
    answer = client.post(f"/admin/accounts/user/{account.pk}/change/", form)
    assert answer.status_code == 302, answer.content


@pytest.mark.parametrize("leave", [_closed_here, _lost_by_the_directory, _closed_by_the_form])
def test_who_runs_the_namespace_is_told_however_the_owner_left(
    owner: Actor, root: Actor, research: Namespace, settings: Any, leave: Any
) -> None:
    settings.EMAIL_URL = "smtp://127.0.0.1"
    other = factories.make_namespace("other", olga=Role.ADMIN)
    for namespace in (research, other):
        Webhook.objects.create(namespace=namespace, url="https://hook.example.org")
    leave(owner, root)
    assert not User.objects.get(username="owen").is_active
    reported = Notification.objects.filter(event="service-account.owner-left")
    assert set(reported.values_list("email", flat=True)) - {""} == {
        "dora@example.org",
        "root@example.org",
    }
    assert [one.webhook.namespace for one in reported.exclude(webhook=None)] == [research]
    assert "robot" in reported[0].subject
    assert "owen owned the service account robot" in reported[0].content["text"]
    event = AuditEvent.objects.get(action="account.owner-left")
    assert (event.namespace, event.target) == (research, "robot")
    closed = AuditEvent.objects.filter(action__in=("account.close", "account.change")).latest("pk")
    assert closed.target == "owen"


def test_an_account_without_a_role_is_told_of_to_those_who_run_the_installation(
    root: Actor, settings: Any
) -> None:
    settings.EMAIL_URL = "smtp://127.0.0.1"
    owen = factories.actor(factories.make_user("owen", superuser=True))
    create_service_account(actor=owen, name="robot")
    close_account(actor=root, user=owen.account)
    assert Notification.objects.get().email == "root@example.org"


def test_who_gives_roles_where_it_has_one_sees_whose_owner_left(
    owner: Actor, root: Actor, dora: Actor, alice: Actor
) -> None:
    requested = (
        "{ serviceAccounts(ownerLeft: true) { edges { node { username owner ownerLeft } } } }"
    )
    assert ask(dora, requested)["serviceAccounts"]["edges"] == []
    close_account(actor=root, user=owner.account)
    node = {"username": "robot", "owner": "owen", "ownerLeft": True}
    for actor in (dora, root):
        assert ask(actor, requested)["serviceAccounts"]["edges"] == [{"node": node}]
    assert not service_accounts(alice).exists()
    client = Client()
    client.force_login(root.account)
    shown = client.get("/admin/accounts/user/", {"owner": "left"}).content.decode()
    assert "of owen, who has left" in shown
    assert "dora@example.org" not in shown


def test_only_administrators_give_it_another_owner_and_only_a_person(
    owner: Actor, root: Actor, dora: Actor
) -> None:
    with pytest.raises(AccessDeniedError):
        assign_service_account(actor=dora, name="robot", owner="dora")
    for name, to in (("dora", "alice"), ("robot", "robot"), ("robot", "owen")):
        close_account(actor=root, user=owner.account) if to == "owen" else None
        with pytest.raises(NotFoundError):
            assign_service_account(actor=root, name=name, owner=to)
