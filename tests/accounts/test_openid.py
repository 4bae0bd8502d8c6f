"""A certified OpenID Connect provider: sign-in with PKCE, groups, several clients, who is gone."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client

from accounts.directories import check_people
from accounts.models import Identity, User
from accounts.providers import Providers
from tests import factories
from tests.services import OpenIdService
from tests.services.oidc import PEOPLE

pytestmark = [pytest.mark.django_db, pytest.mark.component("nodejs")]


@pytest.fixture
def provider(openid_service: OpenIdService, settings: Any) -> OpenIdService:
    """Two clients of it are configured here: `a`, which may be asked again, and `b`."""
    openid_service.set_people(PEOPLE)
    entries = [
        openid_service.entry("a", "one", name="Example University", sync=True),
        openid_service.entry("b", "two"),
    ]
    providers = Providers.read(openid=json.dumps(entries), saml="")
    settings.SIGN_IN_PROVIDERS = providers
    settings.SOCIALACCOUNT_PROVIDERS = providers.django_settings
    settings.DIRECTORIES = [("accounts.openid_directory.Directory", {"name": "a"})]
    settings.DIRECTORY_INTERVAL = timedelta(0)
    return openid_service


def sign_in(provider: OpenIdService, name: str, *, by: str = "a") -> tuple[Client, Any]:
    """The browser afterwards, and the answer to its return."""
    browser = Client(headers={"Accept": "text/html"})
    started = browser.get(f"/accounts/oidc/{by}/login/?next=/graphql")
    assert started.status_code == 302
    back = provider.sign_in(started.headers["Location"], name)
    return browser, browser.get(back)


def groups(name: str) -> set[str]:
    return set(User.objects.get(username=name).groups.values_list("name", flat=True))


def test_the_sign_in_page_offers_each_provider(provider: OpenIdService) -> None:
    page = Client().get("/login/").content.decode()
    assert "Sign in with Example University" in page
    assert "Sign in with b" in page
    assert 'href="/accounts/oidc/a/login/' in page


def test_a_person_signs_in_with_pkce_and_groups(provider: OpenIdService) -> None:
    started = Client().get("/accounts/oidc/a/login/").headers["Location"]
    requested = parse_qs(urlsplit(started).query)
    assert requested["code_challenge_method"] == ["S256"]
    browser, answer = sign_in(provider, "erin")
    assert answer.headers["Location"] == "/graphql"
    assert browser.get("/api/whoami").json()["username"] == "erin"
    erin = User.objects.get()
    assert (erin.email, erin.first_name, erin.last_name) == ("erin@example.org", "Erin", "Example")
    assert not erin.has_usable_password()
    assert groups("erin") == {"a:physics", "a:science"}
    identity = Identity.objects.get()
    assert (identity.issuer, identity.subject) == (provider.url, "erin")


def test_two_clients_of_one_issuer_know_the_same_person(provider: OpenIdService) -> None:
    sign_in(provider, "erin", by="a")
    sign_in(provider, "erin", by="b")
    assert User.objects.count() == 1
    assert groups("erin") == {"a:physics", "a:science", "b:physics", "b:science"}


def test_a_matching_name_is_refused_and_a_matching_address_opens_nothing(
    provider: OpenIdService,
) -> None:
    factories.make_user("erin")
    _, answer = sign_in(provider, "erin")
    assert answer.status_code == 409
    assert "belongs to another account" in answer.content.decode()
    User.objects.update(username="other", email="frank@example.org")
    browser, _ = sign_in(provider, "frank")
    assert browser.get("/api/whoami").json()["username"] == "frank"
    assert User.objects.count() == 2


def test_an_identity_cannot_be_connected_by_its_owner(provider: OpenIdService) -> None:
    mallory = factories.make_user("mallory")
    browser = Client(headers={"Accept": "text/html"})
    browser.force_login(mallory)
    started = browser.get("/accounts/oidc/a/login/?process=connect")
    back = provider.sign_in(started.headers["Location"], "erin")
    assert browser.get(back).status_code == 403
    assert not Identity.objects.exists()


def test_an_answer_that_nobody_asked_for_signs_nobody_in(provider: OpenIdService) -> None:
    started = Client().get("/accounts/oidc/a/login/").headers["Location"]
    back = provider.sign_in(started, "frank")
    stranger = Client()
    stranger.get(back)
    assert not stranger.get("/api/whoami").json()["signed_in"]


def test_a_closed_account_stays_out(provider: OpenIdService) -> None:
    sign_in(provider, "erin")
    User.objects.update(is_active=False)
    _, answer = sign_in(provider, "erin")
    assert answer.status_code == 403
    assert "is closed" in answer.content.decode()


def test_groups_follow_between_sign_ins_and_who_is_gone_is_closed(
    provider: OpenIdService,
) -> None:
    browser, _ = sign_in(provider, "erin")
    provider.set_people({**PEOPLE, "erin": {**PEOPLE["erin"], "groups": ["chemistry"]}})
    check_people()
    assert groups("erin") == {"a:chemistry"}
    check_people()  # the refresh token may be another one each time
    assert User.objects.get().is_active
    provider.set_people({})
    check_people()
    assert not User.objects.get().is_active
    assert not browser.get("/api/whoami").json()["signed_in"]


def test_a_provider_that_is_down_closes_nobody(provider: OpenIdService) -> None:
    sign_in(provider, "erin")
    provider.service.stop()
    try:
        check_people()
        assert User.objects.get().is_active
        answer = Client().get("/accounts/oidc/a/login/", headers={"Accept": "text/html"})
        assert answer.status_code == 503
        assert "does not respond" in answer.content.decode()
    finally:
        provider.service.start()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("{}", "a list of objects"),
        ('[{"id": "a", "server_url": "u", "client_id": "c", "colour": "red"}]', "colour"),
        ('[{"id": "A b", "server_url": "u", "client_id": "c"}]', "a: up|A b: id"),
        ('[{"id": "a"}]', "server_url"),
        ('[{"id": "a", "server_url": "u", "client_id": 7}]', "client_id must be a str"),
        (json.dumps([{"id": "a", "server_url": "u", "client_id": "c"}] * 2), "two are 'a'"),
    ],
)
def test_a_setting_that_cannot_be_read_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=why) as caught:
        Providers.read(openid=text, saml="")
    assert "CONDASTORE_OIDC_PROVIDERS" in str(caught.value)
