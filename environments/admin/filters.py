"""Filters of console lists: typed values, date ranges, and whether a column is empty."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest


def _other_parameters(changelist: Any, own: Sequence[str]) -> list[tuple[str, str]]:
    """Return the active filters other than `own`, for hidden fields of a filter's form."""
    return [
        (key, value)
        for key, values in changelist.filter_params.items()
        if key not in own
        for value in (values if isinstance(values, list) else [values])
    ]


class TextFilter(admin.SimpleListFilter):
    """A filter whose value is typed, for columns with too many values to list."""

    template = "admin/text_filter.html"
    others: Sequence[tuple[str, str]] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("", "")]  # Django omits a filter without lookups

    def choices(self, changelist: Any) -> Iterable[Any]:
        self.others = _other_parameters(changelist, [str(self.parameter_name)])
        yield {}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = (self.value() or "").strip()
        if not value:
            return queryset
        try:
            return self.matching(queryset, value)
        except (ValueError, ValidationError):  # not a number, for instance: no row matches
            return queryset.none()

    def matching(self, rows: QuerySet[Any], value: str) -> QuerySet[Any]:
        raise NotImplementedError


def text_filter(name: str, title: str, lookup: str, *, lower: bool = False) -> type[TextFilter]:
    """Return a filter by `lookup`, such as "namespace__name"."""

    class Filter(TextFilter):
        parameter_name = name

        def matching(self, rows: QuerySet[Any], value: str) -> QuerySet[Any]:
            return rows.filter(**{lookup: value.lower() if lower else value})

    Filter.title = title  # a class body cannot read a name of the function that it also assigns
    return Filter


class DateRange(admin.ListFilter):
    """Two days, UTC; both are included. Either may be empty."""

    template = "admin/date_range.html"
    field = ""
    since_parameter = ""
    until_parameter = ""
    others: Sequence[tuple[str, str]] = ()

    def __init__(
        self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        for name in self.expected_parameters():
            if name in params:
                value = params.pop(name)
                self.used_parameters[name] = value[-1] if isinstance(value, list) else value

    def has_output(self) -> bool:
        return True

    def expected_parameters(self) -> list[str | None]:
        return [self.since_parameter, self.until_parameter]

    def choices(self, changelist: Any) -> Iterable[Any]:
        self.others = _other_parameters(changelist, [self.since_parameter, self.until_parameter])
        yield {"selected": not self.used_parameters}

    @property
    def since(self) -> str:
        return str(self.used_parameters.get(self.since_parameter, ""))

    @property
    def until(self) -> str:
        return str(self.used_parameters.get(self.until_parameter, ""))

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        try:
            since, until = start_of_day(self.since), start_of_day(self.until, days_later=1)
        except (ValueError, OverflowError):  # not a day: no row matches
            return queryset.none()
        if since is not None:
            queryset = queryset.filter(**{f"{self.field}__gte": since})
        if until is not None:
            queryset = queryset.filter(**{f"{self.field}__lt": until})
        return queryset


def start_of_day(text: str, *, days_later: int = 0) -> datetime.datetime | None:
    """Return midnight, UTC, of an ISO 8601 day; None for an empty text."""
    if not text.strip():
        return None
    day = datetime.date.fromisoformat(text.strip()) + datetime.timedelta(days=days_later)
    return datetime.datetime.combine(day, datetime.time(), tzinfo=datetime.UTC)


def date_range(field_name: str, title: str, *, prefix: str = "") -> type[DateRange]:
    """Return a filter of the time column `field_name`; parameters are `since` and `until`.

    Args:
        prefix: of the parameters, where a list has more than one range.
    """

    class Filter(DateRange):
        field = field_name
        since_parameter = f"{prefix}since"
        until_parameter = f"{prefix}until"

    Filter.title = title
    return Filter


def presence_filter(
    name: str, title: str, column: str, *, present: str, absent: str
) -> type[admin.SimpleListFilter]:
    """Return a filter by whether `column` has a value, with a title for either case."""

    class Filter(admin.SimpleListFilter):
        parameter_name = name

        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
            return [("yes", present), ("no", absent)]

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
            if self.value() not in {"yes", "no"}:
                return queryset
            return queryset.filter(**{f"{column}__isnull": self.value() == "no"})

    Filter.title = title
    return Filter


def flag_filter(title: str, *, yes: str, no: str) -> type[admin.BooleanFieldListFilter]:
    """Return a filter of a boolean column with a title and names of its values.

    Django's own is titled by the column, such as "superuser status", with the values Yes and No.
    """
    names = {"Yes": yes, "No": no}

    class Filter(admin.BooleanFieldListFilter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.title = title

        def choices(self, changelist: Any) -> Iterable[Any]:
            for choice in super().choices(changelist):
                display = str(choice["display"])
                yield {**choice, "display": names.get(display, display)}

    return Filter


def titled_filter(title: str) -> type[admin.AllValuesFieldListFilter]:
    """Return a filter by all values of a column, with a title of its own."""

    class Filter(admin.AllValuesFieldListFilter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.title = title

    return Filter
