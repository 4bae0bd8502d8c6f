"""Display of values: links, badges, sizes and times, each with its plain value for CSV."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from environments.domain.sizes import format_size

#: Rows of a related table; the list behind its link shows all of them.
RELATED_ROWS = 50


class Displayed(SafeString):
    """Markup of a page; `plain` is the same value as a CSV cell has it."""

    plain: str

    @classmethod
    def of(cls, markup: str, plain: object) -> Displayed:
        shown = cls(markup)
        shown.plain = str(plain)
        return shown

    def __str__(self) -> Displayed:  # templates and the admin call str() and keep the result
        return self


def size(size_bytes: int | None) -> Displayed | str:
    """Show a size as `44.3 MB`; in a CSV as the number of bytes."""
    if size_bytes is None:
        return ""
    return Displayed.of(format_html("{}", format_size(size_bytes)), size_bytes)


def badge(text: object) -> Displayed:
    return Displayed.of(
        format_html('<span class="badge is-{}">{}</span>', str(text).lower(), text), text
    )


def long_text(text: object) -> Displayed | str:
    """Show a text that may wrap, and that the list clips after a few lines."""
    if not text:
        return ""
    return Displayed.of(format_html('<div class="long-text">{}</div>', text), text)


def time_span(seconds: float) -> str:
    """Return a duration in its largest unit: `3 days`, `1 hour`, `less than a minute`."""
    for unit, word in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            number = int(seconds // unit)
            return f"{number} {word}{'' if number == 1 else 's'}"
    return "less than a minute"


def relative_time(at: datetime.datetime | None) -> Displayed | str:
    """Show a time relative to now, with the time itself as its title."""
    if at is None:
        return ""
    seconds = (timezone.now() - at).total_seconds()
    words = f"{time_span(seconds)} ago" if seconds >= 0 else f"in {time_span(-seconds)}"
    if abs(seconds) < 60:
        words = "just now" if seconds >= 0 else "in less than a minute"
    return _time(at, words)


def exact_time(at: datetime.datetime | None) -> Displayed | str:
    """Show a time as date and time of day, in UTC."""
    return "" if at is None else _time(at, f"{at:%F %T}")


def _time(at: datetime.datetime, words: str) -> Displayed:
    markup = format_html(
        '<time datetime="{}" title="{}">{}</time>', at.isoformat(), f"{at:%F %T} UTC", words
    )
    return Displayed.of(markup, at.isoformat())


def link(row: Any, text: object = None) -> Displayed | str:
    """Link to the console page of a row."""
    if row is None:
        return ""
    meta, shown = row._meta, row if text is None else text
    url = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    return Displayed.of(format_html('<a href="{}">{}</a>', url, shown), shown)


def list_url(model: Any, **query: object) -> str:
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    return f"{url}?{urlencode(query)}" if query else url


@dataclass(frozen=True, slots=True, kw_only=True)
class RelatedTable:
    """A table below the fields of a page; `more` is the URL of the list of all rows."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    more: str = ""
    empty: str = "None."
    text: str = ""  # preformatted text instead of a table
