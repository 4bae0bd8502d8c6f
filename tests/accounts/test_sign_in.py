"""The sign-in of everybody: limits, second factors, one way in for the admin, safe by default."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
    yield_hotp_counters_from_time,
)
from django.test import Client

from accounts.access import Actor
from accounts.authentication import actor_with_session
from accounts.models import User
from tests import factories

pytestmark = pytest.mark.django_db
PASSWORD = "a long enough one"
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def erin(db: None) -> User:
    return factories.make_user("erin", password=PASSWORD)


def browser() -> Client:
    return Client(headers={"Accept": "text/html"})


def sign_in(client: Client, name: str = "erin", password: str = PASSWORD) -> Any:
    return client.post("/login/", {"username": name, "password": password})


def token(name: str = "erin", password: str = PASSWORD) -> Any:
    body = {"username": name, "password": password}
    return Client().post("/api/token", body, content_type="application/json")


def who(client: Client) -> str | None:
    name: str | None = client.get("/api/whoami").json()["username"]
    return name


# --- limits ---------------------------------------------------------------------------------------


def test_passwords_of_one_account_cannot_be_tried_for_long_at_any_door(erin: User) -> None:
    for number in range(5):
        assert token(password=f"wrong {number}").status_code == 401
    assert (token().status_code, token().json()["code"]) == (429, "too-many-attempts")
    assert "Too many attempts" in sign_in(browser()).content.decode()
    factories.make_user("frank", password=PASSWORD)
    assert token("frank").status_code == 201


def test_one_address_cannot_try_many_accounts(db: None) -> None:
    codes = [token(f"somebody{number}", "wrong").status_code for number in range(25)]
    assert codes[0] == 401
    assert codes[-1] == 429


def test_those_who_know_their_password_are_not_limited(erin: User) -> None:
    assert {token().status_code for _ in range(12)} == {201}


# --- second factors -------------------------------------------------------------------------------


def code_of(secret: str) -> str:
    """What the app shows now."""
    counter = next(iter(yield_hotp_counters_from_time()))
    shown: str = format_hotp_value(hotp_value(secret, counter))
    return shown


@pytest.fixture
def secret(erin: User) -> str:
    """The key of erin's authenticator app."""
    created: str = generate_totp_secret()
    TOTP.activate(erin, created)
    return created


def test_a_password_is_half_of_a_sign_in_where_there_is_a_second_factor(
    erin: User, secret: str
) -> None:
    client = browser()
    half = sign_in(client)
    assert half.headers["Location"].startswith("/accounts/2fa/authenticate/")
    assert who(client) is None
    assert client.get("/admin/").status_code == 302
    client.post("/accounts/2fa/authenticate/", {"code": "000000"})
    assert who(client) is None
    client.post("/accounts/2fa/authenticate/", {"code": code_of(secret)})
    assert who(client) == "erin"


def test_a_program_with_the_password_alone_gets_no_token(erin: User, secret: str) -> None:
    answer = token()
    assert (answer.status_code, answer.json()["code"]) == (401, "second-factor-needed")


def test_the_key_of_an_authenticator_app_is_kept_encrypted(erin: User, secret: str) -> None:
    assert secret not in json.dumps(Authenticator.objects.get().data)


def test_a_recovery_code_signs_in_once(erin: User, secret: str) -> None:
    (code, *_) = RecoveryCodes.activate(erin).get_unused_codes()
    for expected in ("erin", None):
        client = browser()
        sign_in(client)
        client.post("/accounts/2fa/authenticate/", {"code": code})
        assert who(client) == expected


def test_second_factors_are_set_up_with_the_password_once_more(erin: User) -> None:
    client = browser()
    sign_in(client)
    requested = client.get("/accounts/2fa/totp/activate/")
    assert requested.headers["Location"].startswith("/accounts/reauthenticate/")
    client.post("/accounts/reauthenticate/", {"password": PASSWORD})
    page = client.get("/accounts/2fa/totp/activate/").content.decode()
    key = re.search(r'value="([A-Z2-7]{32})"', page)
    assert key, page
    client.post("/accounts/2fa/totp/activate/", {"code": code_of(key[1])})
    assert Authenticator.objects.filter(user=erin, type="totp").exists()
    assert client.get("/accounts/2fa/").status_code == 200
    assert client.get("/accounts/2fa/webauthn/add/").status_code == 200


