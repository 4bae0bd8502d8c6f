"""Editor in Chromium: form, text and preview in step, on two widths and without JavaScript."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from accounts.models import User
from accounts.roles import Role
from environments.models import Build, Channel, IndexedPackage, LockRow, Preview
from environments.models.previews import PreviewState
from tests import factories
from tests.environments.console.test_browser import (  # noqa: F401  (fixtures)
    Watched,
    browser,
    root_account,
    sign_in,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.component("chromium")]

TEXT = """\
channels:
  - conda-forge
dependencies:
  - python 3.12.*
  - numpy >=2.3  # faster sorting
  - lightgbm 4.6.*
"""
CONFLICT = {
    "code": "unsatisfiable",
    "message": "No solution.",
    "where": "",
    "hint": "",
    "details": {
        "conflicts": [
            {
                "requirements": ["numpy >=2.3", "lightgbm 4.6.*"],
                "reason": "lightgbm 4.6 needs numpy <2.3.",
                "chain": ["lightgbm", "numpy"],
                "platform": "linux-64",
            }
        ]
    },
}


@pytest.fixture
def address(live_server: Any, root_account: User) -> str:  # noqa: F811
    namespace = factories.make_namespace("research")
    namespace.grant(Role.ADMIN, root_account)
    lock = factories.make_lock(factories.make_package("python", "3.12.1"))
    factories.make_build(factories.make_environment(namespace, "ml"), text=TEXT, lock=lock)
    return str(live_server.url)


def finish(*, failure: Any = None) -> None:
    """Finish the previews that wait, as a worker would."""
    lock = None
    if failure is None:
        packages = [
            factories.make_package("python", "3.12.9"),
            factories.make_package("numpy", "2.2.6"),
            factories.make_package("libblas", "3.9"),
        ]
        lock = LockRow.store(factories.make_lock(*packages))
    Preview.objects.filter(state=PreviewState.QUEUED).update(
        state=PreviewState.FAILED if failure else PreviewState.READY, failure=failure, lock=lock
    )


def picture(page: Page, name: str, width: int) -> None:
    if folder := os.environ.get("CONDASTORE_TEST_PICTURES"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)
        page.emulate_media(color_scheme="light")


def check(page: Page) -> None:
    """No sideways scrolling, and nothing serious in axe's report."""
    size = page.viewport_size
    assert size is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    found = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert not found


@pytest.mark.parametrize("width", [1280, 390])
def test_form_text_and_preview_follow_each_other(
    address: str,
    browser: Browser,  # noqa: F811
    width: int,
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    watched = Watched(context, {"localhost"})
    page = watched.page
    page.set_default_timeout(30_000)
    sign_in(page, address)
    page.goto(f"{address}/environments/research/ml/edit/")
    text = page.locator("#text")
    expect(page.locator("#preview")).to_contain_text("Solving")
    check(page)

    # From the form to the text: the comment stays.
    page.get_by_label("Version of numpy").fill(">=2.2")
    expect(text).to_have_value(TEXT.replace("numpy >=2.3  #", "numpy >=2.2  #"))
    page.get_by_label("Package 4").or_(page.get_by_label("Add a package")).first.fill("pandas")
    expect(text).to_have_value(TEXT.replace("numpy >=2.3  #", "numpy >=2.2  #") + "  - pandas\n")

    # From the text to the form.
    page.locator(".cm-content").focus()
    page.keyboard.press("Control+a")
    page.keyboard.press("Backspace")
    page.keyboard.insert_text(TEXT)
    expect(page.get_by_label("Version of numpy")).to_have_value(">=2.3")
    expect(page.locator("[name=package]")).to_have_count(4)

    # A conflict at its lines, at its fields and in the preview; the repair changes the text.
    expect(page.locator("#preview[data-pending]")).to_be_visible()
    finish(failure=CONFLICT)
    expect(page.locator("#yaml-messages")).to_contain_text("Lines 5, 6")
    expect(page.locator(".cm-lintRange-error")).to_have_count(2)
    expect(page.get_by_label("Version of numpy")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#build-button")).to_have_attribute("aria-disabled", "true")
    check(page)
    picture(page, "edit-conflict", width)
    page.locator("#preview").get_by_role("button", name="Any version of numpy").click()
    expect(text).to_have_value(TEXT.replace("numpy >=2.3", "numpy"))
    expect(page.locator("#preview[data-pending]")).to_be_visible()
    finish()
    expect(page.locator("#preview")).to_contain_text("against build 1")
    check(page)
    picture(page, "edit-preview", width)

    # The draft is offered again after the page was left.
    page.goto(f"{address}/environments/")
    page.goto(f"{address}/environments/research/ml/edit/")
    page.get_by_role("button", name="Restore the draft").click()
    expect(text).to_have_value(TEXT.replace("numpy >=2.3", "numpy"))
    assert watched.faults == []
    page.locator("#build-button").click()
    page.wait_for_url("**/builds/2/")
    assert "numpy  # faster" in Build.objects.get(number=2).source
    context.close()


def test_the_keyboard_alone_creates_an_environment(
    address: str,
    browser: Browser,  # noqa: F811
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    watched = Watched(context, {"localhost"})
    page = watched.page
    channel = Channel.objects.create(url="https://conda.anaconda.org/conda-forge")
    for name in ("pandas", "pandoc"):
        IndexedPackage.objects.create(channel=channel, name=name, latest_version="2.3.3")
    sign_in(page, address)
    page.goto(f"{address}/environments/new/#start")
    expect(page.get_by_label("A file: environment.yml")).to_be_visible()
    picture(page, "edit-start", 1280)
    check(page)
    page.keyboard.press("Escape")
    picture(page, "edit-new", 1280)
    check(page)
    page.get_by_label("Namespace", exact=True).fill("research")
    page.keyboard.press("Tab")
    page.keyboard.type("churn")
    for _ in range(3):  # python, its version and its button
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("pan")
    expect(page.get_by_role("option")).to_have_count(2)
    picture(page, "edit-suggestions", 1280)
    check(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(
        page.get_by_label("Package 2").or_(page.get_by_label("Add a package")).first
    ).to_have_value("pandas")
    expect(page.locator("#text")).to_have_value(
        "channels:\n  - conda-forge\ndependencies:\n  - python 3.12.*\n  - pandas\n"
    )
    page.locator("#build-button").focus()
    assert watched.faults == []
    page.keyboard.press("Enter")
    page.wait_for_url("**/environments/research/churn/builds/1/")
    context.close()


def test_without_javascript_the_form_is_merged_previewed_and_built(
    address: str,
    browser: Browser,  # noqa: F811
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, address)
    page.goto(f"{address}/environments/research/ml/edit/")
    page.get_by_label("Version of python").fill("3.13.*")
    page.get_by_role("button", name="Preview", exact=True).last.click()
    assert "python 3.13.*" in page.get_by_label("Text of environment.yml").input_value()
    finish(failure=CONFLICT)
    page.get_by_role("button", name="Show the result").click()
    page.locator("#preview").get_by_role("button", name="Any version of lightgbm").click()
    page.get_by_role("button", name="Build", exact=True).click()
    assert page.url.endswith("/builds/2/")
    source = Build.objects.get(number=2).source
    assert "- lightgbm\n" in source
    assert "python 3.13.*" in source
    context.close()
