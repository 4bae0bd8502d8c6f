"""How do the console's lists stay quick, whatever the number of rows?

Rows are counted to a bound. The keys of a page are found first, by columns that an index may hold;
what is shown beside is read for the rows of the page alone.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest

if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:  # generic for the type checker only
    _Paginator = Paginator

#: Rows that are counted; beyond it a list says "more than".
COUNTED = 5_000


class CappedPaginator(_Paginator):
    """Counts to a bound: beyond it nobody leafs, and counting would take longer than the page."""

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        # The keys alone: else what a row shows beside them is worked out for each that is counted.
        return int(rows.order_by().values("pk")[: COUNTED + 1].count())

    @property
    def capped(self) -> bool:
        return self._counted > COUNTED

    @cached_property
    def count(self) -> int:
        return min(self._counted, COUNTED)


class QuickList(ChangeList):
    """Reads the rows of a page by their keys, after those were found."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found: Any = self.result_list
        keys = list(found.values_list("pk", flat=True))
        shown = self.root_queryset.filter(pk__in=keys).order_by()
        if not shown.query.select_related:
            shown = self.apply_select_related(shown)
        rows = {row.pk: row for row in shown} if keys else {}
        # A list, not a query: that would ask for an order of its own.
        self.result_list: Any = [rows[key] for key in keys if key in rows]


class TextFilter(admin.SimpleListFilter):
    """A filter that is typed: for columns with too many values to list."""

    template = "admin/text_filter.html"
    input_type = "text"
    others: Sequence[tuple[str, str]] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("", "")]  # else Django leaves the filter out

    def choices(self, changelist: Any) -> Iterable[Any]:
        self.others = [
            (key, value)
            for key, values in changelist.filter_params.items()
            if key != self.parameter_name
            for value in (values if isinstance(values, list) else [values])
        ]
        yield {}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        if not value:
            return queryset
        try:
            return self.matching(queryset, value)
        except (ValueError, ValidationError):  # no number, no day: nothing is like it
            return queryset.none()

    def matching(self, rows: QuerySet[Any], value: str) -> QuerySet[Any]:
        raise NotImplementedError


def text_filter(name: str, title: str, lookup: str, *, lower: bool = False) -> type[TextFilter]:
    """A filter by `lookup`, such as "namespace__name"."""

    class Filter(TextFilter):
        parameter_name = name

        def matching(self, rows: QuerySet[Any], value: str) -> QuerySet[Any]:
            return rows.filter(**{lookup: value.lower() if lower else value})

    Filter.title = title  # a name of the enclosing function cannot be one of the class's
    return Filter


def day_filter(name: str, title: str, lookup: str) -> type[TextFilter]:
    """By the beginning of a day, UTC: `lookup` such as "at__gte"."""

    class Filter(TextFilter):
        parameter_name = name
        input_type = "date"

        def matching(self, rows: QuerySet[Any], value: str) -> QuerySet[Any]:
            day = datetime.date.fromisoformat(value)
            midnight = datetime.datetime.combine(day, datetime.time(), tzinfo=datetime.UTC)
            return rows.filter(**{lookup: midnight})

    Filter.title = title
    return Filter
