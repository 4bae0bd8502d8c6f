"""Lists of the console: groups on the start page, CSV export and date ranges."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib import admin
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

import condastore.urls  # noqa: F401 - registers the admin classes
from condastore.admin_site import UNGROUPED
from environments.admin import csv_export
from environments.admin.filters import DateRange
from environments.domain.lifecycle import BuildState
from environments.domain.sizes import format_size, parse_size
from environments.models import AuditEvent, Build, Namespace
from tests.environments.admin.furnishing import furnish
from tests.factories import make_build, make_namespace

pytestmark = pytest.mark.django_db


@pytest.fixture
def site(client: Client, root) -> Client:
    client.force_login(root.account)
    return client


async def content_of(answer: Any) -> bytes:
    return b"".join([part async for part in answer.streaming_content])


def export(site: Client, label: str, **query: str) -> list[dict[str, str]]:
    answer: Any = site.get(reverse(f"admin:{label}_export"), query)
    assert answer.status_code == 200, label
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    text = async_to_sync(content_of)(answer).decode()
    return list(csv.DictReader(io.StringIO(text)))


def labels() -> list[str]:
    return [f"{model._meta.app_label}_{model._meta.model_name}" for model in admin.site._registry]


def test_every_list_of_the_console_belongs_to_a_group(site: Client):
    context = site.get(reverse("admin:index")).context
    groups = {group["name"]: group["models"] for group in context["app_list"]}
    assert UNGROUPED not in groups, [entry["name"] for entry in groups[UNGROUPED]]
    assert sum(len(entries) for entries in groups.values()) == len(admin.site._registry)


def test_every_list_is_exported_as_csv_with_its_rows(site: Client):
    for number in (1, 2):
        furnish(number)
    for label, model_admin in zip(labels(), admin.site._registry.values(), strict=True):
        rows = export(site, label)
        request = site.get(reverse(f"admin:{label}_changelist")).wsgi_request
        assert len(rows) == model_admin.get_changelist_instance(request).result_count, label


def test_an_export_follows_the_search_and_the_filters_and_has_plain_values(
    site: Client, environment
):
    build = make_build(environment, BuildState.FAILED)
    make_build(environment)
    Build.objects.filter(pk=build.pk).update(failure={"message": "no channel has it", "hint": ""})
    [row] = export(site, "environments_build", state__exact="FAILED")
    assert row["environment"] == "research/ml"
    assert "no channel has it" in row.values()
    assert build.created_at.isoformat() in row.values()
    assert export(site, "environments_build", q="nothing-like-it") == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_an_export_starts_as_a_formula(site: Client, start: str):
    assert csv_export.cell_text(f"{start}1+1") == f"'{start}1+1"
    assert csv_export.cell_text(-5) == "-5"
    namespace = make_namespace("formula")
    Namespace.objects.filter(pk=namespace.pk).update(description=f"{start}HYPERLINK()")
    for row in export(site, "environments_namespace"):
        assert not any(value.startswith(start) for value in row.values() if start in "=+@")


def test_an_export_reads_a_bounded_number_of_rows_at_once(
    site: Client, environment, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(5):
        make_build(environment, BuildState.QUEUED)
    monkeypatch.setattr(csv_export, "CHUNK", 2)
    with CaptureQueriesContext(connection) as captured:
        assert len(export(site, "environments_build")) == 5
    reads = [one["sql"] for one in captured if one["sql"].endswith(" LIMIT 2")]
    assert len(reads) == 3


def test_an_export_of_the_audit_log_is_audited(site: Client):
    export(site, "environments_auditevent", action="account")
    event = AuditEvent.objects.filter(action="audit.export").latest("pk")
    assert (event.username, event.changes) == ("root", {"action": "account", "format": "csv"})
    export(site, "environments_build")
    assert AuditEvent.objects.filter(action="audit.export").count() == 1


def test_an_export_is_refused_to_people_who_may_not_see_the_list(client: Client, alice):
    client.force_login(alice.account)
    for label in labels():
        assert client.get(reverse(f"admin:{label}_export")).status_code in {302, 403}, label


def test_every_list_that_shows_a_time_has_a_date_range():
    without = []
    for model, model_admin in admin.site._registry.items():
        shown = {*model_admin.list_display, *(model_admin.fields or ())}
        times = [
            field.name
            for field in model._meta.get_fields()
            if isinstance(field, models.DateTimeField) and field.name in shown
        ]
        ranges = [one for one in model_admin.list_filter if _is_range(one)]
        if times and not ranges:
            without.append(f"{model.__name__}: {', '.join(times)}")
    assert without == []


def _is_range(given: Any) -> bool:
    return isinstance(given, type) and issubclass(given, DateRange)


def test_a_date_range_includes_both_days(site: Client, environment):
    now = timezone.now()
    for days in (0, 1, 2, 3):
        build = make_build(environment, BuildState.QUEUED)
        Build.objects.filter(pk=build.pk).update(created_at=now - timedelta(days=days))
    url = reverse("admin:environments_build_changelist")
    since, until = f"{now - timedelta(days=2):%F}", f"{now - timedelta(days=1):%F}"

    def found(**query: str) -> int:
        return len(site.get(url, query).context["cl"].result_list)

    assert found(since=since) == 3
    assert found(until=until) == 3
    assert found(since=since, until=until) == 2
    assert found(since="no day") == 0


def test_sizes_have_decimal_units_and_are_read_as_they_are_written():
    assert format_size(44_270_415) == "44.3 MB"
    assert (parse_size("5 GB"), parse_size("1.5KiB"), parse_size("1000")) == (5 * 10**9, 1536, 1000)
    with pytest.raises(ValueError, match="is not a size"):
        parse_size("plenty")


def test_no_filter_is_titled_by_a_column_of_django(site: Client):
    page = site.get(reverse("admin:accounts_user_changelist"))
    filters = {one.title: one for one in page.context["cl"].filter_specs}
    assert {"state", "role", "kind"} <= set(filters)
    assert "By superuser status" not in page.content.decode()
    shown = [choice["display"] for choice in filters["role"].choices(page.context["cl"])]
    assert shown == ["All", "Administrators", "Other accounts"]


def test_a_filter_with_names_of_values_still_selects_rows(site: Client):
    page = site.get(reverse("admin:accounts_user_changelist"), {"is_superuser__exact": "1"})
    assert [user.username for user in page.context["cl"].result_list] == ["root"]
