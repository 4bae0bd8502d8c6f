"""CSV export of console lists: streamed in bounded memory, safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import label_for_field, lookup_field
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import strip_tags
from django.utils.http import content_disposition_header
from django.utils.safestring import SafeString

from condastore.http import request_turns
from environments.admin.display import Displayed, list_url

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:  # generic for the type checker only
    _ModelAdmin = admin.ModelAdmin

#: Rows that are read at once.
CHUNK = 500
#: First characters that make spreadsheets read a cell as a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


class CsvExport(_ModelAdmin):
    """Adds an export of all rows that the current search and filters find, oldest first."""

    #: Columns: names of fields and display methods. Empty means those of the list.
    export_fields: tuple[str, ...] = ()

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        view = self.admin_site.admin_view(self.export_view)
        return [path("export.csv", view, name=name), *super().get_urls()]

    def export_url(self, request: HttpRequest) -> str:
        url = reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_export")
        given = request.GET.copy()
        given.pop("p", None)  # the export has no pages
        return f"{url}?{given.urlencode()}" if given else url

    def export_view(self, request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            changelist = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{list_url(self.model)}?e=1")
        rows = changelist.get_queryset(request)
        self.record_export(request)
        label = f"{self.opts.model_name}s.csv"
        response = StreamingHttpResponse(
            _chunks(self._lines(rows)), content_type="text/csv; charset=utf-8"
        )
        response["Content-Disposition"] = content_disposition_header(True, label) or ""
        response["Cache-Control"] = "private, no-store"
        return response

    def record_export(self, request: HttpRequest) -> None:
        """Record the export in the audit log, if the rows are of a kind that needs it."""

    def _lines(self, rows: QuerySet[Any]) -> Iterator[str]:
        """Yield chunks of CSV text; each reads at most CHUNK rows, by their keys."""
        columns = [name for name in self._columns() if name != "action_checkbox"]
        headers = [str(label_for_field(name, self.model, self)) for name in columns]
        yield _csv([headers])
        keys, after = rows.order_by("pk"), 0
        while True:
            page = list(keys.filter(pk__gt=after).values_list("pk", flat=True)[:CHUNK])
            if page:
                found = rows.filter(pk__in=page).order_by("pk")
                yield _csv([[self._cell(row, name) for name in columns] for row in found])
                after = page[-1]
            if len(page) < CHUNK:
                return

    def _columns(self) -> Sequence[str]:
        return self.export_fields or tuple(str(name) for name in self.list_display)

    def _cell(self, row: Any, name: str) -> str:
        try:
            _, _, value = lookup_field(name, row, self)
        except ObjectDoesNotExist:
            return ""
        return cell_text(value)


def cell_text(value: Any) -> str:
    """Return a value as the text of a CSV cell that no spreadsheet runs as a formula."""
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, Displayed):
        text = value.plain
    elif isinstance(value, SafeString):
        text = strip_tags(value)
    elif isinstance(value, list | tuple):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


async def _chunks(lines: Iterator[str]) -> AsyncIterator[bytes]:
    """Read each chunk in a thread that a request may use, so that exports share its limit."""

    def read() -> str | None:
        return next(lines, None)

    while True:
        async with request_turns.running(request_turns.Kind.READ):
            text = await sync_to_async(read)()
        if text is None:
            return
        yield text.encode()
