"""Guessing passwords is bounded, locks nobody out, and a forgotten password is replaced safely."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.models import DeviceSignIn, Identity, User
from environments.jobs import notification_delivery
from environments.models import AuditEvent, Notification
from tests import factories

pytestmark = pytest.mark.django_db
PASSWORD, BETTER = "a long enough one", "another long enough one"
ATTACKER, HOME, CAFE = "203.0.113.66", "198.51.100.7", "192.0.2.9"


@pytest.fixture
def erin(db: None) -> User:
    return factories.make_user("erin", password=PASSWORD)


def browser(address: str = HOME, **headers: str) -> Client:
    return Client(headers={"Accept": "text/html", **headers}, REMOTE_ADDR=address)


def sign_in(client: Client, password: str = PASSWORD, name: str = "erin") -> bool:
    answer = client.post("/login/", {"username": name, "password": password})
    assert answer.status_code in {200, 302}
    return bool(answer.status_code == 302)


def token(address: str, password: str = PASSWORD, name: str = "erin", **headers: str) -> int:
    body = {"username": name, "password": password}
    client = Client(REMOTE_ADDR=address, headers=headers)
    status: int = client.post("/api/token", body, content_type="application/json").status_code
    return status


# --- guessing -------------------------------------------------------------------------------------


def test_one_address_that_guesses_locks_only_itself_out(erin: User) -> None:
    assert [token(ATTACKER, f"wrong {number}") for number in range(7)] == [401] * 5 + [429] * 2
    assert token(ATTACKER) == 429
    assert token(HOME) == 201
    assert sign_in(browser(CAFE))


def test_guesses_from_many_addresses_are_bounded_and_known_places_stay_open(
    erin: User, settings: Any
) -> None:
    settings.SIGN_IN_LIMITS = settings.SIGN_IN_LIMITS | {"account": "6/h/key"}
    known = browser(HOME)
    assert sign_in(known)
    known.post("/logout/")
    guesses = [token(f"203.0.113.{number}", "wrong") for number in range(9)]
    assert guesses == [401] * 6 + [429] * 3
    assert token(CAFE) == 429  # an address and a program that nobody has seen
    assert token(HOME) == 201  # the address of an earlier sign-in
    known.defaults["REMOTE_ADDR"] = CAFE
    assert sign_in(known)  # the browser of an earlier sign-in, wherever it is
    factories.make_user("frank", password=PASSWORD)
    assert token("203.0.113.1", name="frank") == 201


def test_one_address_alone_cannot_use_up_the_limit_of_an_account(settings: Any) -> None:
    def amount(limit: str, duration: str) -> int:
        found = re.search(rf"(\d+)/{duration}/key", settings.SIGN_IN_LIMITS[limit])
        assert found
        return int(found[1])

    assert amount("pair", "h") * 5 <= amount("account", "h")


def test_the_cookie_of_ones_own_account_opens_no_other(erin: User, settings: Any) -> None:
    settings.SIGN_IN_LIMITS = settings.SIGN_IN_LIMITS | {"account": "3/h/key"}
    factories.make_user("mallory", password=PASSWORD)
    client = browser(ATTACKER)
    assert sign_in(client, name="mallory")
    client.post("/logout/")
    assert not any(sign_in(client, f"wrong {number}") for number in range(3))
    assert not sign_in(client)
    forged = browser(CAFE)
    forged.cookies[settings.DEVICE_COOKIE_NAME] = '{"erin":"x"}'
    assert not sign_in(forged)


def test_a_browser_of_one_account_is_not_known_to_one_with_a_similar_name(settings: Any) -> None:
    settings.SIGN_IN_LIMITS = settings.SIGN_IN_LIMITS | {"account": "2/h/key"}
    for name in ("strasse", "straße"):
        factories.make_user(name, password=PASSWORD)
    client = browser(ATTACKER)
    assert sign_in(client, name="straße")
    client.post("/logout/")
    assert not any(sign_in(client, "wrong", "strasse") for _ in range(2))
    assert not sign_in(client, name="strasse"), "the account's limit holds for this browser"
    assert sign_in(client, name="straße"), "its own account still knows it"


def test_a_known_browser_cannot_guess_for_long_either(erin: User) -> None:
    client = browser()
    assert sign_in(client)
    client.post("/logout/")
    assert not any(sign_in(client, f"wrong {number}") for number in range(5))
    assert not sign_in(client)
    assert sign_in(browser(CAFE))


def test_other_spellings_of_a_name_are_no_new_account_to_guess_at(erin: User) -> None:
    for name in ("erin", "ERIN", " erin", "Erin ", "\uff45\uff52\uff49\uff4e"):
        assert token(ATTACKER, "wrong", name) == 401
    assert token(ATTACKER) == 429


def test_nobody_gets_new_addresses_by_a_header(erin: User, settings: Any) -> None:
    spoofed = [f"198.51.100.{number}, {ATTACKER}" for number in range(6)]
    settings.BEHIND_PROXY = True
    answers = [token("127.0.0.1", "wrong", **{"X-Forwarded-For": one}) for one in spoofed]
    assert answers == [401] * 5 + [429]
    assert token("127.0.0.1", **{"X-Forwarded-For": f"{ATTACKER}, {HOME}"}) == 201
    settings.BEHIND_PROXY = False
    assert token(ATTACKER, **{"X-Forwarded-For": CAFE}) == 429


def test_a_name_that_nobody_has_is_answered_as_another(erin: User) -> None:
    for name in ("erin", "nobody"):
        answers = [token(ATTACKER if name == "erin" else CAFE, "wrong", name) for _ in range(6)]
        assert answers == [401] * 5 + [429]


# --- forgotten passwords --------------------------------------------------------------------------


@pytest.fixture
def mails(settings: Any) -> None:
    settings.EMAIL_URL = "smtp://127.0.0.1:9"
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    settings.PUBLIC_URL = "https://store.example.org"


def ask(email: str, **headers: str) -> Any:
    return browser(**headers).post("/accounts/password/reset/", {"email": email})


def delivered() -> list[str]:
    """The texts of the mails that are delivered now."""
    mail.outbox.clear()
    for message in Notification.objects.filter(delivered_at=None).order_by("pk"):
        notification_delivery.deliver(message.pk)
    return [str(one.body) for one in mail.outbox]


def link_in(text: str) -> str:
    found = re.search(r"https://store\.example\.org(/accounts/password/reset/key/\S+)", text)
    assert found, text
    return found[1]


def use(link: str, password: str = BETTER, client: Client | None = None) -> bool:
    """Follow the link, and set a password; False where it is not valid."""
    client = client or browser(CAFE)
    page = client.get(link, follow=True)
    if "not valid" in page.content.decode():
        return False
    path = page.request["PATH_INFO"]
    answer = client.post(path, {"password1": password, "password2": password})
    return bool(answer.status_code == 302)


def test_a_link_by_mail_sets_a_password_once(erin: User, mails: None) -> None:
    old = browser()
    assert sign_in(old)
    secret = factories.make_token(erin)
    waiting = DeviceSignIn.objects.create(
        digest="d", user_code="c", name="n", expires_at=timezone.now(), approved_by=erin
    )
    assert ask("ERIN@example.org").headers["Location"] == "/accounts/password/reset/done/"
    (text,) = delivered()
    link = link_in(text)
    assert not use(link, "short")
    assert use(link)
    assert not use(link)
    assert token(CAFE) == 401
    assert token(CAFE, BETTER) == 201
    assert old.get("/api/whoami").json()["username"] is None
    assert not DeviceSignIn.objects.filter(pk=waiting.pk).exists()
    headers = {"Authorization": f"Bearer {secret}"}
    assert Client().get("/api/whoami", headers=headers).json()["username"] == "erin"
    assert AuditEvent.objects.filter(action="account.password", username="erin").exists()
    (notice,) = delivered()
    assert "was reset by a link" in notice
    assert CAFE in notice


def test_no_link_is_stored_and_none_leads_where_the_request_said(
    erin: User, mails: None, settings: Any
) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    ask(erin.email, Host="evil.example.org")
    assert "reset/key" not in str(list(Notification.objects.values()))
    (text,) = delivered()
    assert link_in(text)
    assert "evil" not in text


def test_nobody_learns_who_has_an_account(erin: User, mails: None) -> None:
    known, unknown = ask("erin@example.org"), ask("nobody@example.org")
    assert (known.status_code, known.headers["Location"]) == (
        unknown.status_code,
        unknown.headers["Location"],
    )
    assert Notification.objects.count() == 2  # the same work
    assert len(delivered()) == 1
    assert not Notification.objects.filter(delivered_at=None).exists()


def test_only_accounts_with_a_password_of_ours_get_a_link(
    erin: User, mails: None, settings: Any
) -> None:
    erin.set_unusable_password()
    erin.save()
    Identity.objects.create(user=erin, issuer="ldap:x", subject="1", directory="ldap")
    service = factories.make_user("robot")
    User.objects.filter(pk=service.pk).update(is_service=True)
    closed = factories.make_user("closed", password=PASSWORD)
    User.objects.filter(pk=closed.pk).update(is_active=False)
    for name in ("erin", "robot", "closed"):
        ask(f"{name}@example.org")
    assert delivered() == []
    frank = factories.make_user("frank")  # an administrator made the account without a password
    ask(frank.email)
    (text,) = delivered()
    settings.LOCAL_ACCOUNTS = False
    assert not use(link_in(text))
    settings.LOCAL_ACCOUNTS = True
    assert use(link_in(text))


def test_a_link_ends_with_its_time_and_is_bound_to_its_account(
    erin: User, mails: None, settings: Any
) -> None:
    frank = factories.make_user("frank", password=PASSWORD)
    ask(erin.email)
    (text,) = delivered()
    link = link_in(text)
    assert not use(link.replace(f"key/{_number(erin)}-", f"key/{_number(frank)}-"))
    assert not use(link[:-3] + "x/")
    settings.PASSWORD_RESET_TIMEOUT = -1
    assert not use(link)
    settings.PASSWORD_RESET_TIMEOUT = 3600
    User.objects.filter(pk=erin.pk).update(is_active=False)
    assert not use(link)
    User.objects.filter(pk=erin.pk).update(is_active=True)
    assert use(link)


def _number(user: User) -> str:
    from allauth.account.utils import user_pk_to_url_str

    return str(user_pk_to_url_str(user))


def test_mails_cannot_be_asked_for_without_end(erin: User, mails: None) -> None:
    statuses = [ask(erin.email).status_code for _ in range(5)]
    assert statuses == [302] * 3 + [429] * 2


def test_without_a_mail_server_the_page_names_the_administrators(erin: User) -> None:
    page = browser().get("/accounts/password/reset/").content.decode()
    assert "Ask an administrator" in page
    assert "<input" not in page.partition("<main")[2]
    assert ask(erin.email).status_code == 403
    assert not Notification.objects.exists()
    assert "Forgot your password?" in browser().get("/login/").content.decode()


def test_an_administrator_hands_a_link_over(erin: User, root: Actor) -> None:
    client = browser()
    client.force_login(root.account)
    url = f"/admin/accounts/user/password-link/?ids={erin.pk}"
    page = client.post(url, {"delivery": "link"})
    found = re.search(r"http://testserver(/accounts/password/reset/key/[^<\s]+)", _text(page))
    assert found, _text(page)
    assert use(found[1])
    event = AuditEvent.objects.get(action="account.password-link")
    assert (event.username, event.target) == ("root", "erin")


def test_nobody_else_hands_a_link_over(erin: User, root: Actor) -> None:
    helper = factories.make_user("helper")
    User.objects.filter(pk=helper.pk).update(is_staff=True)
    client = browser()
    client.force_login(helper)
    url = f"/admin/accounts/user/password-link/?ids={root.account.pk}"
    page = client.post(url, {"delivery": "link"})
    assert page.status_code in {302, 403, 404}
    assert "reset/key" not in _text(page)
    assert not AuditEvent.objects.filter(action="account.password-link").exists()


def test_a_link_is_made_on_the_server_itself(erin: User, capsys: Any) -> None:
    call_command("password_link", "erin")
    printed = capsys.readouterr().out.strip()
    assert use(re.sub(r"^http://[^/]+", "", printed))
    assert AuditEvent.objects.filter(action="account.password-link", username="system").exists()
    User.objects.update(is_active=False)
    for name in ("erin", "nobody"):
        with pytest.raises(CommandError):
            call_command("password_link", name)


def _text(answer: Any) -> str:
    return str(answer.content.decode())


def test_second_factors_cannot_be_guessed_for_long(erin: User) -> None:
    from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret

    TOTP.activate(erin, generate_totp_secret())
    client = browser()
    assert sign_in(client)
    for _ in range(6):
        page = client.post("/accounts/2fa/authenticate/", {"code": "000000"})
    assert "Too many" in _text(page)


def test_a_device_sign_in_needs_more_than_luck(erin: User) -> None:
    """Its code has 20^8 values, and a person tries 20 a minute; see test_device_sign_in.py."""
    client = browser()
    assert sign_in(client)
    statuses = [
        client.get("/device/", {"code": f"BBBB-BBB{letter}"}).status_code
        for letter in "BCDFGHJKLMNPQRSTVWXZB"
    ]
    assert statuses == [200] * 20 + [429]
