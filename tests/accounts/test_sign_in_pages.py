"""Pages, messages and mails of sign-in: each has our own template, and says what it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import (
    format_hotp_value,
    hotp_value,
    yield_hotp_counters_from_time,
)
from django.conf import settings
from django.template.loader import get_template
from django.test import Client
from django.urls import URLPattern, get_resolver

from accounts.models import User
from environments.models import Notification

PASSWORD = "correct horse battery"
OWN = Path(settings.TEMPLATES[0]["DIRS"][0])
#: Templates of allauth's views that a setting keeps from being rendered.
UNREACHABLE = {"socialaccount/login.html"}  # SOCIALACCOUNT_LOGIN_ON_GET
NOTICES = (
    *("account/email/password_changed", "account/email/password_reset"),
    *("account/email/password_set", "mfa/email/totp_activated", "mfa/email/totp_deactivated"),
    *("mfa/email/webauthn_added", "mfa/email/webauthn_removed"),
    "mfa/email/recovery_codes_generated",
)
MESSAGES = (
    *("account/messages/logged_in", "account/messages/logged_out"),
    *("account/messages/password_changed", "account/messages/password_set"),
    *("mfa/messages/totp_activated", "mfa/messages/totp_deactivated"),
    *("mfa/messages/webauthn_added", "mfa/messages/webauthn_removed"),
    "mfa/messages/recovery_codes_generated",
)
PAGES = {
    "/accounts/2fa/": "Second factors",
    "/accounts/2fa/totp/activate/": "Set up an authenticator app",
    "/accounts/2fa/webauthn/": "Security keys",
    "/accounts/2fa/webauthn/add/": "Add a security key",
    "/accounts/logout/": "Sign out",
    "/accounts/password/": "Change your password",
    "/accounts/reauthenticate/": "Confirm that it is you",
}


def _patterns(patterns: Any) -> Iterator[URLPattern]:
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            yield pattern
        else:
            yield from _patterns(pattern.url_patterns)


def _templates_of_views() -> set[str]:
    views = [
        getattr(pattern.callback, "view_class", None)
        for pattern in _patterns(get_resolver().url_patterns)
    ]
    return {
        view.template_name
        for view in views
        if view is not None
        and any(base.__module__.startswith("allauth.") for base in view.__mro__)
        and getattr(view, "template_name", None)
    }


def test_each_page_of_allauth_that_has_a_url_is_one_of_our_templates() -> None:
    names = _templates_of_views() - UNREACHABLE
    assert "mfa/totp/activate_form.html" in names
    assert {name for name in names if OWN not in _file(name).parents} == set()


@pytest.mark.parametrize(
    "name",
    [
        *(f"{notice}_{part}.txt" for notice in NOTICES for part in ("subject", "message")),
        *(f"{message}.txt" for message in MESSAGES),
        "account/email/base_notification.txt",
    ],
)
def test_each_message_and_mail_of_allauth_is_one_of_our_templates(name: str) -> None:
    assert OWN in _file(name).parents


def _file(name: str) -> Path:
    return Path(str(get_template(name).origin))  # type: ignore[attr-defined]


@pytest.fixture
def erin(db: None) -> User:
    user = User.objects.create_user("erin", "erin@example.org", PASSWORD)
    EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=True)
    return user


@pytest.fixture
def client(erin: User) -> Client:
    browser = Client(headers={"Accept": "text/html"})
    browser.post("/login/", {"username": erin.username, "password": PASSWORD})
    browser.post("/accounts/reauthenticate/", {"password": PASSWORD})
    return browser


@pytest.mark.parametrize(("path", "title"), PAGES.items())
def test_a_page_of_sign_in_is_titled_by_what_it_does(client: Client, path: str, title: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    text = page.content.decode()
    assert re.search(rf"<h1[^>]*>{re.escape(title)}</h1>", text)
    assert f"<title>{title} · condastore</title>" in text
    for stock in ("Two-Factor", "Are you sure", "Please", "reauthenticate to"):
        assert stock not in text


def _code(secret: str) -> str:
    counter = next(iter(yield_hotp_counters_from_time()))
    code: str = format_hotp_value(hotp_value(secret, counter))
    return code


def test_an_app_is_set_up_and_removed_with_notices_by_mail(client: Client, erin: User) -> None:
    page = client.get("/accounts/2fa/totp/activate/").content.decode()
    key = re.search(r'value="([A-Z2-7]{32})"', page)
    assert key, page
    wrong = client.post("/accounts/2fa/totp/activate/", {"code": "000000"})
    assert 'role="alert"' in wrong.content.decode()
    done = client.post("/accounts/2fa/totp/activate/", {"code": _code(key[1])}, follow=True)
    text = done.content.decode()
    assert "I have stored the codes" in text
    codes = re.search(r"<textarea[^>]*>([^<]*)</textarea>", text)
    assert codes, text
    assert len(codes[1].split()) == 10
    overview = client.get("/accounts/2fa/").content.decode()
    assert "Remove the app" in overview
    assert "Unused codes: 10." in overview
    client.get("/accounts/2fa/totp/deactivate/")
    client.post("/accounts/2fa/totp/deactivate/")
    assert not Authenticator.objects.filter(user=erin, type="totp").exists()


def test_the_second_factor_is_asked_for_by_its_own_page(client: Client, erin: User) -> None:
    page = client.get("/accounts/2fa/totp/activate/").content.decode()
    key = re.search(r'value="([A-Z2-7]{32})"', page)
    assert key, page
    client.post("/accounts/2fa/totp/activate/", {"code": _code(key[1])})
    again = Client(headers={"Accept": "text/html"})
    requested = again.post("/login/", {"username": "erin", "password": PASSWORD}, follow=True)
    text = requested.content.decode()
    assert re.search(r"<h1[^>]*>Second factor</h1>", text)
    assert "Use a security key" in text
    wrong = again.post("/accounts/2fa/authenticate/", {"code": "000000"})
    assert 'role="alert"' in wrong.content.decode()


def test_a_changed_password_is_reported_by_mail_in_plain_text(
    client: Client, settings: Any
) -> None:
    settings.EMAIL_URL = "smtp://localhost"
    new = "battery horse correct <b>&"
    changed = client.post(
        "/accounts/password/",
        {"oldpassword": PASSWORD, "password1": new, "password2": new},
        headers={"User-Agent": "Browser <b>&"},
    )
    assert changed.status_code == 302
    mail = Notification.objects.get(email="erin@example.org")
    assert mail.subject == "Your password was changed"
    text = mail.content["text"]
    assert text.startswith("The password of your account was changed.\n\nIf it was not you, ")
    assert "- Browser: Browser <b>&" in text


def test_wrong_values_of_a_new_password_are_shown_at_the_fields(client: Client) -> None:
    page = client.post(
        "/accounts/password/", {"oldpassword": "no", "password1": "a", "password2": "b"}
    )
    assert page.content.decode().count('role="alert"') >= 2
