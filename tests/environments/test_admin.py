"""The Django admin: pages open with a constant number of queries, and nothing is edited by hand."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from environments.domain.lifecycle import BuildState
from environments.models import Build
from tests.factories import make_build, make_environment

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(client: Client, root) -> Client:
    client.force_login(root.account)
    return client


MODELS = [
    model for model in admin.site._registry if model._meta.app_label in {"environments", "accounts"}
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_list_opens(site: Client, environment, model):
    make_build(environment)
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    query = {"q": "x"} if admin.site._registry[model].search_fields else {}
    assert site.get(url, query).status_code == 200


@pytest.mark.parametrize("name", ["build", "environment"])
def test_lists_take_a_constant_number_of_queries(
    site: Client, research, name, django_assert_max_num_queries
):
    url = reverse(f"admin:environments_{name}_changelist")
    for index in range(3):
        make_build(make_environment(research, f"first-{index}"))
    site.get(url)
    with django_assert_max_num_queries(14) as few:
        site.get(url)
    for index in range(30):
        make_build(make_environment(research, f"more-{index}"))
    with django_assert_max_num_queries(len(few)):
        assert site.get(url).status_code == 200


def test_a_build_opens_and_cannot_be_changed(site: Client, environment):
    build = make_build(environment)
    url = reverse("admin:environments_build_change", args=[build.pk])
    assert site.get(url).status_code == 200
    assert site.post(url, {"state": "FAILED"}).status_code == 403
    assert site.get(reverse("admin:environments_build_add")).status_code == 403


def test_builds_are_cancelled_by_the_same_operation(site: Client, environment):
    queued, done = make_build(environment, BuildState.QUEUED), make_build(environment)
    answer = site.post(
        reverse("admin:environments_build_changelist"),
        {"action": "cancel_selected", "_selected_action": [queued.pk, done.pk]},
        follow=True,
    )
    assert b"1 cancelled, 1 could not be" in answer.content
    assert Build.objects.get(pk=queued.pk).state == BuildState.CANCELLED


def test_those_who_do_not_run_the_installation_see_no_rows(client: Client, dora):
    dora.account.is_staff = True
    dora.account.save()
    client.force_login(dora.account)
    assert client.get(reverse("admin:environments_build_changelist")).status_code == 403
