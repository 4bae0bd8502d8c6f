"""Pictures of pages in the documentation: `make screenshots` takes them again.

Without that the pictures go to a temporary folder, so that a page that cannot be taken any more
fails the test.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import ViewportSize, sync_playwright

from accounts.models import User
from accounts.roles import Role
from environments.models import ApprovalRequest, Build, Namespace
from tests import factories
from tests.docs.pages import PAGES, PROJECT
from tests.environments.admin.furnishing import furnish
from tests.environments.console.test_browser import PASSWORD, of_admin, sign_in
from tests.services.browser import chromium

PICTURES = PROJECT / "docs" / "pictures"
SIZE: ViewportSize = {"width": 1100, "height": 640}
MAX_BYTES = 150_000  # of a picture


def finished_build() -> Build:
    """Make a build as the tutorial's: research/ml with numpy."""
    namespace = factories.make_namespace(dana=Role.DEVELOPER)
    packages = [
        factories.make_package("python", "3.12.7"),
        factories.make_package("numpy", "2.1.3"),
    ]
    build = factories.make_build(
        factories.make_environment(namespace),
        lock=factories.make_lock(*packages),
        text="name: ml\nchannels: [conda-forge]\ndependencies:\n  - python =3.12\n  - numpy\n",
    )
    stages = ("QUEUED", "SOLVING", "FETCHING", "LINKING", "CHECKING", "PUBLISHING")
    seconds = (0.0, 0.4, 0.6, 0.3, 0.2, 0.1)
    Build.objects.filter(pk=build.pk).update(
        requested_by=User.objects.get(username="dana"),
        timings=dict(zip(stages, seconds, strict=True)),
    )
    build.append_log(
        [
            "Solved in 0.4 s: 2 packages for linux-64.",
            "Fetched 2 packages (18.3 MB).",
            "Linked 2,143 files.",
            "READY after 1.6 s.",
        ]
    )
    return build


def paths() -> dict[str, str]:
    """Return the address of each picture's page."""
    build = finished_build()
    request = ApprovalRequest.objects.latest("pk")
    return {
        "build": f"/environments/research/ml/builds/{build.number}/",
        "console": of_admin("index"),
        "requests": of_admin("environments_approvalrequest_changelist"),
        "request": f"/approvals/{request.pk}/",
        "environment": "/environments/research/ml/",
        "edit": "/environments/research/ml/edit/",
    }


@pytest.mark.django_db(transaction=True)
@pytest.mark.component("chromium")
def test_pictures_of_the_pages_can_be_taken(
    live_server: Any, monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    folder = Path(os.environ.get("CONDASTORE_TEST_SCREENSHOTS") or tmp_path)
    root = factories.make_user("root", superuser=True, password=PASSWORD)
    for number in range(1, 4):
        furnish(number)
    Namespace.objects.get(name="team-1").grant(Role.ADMIN, root)
    with sync_playwright() as playwright, chromium(playwright) as browser:
        page = browser.new_context(viewport=SIZE, reduced_motion="reduce").new_page()
        page.set_default_timeout(180_000)
        sign_in(page, live_server.url)
        page.wait_for_url(f"{live_server.url}/")
        data = settings.DATA
        for name, path in paths().items():
            # Pages of builds show the paths of folders.
            settings.DATA = Path("/srv/condastore") if name in {"build", "environment"} else data
            answer = page.goto(f"{live_server.url}{path}")
            assert answer is not None
            assert answer.status == 200, path
            page.screenshot(path=folder / f"{name}.png")
            assert (folder / f"{name}.png").stat().st_size < MAX_BYTES


def test_every_picture_of_the_pages_is_there_and_small_and_has_a_description() -> None:
    shown = set()
    for page in PAGES:
        text = page.read_text()
        for target, options in re.findall(r"```\{image\} (\S+)\n(.*?)```", text, re.DOTALL):
            path = (page.parent / target).resolve()
            assert path.stat().st_size < MAX_BYTES
            assert len(options.partition(":alt:")[2].strip()) > 20, f"{page}: {target}"
            shown.add(path)
        shown |= {
            (page.parent / one).resolve() for one in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        }
    assert set(PICTURES.glob("*.png")) | set(PICTURES.glob("*.svg")) == shown
