"""Pages of an environment and its builds in Chromium, on two widths and without JavaScript."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from accounts.models import User
from accounts.roles import Role
from environments.console.build_stream import CLOSE, Follower
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment
from tests import factories
from tests.environments.console.test_browser import (  # noqa: F401  (fixtures)
    Watched,
    browser,
    root_account,
    sign_in,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.component("chromium")]

PAGE = "/environments/research/ml/"


@pytest.fixture
def address(live_server: Any, root_account: User) -> str:  # noqa: F811
    namespace = factories.make_namespace("research")
    namespace.grant(Role.ADMIN, root_account)
    environment = factories.make_environment(namespace, "ml")
    one = factories.make_package
    for version in ("3.12.1", "3.13.0"):
        python = one("python", version, depends=["openssl"])
        lock = factories.make_lock(python, one("openssl", "3.5.4"))
        build = factories.make_build(environment, lock=lock)
        build.append_log(["--- solving", *[f"linked package {n}" for n in range(900)]])
        timings = {"SOLVING": 0.6, "FETCHING": 11.4, "LINKING": 11.8, "CHECKING": 5.2}
        Build.objects.filter(pk=build.pk).update(timings=timings)
    failed = factories.make_build(environment, BuildState.FAILED)
    failure = {"code": "x", "message": "lightgbm needs numpy <2.3.", "where": "", "hint": ""}
    Build.objects.filter(pk=failed.pk).update(failure=failure)
    Environment.objects.update(pinned=True)
    return str(live_server.url)


def check(page: Page, name: str) -> None:
    """Save a picture; the page has no serious finding of axe and does not scroll sideways."""
    if folder := os.environ.get("CONDASTORE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], (name, width)
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    texts = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in serious]
    assert not serious, (name, texts)


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_of_an_environment_are_usable_at_both_widths(
    browser: Browser,  # noqa: F811
    address: str,
    width: int,
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    watched = Watched(context, {"localhost"})
    page = watched.page
    sign_in(page, address)
    expect(page).to_have_url(f"{address}/")
    for name, path in {
        "environment": "",
        "packages": "?tab=packages",
        "versions": "?tab=versions",
        "settings": "?tab=settings",
        "build": "builds/2/",
        "build-failed": "builds/3/",
        "search": "builds/2/?q=package+12",
        "comparison": "compare/?before=1&after=2",
        "confirm": "actions/delete/",
    }.items():
        page.goto(f"{address}{PAGE}{path}")
        check(page, f"environment-{name}-{width}")
    page.goto(f"{address}{PAGE}builds/2/#L3")
    expect(page.locator("#L3")).to_be_in_viewport()
    assert "line=3" in page.url
    assert watched.faults == []


def test_a_build_is_made_current_and_the_pin_released_without_javascript(
    browser: Browser,  # noqa: F811
    address: str,
) -> None:
    watched = Watched(browser.new_context(java_script_enabled=False), {"localhost"})
    page = watched.page
    sign_in(page, address)
    page.goto(f"{address}{PAGE}builds/1/")
    page.get_by_role("link", name="Make current", exact=True).click()
    page.get_by_role("button", name="Make current").click()
    expect(page.get_by_text("Build 1 is current.")).to_be_visible()
    assert Environment.objects.get().current == Build.objects.get(number=1)
    page.goto(f"{address}{PAGE}actions/roll-back/")
    page.get_by_role("link", name="Leave the current build").click()
    expect(page.get_by_role("heading", name="research/ml")).to_be_visible()
    assert watched.faults == []


def test_the_page_of_a_running_build_changes_without_a_reload(
    browser: Browser,  # noqa: F811
    address: str,
    root_account: User,  # noqa: F811
) -> None:
    """The messages are the server's; Django's test server cannot send them one by one."""
    build = factories.make_build(Environment.objects.get(), BuildState.LINKING)
    build.append_log(["first line"])
    watched = Watched(browser.new_context(), {"localhost"})
    page = watched.page
    sign_in(page, address)
    expect(page).to_have_url(f"{address}/")
    actor = factories.actor(root_account)
    follower = Follower(actor=actor, build=build.pk, next_line=1)

    def answer(route: Any) -> None:
        build.append_log(["<second> line"])
        Build.objects.filter(pk=build.pk).update(
            state=BuildState.FAILED, finished_at=timezone.now(), lease_expires_at=None
        )
        text, _ = follower.look()
        route.fulfill(content_type="text/event-stream", body=text + CLOSE)

    page.route(re.compile(r"/stream/"), answer)
    page.goto(f"{address}{PAGE}builds/{build.number}/")
    expect(page.locator("#build-state")).to_contain_text("Failed")
    expect(page.locator("#log-lines li")).to_have_text(["1first line", "2<second> line"])
    expect(page.locator("#log-shown")).to_have_text("To line 2")
    expect(page.locator("#h-st")).to_have_text("The build failed.")
    assert watched.faults == []
