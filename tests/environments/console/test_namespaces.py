"""Namespace pages: the list, people and roles, quotas in sizes, rules in words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from accounts.access import Actor, may
from accounts.roles import Perm, Role
from environments.models import Environment, Namespace
from tests import factories

PAGE = "/namespaces/research/"
HTML = {"Accept": "text/html"}


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


@pytest.fixture
def owner(environment: Environment) -> Actor:
    owner = factories.actor(factories.make_user("owner"))
    environment.namespace.grant(Role.ADMIN, owner.account)
    return owner


def test_the_list_shows_what_one_may_see(
    bob: Actor, charlie: Actor, environment: Environment
) -> None:
    factories.make_namespace("open", public=True)
    for client, expected in (
        (signed_in(bob), ["open", "research"]),
        (signed_in(charlie), ["open"]),
        (Client(), ["open"]),
    ):
        text = client.get("/namespaces/").content.decode()
        assert re.findall(r'class="name" href="/namespaces/(\w+)/"', text) == expected
    text = signed_in(bob).get("/namespaces/?q=rese").content.decode()
    assert re.findall(r'class="name" href="/namespaces/(\w+)/"', text) == ["research"]


def test_a_namespace_shows_environments_rules_and_quotas(
    bob: Actor, environment: Environment
) -> None:
    Namespace.objects.update(max_bytes=5_000_000_000, description="<b>of us</b>")
    text = signed_in(bob).get(PAGE).content.decode()
    assert 'href="/environments/research/ml/"' in text
    assert "of 5.0 GB" in text
    assert "&lt;b&gt;of us" in text
    assert "People and roles" not in text
    assert "unlisted-packages" in text


def test_who_may_not_see_a_namespace_finds_nothing(
    charlie: Actor, environment: Environment
) -> None:
    client = signed_in(charlie)
    assert client.get(PAGE, headers=HTML).status_code == 404
    assert client.get(f"{PAGE}revoke/?user=bob", headers=HTML).status_code == 404
    assert client.post(f"{PAGE}grant/", {"user": "x"}, headers=HTML).status_code == 404
    assert Client().get(PAGE, headers=HTML)["Location"] == f"/login/?next={PAGE}"


def test_an_admin_of_the_namespace_grants_and_revokes_roles(
    owner: Actor, charlie: Actor, environment: Environment
) -> None:
    client, namespace = signed_in(owner), environment.namespace
    answer = client.post(f"{PAGE}grant/", {"user": "charlie", "role": "developer"})
    assert answer["Location"] == f"{PAGE}#people"
    assert may(charlie, Perm.BUILD, namespace)
    assert "charlie is developer of research." in client.get(PAGE).content.decode()
    assert 'revoke/?user=charlie"' in client.get(PAGE).content.decode()
    page = client.get(f"{PAGE}revoke/", {"user": "charlie"}).content.decode()
    assert "Revoke the role of charlie" in page
    assert may(charlie, Perm.BUILD, namespace)
    client.post(f"{PAGE}revoke/", {"user": "charlie"})
    assert not may(charlie, Perm.VIEW, namespace)


def test_names_without_an_account_look_like_all_others(
    owner: Actor, environment: Environment
) -> None:
    client = signed_in(owner)
    client.post(f"{PAGE}grant/", {"user": "nobody-yet", "role": "viewer"})
    client.post(f"{PAGE}grant/", {"group": "methods", "role": "approver"})
    text = client.get(PAGE).content.decode()
    assert "nobody-yet" in text
    assert 'revoke/?group=methods"' in text


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"user": "a", "group": "b", "role": "viewer"},
        {"user": "a", "role": "root"},
        {"user": "a\0", "role": "viewer"},
    ],
)
def test_a_grant_that_is_not_valid_is_explained(
    owner: Actor, environment: Environment, form: dict[str, str]
) -> None:
    answer = signed_in(owner).post(f"{PAGE}grant/", form, follow=True)
    assert "is-bad" in answer.content.decode()
    assert environment.namespace.user_grants.filter(user__username="a").count() == 0


def test_developers_cannot_change_roles(alice: Actor, environment: Environment) -> None:
    client = signed_in(alice)
    form = {"user": "charlie", "role": "viewer"}
    assert client.post(f"{PAGE}grant/", form, headers=HTML).status_code == 403
    assert client.post(f"{PAGE}revoke/", {"user": "bob"}, headers=HTML).status_code == 403
    assert client.get(f"{PAGE}revoke/", {"user": "bob"}, headers=HTML).status_code == 403


def test_pages_cost_a_constant_number_of_queries(
    owner: Actor, environment: Environment, django_assert_max_num_queries: Any
) -> None:
    client = signed_in(owner)
    for number in range(12):
        factories.make_build(factories.make_environment(environment.namespace, f"e{number}"))
        environment.namespace.grant(Role.VIEWER, factories.make_user(f"u{number}"))
        factories.make_namespace(f"n{number}", owner=Role.VIEWER)
        if number in {2, 11}:
            client.get(PAGE)
            with django_assert_max_num_queries(20):
                client.get(PAGE)
            with django_assert_max_num_queries(5):
                client.get("/namespaces/")