def test_an_administrator_does_nothing_before_a_second_factor_where_it_is_required(
    settings: Any,
) -> None:
    settings.REQUIRE_SECOND_FACTOR = True
    root = factories.make_user("root", superuser=True, password=PASSWORD)
    client = browser()
    assert sign_in(client, "root").status_code == 302
    for path in ("/", "/admin/", "/graphql"):
        assert client.get(path).headers["Location"] == "/accounts/2fa/"
    requested = client.post("/graphql", {"query": "{ me { username } }"}, "application/json")
    assert (requested.status_code, requested.json()["code"]) == (401, "second-factor-needed")
    assert token("root").json()["code"] == "second-factor-needed"
    assert client.get("/accounts/2fa/").status_code == 200
    key = client.cookies[settings.SESSION_COOKIE_NAME].value
    assert not actor_with_session(key).signed_in  # by WebSocket neither
    TOTP.activate(root, generate_totp_secret())
    assert actor_with_session(key).signed_in
    assert client.get("/").status_code == 200


def test_who_runs_nothing_needs_no_second_factor(erin: User, settings: Any) -> None:
    settings.REQUIRE_SECOND_FACTOR = True
    client = browser()
    sign_in(client)
    assert who(client) == "erin"


# --- one way in -----------------------------------------------------------------------------------


def test_the_admin_has_no_sign_in_of_its_own(root: Actor) -> None:
    root.account.set_password(PASSWORD)
    root.account.save()
    client = browser()
    assert client.get("/admin/login/").headers["Location"].startswith("/login/")
    client.post("/admin/login/", {"username": "root", "password": PASSWORD})
    assert who(client) is None


@pytest.mark.parametrize(
    "path",
    ["/accounts/signup/", "/accounts/email/", "/accounts/3rdparty/"],
)
def test_nobody_makes_an_account_or_address_by_themselves(erin: User, path: str) -> None:
    client = browser()
    assert client.get(path)["Location"] == f"/login/?next={path}"  # as for any unknown address
    sign_in(client)
    assert client.get(path).status_code == 404
    assert client.post(path, {"username": "x", "email": "x@example.org"}).status_code == 404


def test_a_password_is_changed_with_the_old_one_and_by_the_rules(erin: User) -> None:
    client, other = browser(), browser()
    sign_in(client)
    sign_in(other)

    def change(old: str, new: str) -> Any:
        form = {"oldpassword": old, "password1": new, "password2": new}
        return client.post("/accounts/password/", form)

    better = secrets.token_urlsafe(16)
    assert change("wrong", better).status_code == 200
    assert "too short" in change(PASSWORD, "short-one").content.decode()
    assert change(PASSWORD, better).status_code == 302
    assert token(password=better).status_code == 201
    assert who(client) == "erin"
    assert who(other) is None


def test_without_local_accounts_no_password_is_asked_for(erin: User, settings: Any) -> None:
    settings.LOCAL_ACCOUNTS = False
    assert token().status_code == 401
    client = browser()
    sign_in(client)
    assert who(client) is None


# --- what browsers receive -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/login/", "/graphql", "/nowhere", "/device/"])
def test_a_page_runs_nothing_but_our_own_files(db: None, path: str) -> None:
    answer = browser().get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    text = answer.content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)", text)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text)


def test_djangos_check_of_a_deployment_is_clean() -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "CONDASTORE_DATA": os.environ["CONDASTORE_DATA"],
        "CONDASTORE_SECRET_KEY": secrets.token_urlsafe(60),
        "CONDASTORE_BEHIND_PROXY": "true",
        "CONDASTORE_PUBLIC_URL": "https://condastore.example.org",
        "CONDASTORE_ALLOWED_HOSTS": "condastore.example.org",
    }
    ended = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "INFO"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "no issues" in ended.stdout


def test_what_is_not_configured_is_not_imported() -> None:
    code = "import condastore.urls, sys; print([m for m in sys.modules if m in UNWANTED])"
    unwanted = {"ldap", "django_auth_ldap", "onelogin", "saml2", "xmlsec", "lxml", "qrcode"}
    script = f"import django; django.setup(); UNWANTED = {unwanted!r}; {code}"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env={
            "PATH": os.environ["PATH"],
            "CONDASTORE_DATA": os.environ["CONDASTORE_DATA"],
            "DJANGO_SETTINGS_MODULE": "condastore.settings",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"
