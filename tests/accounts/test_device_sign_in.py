"""A command line waits for its person to approve it in the browser, and gets one token, once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.models import ApiToken, DeviceSignIn, User
from environments.models import AuditEvent
from tests import factories

pytestmark = pytest.mark.django_db


def start(name: str = "login-laptop-1") -> dict[str, Any]:
    answer = Client().post("/api/device", {"name": name}, content_type="application/json")
    assert answer.status_code == 200
    started: dict[str, Any] = answer.json()
    return started


def collect(started: dict[str, Any]) -> Any:
    DeviceSignIn.objects.update(asked_at=None)
    body = {"device_code": started["device_code"]}
    return Client().post("/api/device/token", body, content_type="application/json")


def browser(actor: Actor) -> Client:
    client = Client(headers={"Accept": "text/html"})
    client.force_login(actor.account)
    return client


def decide(client: Client, started: dict[str, Any], decision: str = "approve") -> Any:
    return client.post("/device/", {"code": started["user_code"], "decision": decision})


def test_a_command_line_gets_a_token_of_who_approves_it_and_only_once(alice: Actor) -> None:
    started = start()
    assert collect(started).json() == {"error": "authorization_pending"}
    page = browser(alice).get(started["verification_uri_complete"])
    assert "login-laptop-1" in page.content.decode()
    assert collect(started).json() == {"error": "authorization_pending"}  # a look approves nothing
    assert "is signed in as you" in decide(browser(alice), started).content.decode()
    created = collect(started)
    assert created.status_code == 201
    headers = {"Authorization": f"Bearer {created.json()['token']}"}
    assert Client().get("/api/whoami", headers=headers).json()["username"] == "alice"
    assert collect(started).json() == {"error": "expired_token"}
    assert ApiToken.objects.count() == 1
    assert AuditEvent.objects.filter(action="device.approve", username="alice").exists()


def test_a_code_is_read_as_people_type_it(alice: Actor) -> None:
    started = start()
    typed = started["user_code"].lower().replace("-", " ")
    assert "login-laptop-1" in browser(alice).get("/device/", {"code": typed}).content.decode()


def test_a_denied_command_line_gets_nothing(alice: Actor) -> None:
    started = start()
    decide(browser(alice), started, "deny")
    assert collect(started).json() == {"error": "access_denied"}
    assert "No sign-in request has" in decide(browser(alice), started).content.decode()
    assert collect(started).json() == {"error": "access_denied"}


def test_a_code_expires(alice: Actor) -> None:
    started = start()
    DeviceSignIn.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "No sign-in request has" in decide(browser(alice), started).content.decode()
    assert collect(started).json() == {"error": "expired_token"}


def test_who_was_closed_meanwhile_gives_no_token(alice: Actor) -> None:
    started = start()
    decide(browser(alice), started)
    User.objects.filter(username="alice").update(is_active=False)
    assert collect(started).json() == {"error": "expired_token"}
    assert not ApiToken.objects.exists()


def test_one_who_asks_too_often_is_told(alice: Actor) -> None:
    started = start()
    DeviceSignIn.objects.update(asked_at=timezone.now() + timedelta(minutes=1))
    body = {"device_code": started["device_code"]}
    answer = Client().post("/api/device/token", body, content_type="application/json")
    assert answer.json() == {"error": "slow_down"}


def test_only_a_person_at_a_browser_approves(alice: Actor) -> None:
    started = start()
    signed_out = decide(Client(), started)
    assert signed_out.headers["Location"].startswith("/login/?next=/device/")
    secret = factories.make_token(alice.account)
    headers = {"Authorization": f"Bearer {secret}", "Accept": "text/html"}
    for answer in (
        Client(headers=headers).get(started["verification_uri_complete"]),
        decide(Client(headers=headers), started),
    ):
        assert answer.status_code in {302, 403}
    forged = Client(enforce_csrf_checks=True)
    forged.force_login(alice.account)
    assert decide(forged, started).status_code == 403
    assert collect(started).json() == {"error": "authorization_pending"}


def test_codes_cannot_be_guessed_for_long(alice: Actor) -> None:
    client = browser(alice)
    answers = [client.get("/device/", {"code": "BBBB-BBBB"}).status_code for _ in range(22)]
    assert answers[0] == 200
    assert answers[-1] == 429


def test_the_code_of_the_page_is_shown_as_text(alice: Actor) -> None:
    text = browser(alice).get("/device/", {"code": "<script>"}).content.decode()
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


def test_the_server_says_which_way_it_prefers(settings: Any) -> None:
    assert Client().get("/api/sign-in").json()["preferred"] == "password"
    settings.LOCAL_ACCOUNTS = False
    ways = Client().get("/api/sign-in").json()
    assert ways == {"password": False, "browser": True, "preferred": "browser"}
