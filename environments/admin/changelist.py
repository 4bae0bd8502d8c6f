"""Paginator and change list of the console: their cost does not grow with the number of rows.

Rows are counted up to a bound. The keys of a page are found first, by columns that an index may
hold; everything else that is shown is read for the rows of the page only.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.http import HttpRequest

if TYPE_CHECKING:
    _Paginator = Paginator[Any]
else:  # generic for the type checker only
    _Paginator = Paginator

#: Rows that are counted; a list with more rows says "more than".
MAX_COUNTED = 5_000


class CappedPaginator(_Paginator):
    """Counts up to a bound: users do not page past this many rows, and counting costs more."""

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        # Only keys: otherwise the annotations of each counted row would be computed.
        return int(rows.order_by().values("pk")[: MAX_COUNTED + 1].count())

    @property
    def capped(self) -> bool:
        return self._counted > MAX_COUNTED

    @cached_property
    def count(self) -> int:
        return min(self._counted, MAX_COUNTED)


class KeyedChangeList(ChangeList):
    """Reads the rows of a page by their keys, after the keys were found."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        found: Any = self.result_list
        keys = list(found.values_list("pk", flat=True))
        shown = self.root_queryset.filter(pk__in=keys).order_by()
        if not shown.query.select_related:
            shown = self.apply_select_related(shown)
        rows = {row.pk: row for row in shown} if keys else {}
        # A list, not a queryset: a queryset would apply an order of its own.
        self.result_list: Any = [rows[key] for key in keys if key in rows]
