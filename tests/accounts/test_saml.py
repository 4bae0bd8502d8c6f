"""A SAML identity provider of other code than ours: who signs in, and which answers are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client

from accounts.models import Identity, User
from accounts.providers import Providers
from tests import factories
from tests.services import SamlService
from tests.services.saml import ENTITY_ID

pytestmark = [pytest.mark.django_db, pytest.mark.component("xmlsec1")]
HOST = "condastore.example.org"


@pytest.fixture
def provider(saml_service: SamlService, settings: Any) -> SamlService:
    """It and we know each other."""
    entry = {
        "id": "campus",
        "name": "Campus",
        "entity_id": ENTITY_ID,
        "metadata_url": saml_service.metadata_url,
        "username_attribute": "urn:mace:dir:attribute-def:uid",
        "email_attribute": "urn:mace:dir:attribute-def:email",
    }
    providers = Providers.read(openid="", saml=json.dumps([entry]))
    settings.SIGN_IN_PROVIDERS = providers
    settings.SOCIALACCOUNT_PROVIDERS = providers.django_settings
    settings.ALLOWED_HOSTS = [HOST]
    metadata = new_browser().get("/accounts/saml/campus/metadata/")
    assert metadata.status_code == 200
    saml_service.know(metadata.content)
    return saml_service


def new_browser() -> Client:
    return Client(headers={"Accept": "text/html", "Host": HOST})


def sign_in(provider: SamlService, name: str, **how: str) -> tuple[Client, Any]:
    browser = new_browser()
    started = browser.get("/accounts/saml/campus/login/?next=/graphql")
    target, form = provider.sign_in(started.headers["Location"], name, **how)
    assert target == f"http://{HOST}/accounts/saml/campus/acs/"
    posted = browser.post("/accounts/saml/campus/acs/", form)
    return browser, browser.get(posted.headers["Location"])


def who(browser: Client) -> str | None:
    name: str | None = browser.get("/api/whoami").json()["username"]
    return name


def test_a_person_signs_in_with_groups(provider: SamlService) -> None:
    browser, answer = sign_in(provider, "erin")
    assert answer.headers["Location"] == "/graphql"
    assert who(browser) == "erin"
    erin = User.objects.get()
    names = set(erin.groups.values_list("name", flat=True))
    assert names == {"campus:physics", "campus:science"}
    assert erin.email == "erin@example.org"
    identity = Identity.objects.get()
    assert (identity.issuer, identity.subject) == (ENTITY_ID, "id-of-erin")
    sign_in(provider, "erin")
    assert User.objects.count() == 1


def test_an_answer_signed_with_sha1_is_refused(provider: SamlService) -> None:
    browser, answer = sign_in(provider, "erin", sha1="yes")
    assert "is not valid" in answer.content.decode()
    assert who(browser) is None
    assert not User.objects.exists()


def test_an_answer_that_was_changed_is_refused(provider: SamlService) -> None:
    browser, answer = sign_in(provider, "erin", other="frank")
    assert "is not valid" in answer.content.decode()
    assert who(browser) is None


def test_an_answer_is_taken_once_and_from_who_asked(provider: SamlService) -> None:
    browser = new_browser()
    started = browser.get("/accounts/saml/campus/login/")
    _, form = provider.sign_in(started.headers["Location"], "erin")
    tried = []
    for other in (new_browser(), browser, browser):
        posted = other.post("/accounts/saml/campus/acs/", form)
        other.get(posted.headers["Location"])
        tried.append(who(other))
        other.post("/logout/")
    assert tried == [None, "erin", None]


def test_a_matching_name_takes_no_account_over(provider: SamlService) -> None:
    factories.make_user("erin")
    _, answer = sign_in(provider, "erin")
    assert answer.status_code == 409


def test_a_provider_without_a_key_is_refused() -> None:
    entry = {"id": "campus", "entity_id": ENTITY_ID, "sso_url": "https://idp.example.org"}
    with pytest.raises(ImproperlyConfigured, match="metadata_url"):
        Providers.read(openid="", saml=json.dumps([entry]))
