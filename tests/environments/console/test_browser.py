"""Pages in Chromium: they load without errors; sign-in with security keys and providers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from allauth.mfa.models import Authenticator
from django.urls import reverse
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from accounts.models import User
from accounts.providers import Providers
from accounts.roles import Role
from environments.models import ApprovalRequest, Build, CondaRecord, Namespace, PolicyRule
from tests.environments.admin.furnishing import furnish
from tests.factories import make_user
from tests.services import OpenIdService
from tests.services.browser import chromium
from tests.services.oidc import PEOPLE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.component("chromium")]

PASSWORD = "correct horse battery staple"
WIDTHS = (1280, 390)
#: Reports violations of the content security policy to the browser's console.
TOLD = """
document.addEventListener('securitypolicyviolation', event =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


class Watched:
    """A browser page whose errors are collected in `faults`."""

    def __init__(self, context: BrowserContext, hosts: set[str]) -> None:
        context.add_init_script(TOLD)
        # Streams of events need the ASGI server; `live_server` is a WSGI server.
        context.route("**/stream/*", lambda route: route.fulfill(status=204))
        self.page: Page = context.new_page()
        self.page.set_default_timeout(180_000)
        self.faults: list[str] = []
        self._hosts = hosts
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self._fault(f"error: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def _fault(self, text: str) -> None:
        self.faults.append(f"{self.page.url.partition('?')[0]}: {text}")

    def _said(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self._fault(f"{message.type}: {message.text}")

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and parts.hostname not in self._hosts:
            self._fault(f"asks {request.url}")

    def _answered(self, answer: Any) -> None:
        if answer.status >= 400:
            self._fault(f"{answer.status} of {answer.url}")


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    # Playwright's loop runs in this thread; the rows are looked up beside it, not from it.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with sync_playwright() as playwright, chromium(playwright) as found:
        yield found


@pytest.fixture
def root_account(transactional_db: None) -> User:
    return make_user("root", superuser=True, password=PASSWORD)


def sign_in(page: Page, address: str) -> None:
    page.goto(f"{address}/login/?next=/")
    page.get_by_label("User name").fill("root")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def of_admin(name: str, *args: object, query: str = "") -> str:
    return reverse(f"admin:{name}", args=args) + query


def pages() -> dict[str, str]:
    """Paths of pages, by the name of their picture."""
    request, build = ApprovalRequest.objects.latest("pk"), Build.objects.earliest("pk")
    rule, record = PolicyRule.objects.latest("pk"), CondaRecord.objects.latest("pk")
    place = Namespace.objects.get(name="team-1")
    environment = build.environment
    ours = f"/environments/{environment.namespace}/{environment.name}/"
    deny = "?kind=packages-denied"
    return {
        "environments-list": "/environments/",
        "environment": ours,
        "build": f"{ours}builds/{build.number}/",
        "device": "/device/",
        "sign-in": "/accounts/2fa/",
        "graphiql": "/graphql",
        "admin": of_admin("index"),
        "requests": of_admin("environments_approvalrequest_changelist"),
        "request": of_admin("environments_approvalrequest_change", request.pk),
        "approve": of_admin("environments_approvalrequest_approve", query=f"?ids={request.pk}"),
        "decisions": of_admin("environments_decision_changelist"),
        "policies": of_admin("environments_policy_changelist"),
        "policy": of_admin("environments_policy_change", rule.policy_id),
        "add-rule": of_admin("environments_policy_add-rule", query=deny),
        "rule": of_admin("environments_policyrule_change", rule.pk),
        "namespace": of_admin("environments_namespace_change", place.pk),
        "environments": of_admin("environments_environment_changelist"),
        "builds": of_admin("environments_build_changelist"),
        "admin-build": of_admin("environments_build_change", build.pk),
        "packages": of_admin("environments_condarecord_changelist"),
        "package": of_admin("environments_condarecord_change", record.pk),
        "audit": of_admin("environments_auditevent_changelist"),
        "person": of_admin("accounts_user_change", User.objects.get(username="root").pk),
    }


def test_pages_load_at_both_widths_without_requests_to_other_hosts(
    live_server: Any,
    browser: Browser,
    root_account: User,
) -> None:
    for number in range(1, 4):
        furnish(number)
    Namespace.objects.get(name="team-1").grant(Role.ADMIN, root_account)
    pictures = os.environ.get("CONDASTORE_TEST_PICTURES")
    watched = Watched(browser.new_context(), {"localhost"})
    sign_in(watched.page, live_server.url)
    wide: list[str] = []
    for name, path in pages().items():
        answer = watched.page.goto(f"{live_server.url}{path}")
        assert answer is not None
        assert answer.status == 200, path
        for width in WIDTHS:
            watched.page.set_viewport_size({"width": width, "height": 900})
            if pictures:
                picture = Path(pictures) / f"{name}-{width}.png"
                watched.page.screenshot(path=picture, full_page=True)
            needed = watched.page.evaluate("document.documentElement.scrollWidth")
            if needed > width:
                wide.append(f"{name} needs {needed} of {width}")
    assert watched.faults == []
    assert wide == []


def test_an_administrator_signs_in_with_a_key(
    live_server: Any,
    browser: Browser,
    root_account: User,
) -> None:
    address = live_server.url
    context = browser.new_context()
    watched = Watched(context, {"localhost"})
    page = watched.page
    keys = context.new_cdp_session(page)
    keys.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "usb",
        "hasResidentKey": True,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    keys.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    sign_in(page, address)
    page.goto(f"{address}/accounts/2fa/webauthn/add/")
    if page.get_by_label("Password").is_visible():  # asked again before a change
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button").last.click()
    page.get_by_role("button", name="Add").click()
    page.wait_for_url(lambda url: not url.endswith("/add/"))
    kinds = set(Authenticator.objects.filter(user=root_account).values_list("type", flat=True))
    assert Authenticator.Type.WEBAUTHN in kinds
    context.clear_cookies()
    sign_in(page, address)
    assert page.request.get(f"{address}/api/whoami").json()["signed_in"] is False
    page.get_by_role("button", name="security key").click()
    page.wait_for_url(lambda url: "/accounts/" not in url and "/login" not in url)
    assert page.request.get(f"{address}/api/whoami").json()["username"] == "root"
    assert watched.faults == []


@pytest.mark.component("nodejs")
def test_a_person_of_a_provider_signs_in_and_out(
    live_server: Any,
    openid_service: OpenIdService,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:
    openid_service.set_people(PEOPLE)
    entry = openid_service.entry("a", "one", name="Example University")
    providers = Providers.read(openid=json.dumps([entry]), saml="")
    settings.SIGN_IN_PROVIDERS = providers
    settings.SOCIALACCOUNT_PROVIDERS = providers.django_settings
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    # The provider leads back to the name that it knows.
    here = f"--host-resolver-rules=MAP testserver {urlsplit(live_server.url).netloc}"
    trusted = "--unsafely-treat-insecure-origin-as-secure=http://testserver"
    with sync_playwright() as playwright, chromium(playwright, here, trusted) as browser:
        watched = Watched(browser.new_context(), {"testserver", "127.0.0.1"})
        page = watched.page
        page.goto("http://testserver/login/?next=/device/")
        page.get_by_role("link", name="Sign in with Example University").click()
        page.locator("input[name=login]").fill("erin")
        page.locator("input[name=password]").fill("any")
        page.locator("button[type=submit]").click()
        page.locator("button[type=submit]").click()  # consent to share the claims
        page.wait_for_url("http://testserver/device/")
        page.goto("http://testserver/environments/")
        page.get_by_label("Account: erin").click()
        erin = User.objects.get(username="erin")
        assert set(erin.groups.values_list("name", flat=True)) == {"a:physics", "a:science"}
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("link", name="Sign in").first.wait_for()
        of_provider = openid_service.url  # its own pages ask for letters elsewhere
        assert [one for one in watched.faults if not one.startswith(of_provider)] == []
