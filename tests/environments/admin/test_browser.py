"""The console in Chromium: every list, page and form at two widths, checked with axe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib import admin
from django.urls import reverse
from playwright.sync_api import Browser, Page, sync_playwright

import condastore.urls  # noqa: F401 - registers the admin classes
from accounts.models import User
from environments.domain.lifecycle import BuildState
from environments.models import Build
from tests.environments.admin.furnishing import furnish
from tests.factories import make_build, make_user
from tests.services.browser import chromium

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.component("chromium")]

PASSWORD = "correct horse battery staple"
WIDTHS = (1280, 390)
SERIOUS = {"serious", "critical"}


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    # Playwright runs an event loop in this thread; the test reads rows from the same thread.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with sync_playwright() as playwright, chromium(playwright) as found:
        yield found


def console_pages() -> dict[str, str]:
    """Return the path of every list, row page and confirmation form, by picture name."""
    pages = {"index": reverse("admin:index")}
    for model, model_admin in admin.site._registry.items():
        label = f"{model._meta.app_label}_{model._meta.model_name}"
        row = model._default_manager.order_by("-pk").first()
        pages[label] = reverse(f"admin:{label}_changelist")
        if row is None:
            continue
        pages[f"{label}-row"] = reverse(f"admin:{label}_change", args=[row.pk])
        for action in getattr(model_admin, "confirmed_actions", ()):
            query = f"?ids={row.pk}" if action.rows else ""
            pages[f"{label}-{action.name}"] = reverse(f"admin:{label}_{action.name}") + query
    pages["add-rule"] = f"{reverse('admin:environments_policy_add-rule')}?kind=licenses"
    return pages


def axe_findings(page: Page) -> list[str]:
    """Return the serious and critical findings of axe on the page, with the first element."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in SERIOUS
    ]


def test_no_console_page_has_a_serious_accessibility_finding_or_is_wider_than_the_screen(
    live_server: Any, browser: Browser
) -> None:
    for number in range(1, 4):
        furnish(number)
    build = Build.objects.earliest("pk")
    failed = make_build(build.environment, BuildState.FAILED)
    failure = {"message": "The requirements exclude each other. " * 8, "hint": "Loosen one."}
    Build.objects.filter(pk=failed.pk).update(failure=failure)
    make_user("root", superuser=True, password=PASSWORD)
    assert User.objects.filter(username="root", is_staff=True).exists()
    pictures = os.environ.get("CONDASTORE_TEST_PICTURES")
    page = browser.new_context().new_page()
    page.goto(f"{live_server.url}/login/?next=/")
    page.get_by_label("User name").fill("root")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    faults: list[str] = []
    for name, path in console_pages().items():
        page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        answer = page.goto(f"{live_server.url}{path}")
        assert answer is not None
        assert answer.status == 200, path
        faults += [f"{name}: {finding}" for finding in axe_findings(page)]
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            if pictures:
                page.screenshot(path=Path(pictures) / f"{name}-{width}.png", full_page=True)
            needed = page.evaluate("document.documentElement.scrollWidth")
            if needed > width:
                faults.append(f"{name} needs {needed} of {width} pixels")
    assert faults == []
