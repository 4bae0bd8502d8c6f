"""List of environments: search, filters, sorting, and counts of the filters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.views.decorators.http import require_safe

from condastore.errors import StoreError
from environments.console.keyset import Column, Page, read_page
from environments.console.responses import actor_of, render_page, text_of
from environments.operations.environment_search import (
    EnvironmentFilters,
    Health,
    channel_counts,
    health_counts,
    is_package_search,
    namespace_counts,
    search_environments,
    summaries,
    tag_counts,
)

#: Rows of one page.
PAGE_SIZE = 50
LONGEST_TEXT = 300

_KEY = Column(field="pk", kind=int, descending=True)
_NAME = (Column(field="namespace__name", kind=str), Column(field="name", kind=str))
ORDERS = {
    "name": ("Name", _NAME),
    "used": (
        "Last used",
        (Column(field="used_at", kind=datetime, descending=True, nullable=True), _KEY),
    ),
    "changed": (
        "Last changed",
        (Column(field="updated_at", kind=datetime, descending=True), _KEY),
    ),
}
HEALTH = {
    Health.WORKS: ("Current works", "check"),
    Health.FAILED: ("Newest failed", "st-failed"),
    Health.HELD: ("Newest is held", "st-held"),
    Health.RECALLED: ("Recalled package", "st-recalled"),
    Health.BUILDING: ("Building", "st-linking"),
    Health.EMPTY: ("No current build", "st-queued"),
}
#: Filters by query parameter, with what their pill says.
PILLS = {
    "contains": "contains",
    "namespace": "namespace",
    "state": "state",
    "tag": "tag",
    "channel": "channel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An entry of a facet; `count` is None until it was counted."""

    label: str
    url: str
    icon: str = ""
    count: int | None = None
    current: bool = False


def _parameter(request: HttpRequest, name: str) -> str:
    return request.GET.get(name, "").replace("\0", "").strip()[:LONGEST_TEXT]


def _query(request: HttpRequest, **changes: str) -> str:
    """Return the address of the list with some parameters changed, on its first page."""
    query = QueryDict(mutable=True)
    for name in ("q", "sort", *PILLS):
        if value := changes.get(name, _parameter(request, name)):
            query[name] = value
    return f"{request.path.removesuffix('filters/')}?{query.urlencode()}"


def _filters(request: HttpRequest) -> EnvironmentFilters:
    return EnvironmentFilters(
        text=_parameter(request, "q"),
        contains=_parameter(request, "contains"),
        namespace=_parameter(request, "namespace"),
        health=_parameter(request, "state"),
        tag=_parameter(request, "tag"),
        channel=_parameter(request, "channel"),
    )


@require_safe
def environments(request: HttpRequest) -> HttpResponse:
    filters = _filters(request)
    order = _parameter(request, "sort")
    order = order if order in ORDERS else "name"
    contains = filters.contains or (filters.text if is_package_search(filters.text) else "")
    wrong, page, listed = "", Page(rows=(), previous="", next=""), []
    try:
        rows = search_environments(actor_of(request), filters).select_related(
            "namespace", "current__prefix", "created_by"
        )
        page = read_page(
            rows.defer("current__source", "current__log_archive", "current__verdicts"),
            ORDERS[order][1],
            size=PAGE_SIZE,
            after=_parameter(request, "after"),
            before=_parameter(request, "before"),
        )
        listed = summaries(page.rows, contains=contains)
    except StoreError as error:
        wrong = text_of(error)
    here = _query(request)
    context = {
        "section": "environments",
        "rows": listed,
        "health": HEALTH,
        "contains": contains,
        "search": filters.text,
        "wrong": wrong,
        "pills": list(_pills(request)),
        "hidden": [(name, value) for name in PILLS if (value := _parameter(request, name))],
        "filtered": filters != EnvironmentFilters(),
        "orders": [(key, label) for key, (label, _) in ORDERS.items()],
        "order": order,
        "previous": f"{here}&before={page.previous}" if page.previous else "",
        "next": f"{here}&after={page.next}" if page.next else "",
        "facets": _facets(request),
        "counts": request.path + "filters/?" + here.partition("?")[2],
        "package_link": _query(request, q="", contains=filters.text)
        if filters.text and not contains
        else "",
    }
    return render_page(
        request,
        "environments/environments.html",
        context,
        partial="environments/_environment_results.html",
        status=400 if wrong else None,
    )


@require_safe
def filters(request: HttpRequest) -> HttpResponse:
    """Return the filters with their counts, which are read after the page is shown."""
    context = {
        "facets": _facets(request, counted=True),
        "prefix": "small-" if request.GET.get("prefix") == "small-" else "",
    }
    return render(request, "environments/_environment_facets.html", context)


def _pills(request: HttpRequest) -> Iterable[dict[str, str]]:
    for name, label in PILLS.items():
        if value := _parameter(request, name):
            known = HEALTH.get(Health(value)) if name == "state" and value in set(Health) else None
            yield {
                "label": label,
                "value": known[0] if known else value,
                "remove": _query(request, **{name: ""}),
            }


def _facets(request: HttpRequest, *, counted: bool = False) -> list[dict[str, Any]]:
    """Return the facets; without counts only those that need no query."""
    actor = actor_of(request)
    counts = health_counts(actor) if counted else {}
    chosen = _parameter(request, "state")
    found: list[dict[str, Any]] = [
        {
            "name": "State",
            "options": [
                Option(
                    label=label,
                    icon=icon,
                    count=counts.get(one),
                    current=chosen == one,
                    url=_query(request, state="" if chosen == one else one),
                )
                for one, (label, icon) in HEALTH.items()
            ],
        }
    ]
    if not counted:
        return found
    for name, key, rows in (
        ("Namespace", "namespace", namespace_counts(actor)),
        ("Tag", "tag", tag_counts(actor)),
        ("Channel", "channel", channel_counts(actor)),
    ):
        chosen = _parameter(request, key)
        options = [
            Option(
                label=label,
                count=count,
                current=chosen == label,
                url=_query(request, **{key: "" if chosen == label else label}),
            )
            for label, count in rows
        ]
        if options:
            found.append({"name": name, "options": options})
    return found
