"""Token page: create, show once, revoke; nobody sees or revokes the tokens of others."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from accounts.access import Actor
from accounts.models import ApiToken, User
from accounts.roles import Role
from environments.models import Environment
from environments.operations.tokens import create_token

PAGE = "/account/tokens/"
HTML = {"Accept": "text/html"}


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


def test_a_new_token_is_shown_once_and_works(alice: Actor, environment: Environment) -> None:
    client = signed_in(alice)
    form = {"name": "ci", "role": "viewer", "days": "30", "namespaces": "research"}
    text = client.post(PAGE, form).content.decode()
    found = re.search(r">(cst-\w+|cs_\w+|[\w-]{40,})</code>", text)
    assert found is not None
    who = Client().get("/api/whoami", headers={"Authorization": f"Bearer {found[1]}"})
    assert who.json()["username"] == "alice"
    token = ApiToken.objects.get()
    assert (token.role, token.namespaces) == (Role.VIEWER.value, ["research"])
    again = client.get(PAGE).content.decode()
    assert found[1] not in again
    assert "ci" in again


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "<b>"}, "token"),
        ({"days": "x"}, "days"),
        ({"days": "99999"}, "valid for 1 to"),
        ({"role": "root"}, "rights"),
        ({"namespaces": "secret"}, "There is no namespace"),
    ],
)
def test_a_form_that_is_not_valid_is_explained_and_kept(
    alice: Actor, environment: Environment, changes: dict[str, str], said: str
) -> None:
    form = {"name": "ci", "role": "", "days": "30", "namespaces": ""} | changes
    answer = signed_in(alice).post(PAGE, form)
    text = answer.content.decode()
    assert answer.status_code == 400
    assert said in text
    assert "<b>" not in text
    assert not ApiToken.objects.exists()


def test_a_token_is_revoked_after_a_confirmation(alice: Actor) -> None:
    created = create_token(actor=alice, name="laptop")
    client = signed_in(alice)
    page = f"{PAGE}{created.token.pk}/revoke/"
    assert "It was never used." in client.get(page).content.decode()
    assert ApiToken.objects.get().revoked_at is None
    assert client.post(page)["Location"] == PAGE
    assert ApiToken.objects.get().revoked_at is not None
    assert "You have no tokens" in client.get(PAGE).content.decode()


def test_nobody_sees_or_revokes_the_tokens_of_others(alice: Actor, bob: Actor, root: Actor) -> None:
    created = create_token(actor=alice, name="laptop")
    for actor in (bob, root):
        client = signed_in(actor)
        assert "You have no tokens" in client.get(PAGE).content.decode()
        page = f"{PAGE}{created.token.pk}/revoke/"
        assert client.get(page, headers=HTML).status_code == 404
        assert client.post(page, headers=HTML).status_code == 404
    assert ApiToken.objects.get().revoked_at is None


def test_owners_see_the_tokens_of_their_service_accounts(alice: Actor, db: None) -> None:
    User.objects.create(username="robot", is_service=True, owner=alice.account)
    create_token(actor=alice, name="nightly", service_account="robot")
    text = signed_in(alice).get(PAGE).content.decode()
    assert "nightly" in text
    assert "for robot" in text


def test_the_page_asks_for_the_sign_in(db: None) -> None:
    for page in (PAGE, f"{PAGE}1/revoke/"):
        assert Client().get(page)["Location"] == f"/login/?next={page}"


def test_forms_of_other_sites_create_no_token(alice: Actor) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice.account)
    answer = client.post(PAGE, {"name": "ci", "role": "", "days": "30"}, headers=HTML)
    assert answer.status_code == 403
    assert not ApiToken.objects.exists()
