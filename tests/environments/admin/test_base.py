"""Lists, pages and actions of the console: cost the same with more rows, check access."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

import condastore.urls  # noqa: F401 - registers the admin classes
from accounts.models import User
from environments.domain.lifecycle import BuildState
from environments.models import AuditEvent, Build
from tests.environments.admin.furnishing import furnish
from tests.factories import make_build

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(client: Client, root) -> Client:
    client.force_login(root.account)
    return client


def admin_models() -> list[Any]:
    return [
        model
        for model in admin.site._registry
        if model._meta.app_label in {"environments", "accounts", "auth"}
    ]


def url_of(model: Any, page: str = "changelist", *args: object) -> str:
    meta = model._meta
    return reverse(f"admin:{meta.app_label}_{meta.model_name}_{page}", args=args)


def queries_of(site: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        assert site.get(url).status_code == 200, url
    return len(captured)


def test_each_list_and_each_page_costs_the_same_with_three_rows_and_with_thirty(site: Client):
    for number in range(3):
        furnish(number)
    pages = {model: url_of(model) for model in admin_models()}
    pages |= {
        (model, "page"): url_of(model, "change", row.pk)
        for model in admin_models()
        if (row := model._default_manager.order_by("-pk").first()) is not None
    }
    pages["start"] = reverse("admin:index")
    site.get(pages["start"])
    few = {key: queries_of(site, url) for key, url in pages.items()}
    for number in range(3, 30):
        furnish(number)
    many = {key: queries_of(site, url) for key, url in pages.items()}
    assert {key: many[key] for key in few if many[key] > few[key]} == {}
    assert max(few.values()) <= 30


def test_each_list_opens_empty_searched_and_filtered(site: Client):
    for model in admin_models():
        assert site.get(url_of(model)).status_code == 200, model
    furnish(1)
    for model in admin_models():
        model_admin: Any = admin.site._registry[model]
        if model_admin.search_fields:
            assert site.get(url_of(model), {"q": "x"}).status_code == 200, model
        for given in model_admin.list_filter:
            if name := getattr(given, "parameter_name", None):
                for value in ("1", "2026-02-30"):
                    answer = site.get(url_of(model), {name: value})
                    assert answer.status_code == 200, (model, name)


def test_each_confirmation_page_opens(site: Client):
    furnish(1)
    for model in admin_models():
        model_admin: Any = admin.site._registry[model]
        row = model._default_manager.order_by("-pk").first()
        for action in getattr(model_admin, "confirmed_actions", ()):
            query = {"ids": row.pk} if action.rows and row else {}
            if action.rows and not row:
                continue
            assert site.get(url_of(model, action.name), query).status_code == 200, action


def test_a_build_opens_and_cannot_be_changed(site: Client, environment):
    build = make_build(environment)
    url = reverse("admin:environments_build_change", args=[build.pk])
    assert site.get(url).status_code == 200
    assert site.post(url, {"state": "FAILED"}).status_code == 403
    assert site.get(reverse("admin:environments_build_add")).status_code == 403


def test_builds_are_cancelled_by_the_same_operation(site: Client, environment):
    queued, done = make_build(environment, BuildState.QUEUED), make_build(environment)
    chosen = site.post(
        reverse("admin:environments_build_changelist"),
        {"action": "cancel", "_selected_action": [queued.pk, done.pk]},
    )
    answer = site.post(chosen["Location"], follow=True)
    assert b"1 done, 1 failed" in answer.content
    assert b"cannot be cancelled" in answer.content
    assert Build.objects.get(pk=queued.pk).state == BuildState.CANCELLED
    event = AuditEvent.objects.get(action="build.cancel")
    assert event.username == "root"


def test_an_action_that_is_refused_says_why_on_its_page(site: Client, environment):
    build = make_build(environment)
    url = reverse("admin:environments_build_archive")
    answer = site.post(f"{url}?ids={build.pk}")
    assert answer.status_code == 200
    assert b"is the current build of its environment" in answer.content
    assert b"Make another build current first." in answer.content


def test_an_action_is_limited_to_a_number_of_rows(site: Client, environment):
    builds = [make_build(environment, BuildState.QUEUED) for _ in range(3)]
    chosen = {"action": "cancel", "_selected_action": [build.pk for build in builds]}
    from environments.admin import confirmed_actions as shared

    before, shared.MAX_SELECTED = shared.MAX_SELECTED, 2
    try:
        answer = site.post(reverse("admin:environments_build_changelist"), chosen, follow=True)
    finally:
        shared.MAX_SELECTED = before
    assert b"Select at most 2 rows at a time" in answer.content


def test_people_who_do_not_administer_the_installation_see_no_rows(client: Client, dora):
    User.objects.filter(pk=dora.account.pk).update(is_staff=True)
    client.force_login(User.objects.get(pk=dora.account.pk))
    # Dora is the admin of a namespace: she approves there, and makes its rules.
    open_to_her = {"approvalrequest", "decision", "policy", "policyrule", "policyversion"}
    open_to_her.add("channelcredential")
    for model in admin_models():
        if model._meta.model_name not in open_to_her:
            assert client.get(url_of(model)).status_code == 403, model
            for action in getattr(admin.site._registry[model], "confirmed_actions", ()):
                assert client.get(url_of(model, action.name)).status_code == 403, action


def test_no_page_shows_the_secret_of_a_credential(site: Client):
    furnish(1)
    from environments.models import ChannelCredential, Webhook

    for model in (ChannelCredential, Webhook):
        row = model.objects.get()
        page = site.get(url_of(model, "change", row.pk)).content.decode()
        assert "sealed" not in page
        assert getattr(row, "sealed", getattr(row, "sealed_secret", "")) not in page


@pytest.mark.parametrize(
    ("typed", "found"), [("sha", 2), ("shared", 2), ("hared", 0), ("sha%", 0), ("sh_red", 0)]
)
def test_a_search_finds_packages_by_how_their_names_begin(site: Client, typed: str, found: int):
    furnish(1)
    furnish(2)
    rows = site.get(reverse("admin:environments_condarecord_changelist"), {"q": typed})
    assert len(rows.context["cl"].result_list) == found


def test_a_list_keeps_the_order_and_the_pages_of_what_it_found(
    site: Client, environment, monkeypatch
):
    builds = [make_build(environment, BuildState.QUEUED) for _ in range(5)]
    monkeypatch.setattr(admin.site._registry[Build], "list_per_page", 2)
    url = reverse("admin:environments_build_changelist")
    shown = [
        [build.pk for build in site.get(url, {"p": page}).context["cl"].result_list]
        for page in (1, 2, 3)
    ]
    assert shown == [
        [builds[4].pk, builds[3].pk],
        [builds[2].pk, builds[1].pk],
        [builds[0].pk],
    ]
