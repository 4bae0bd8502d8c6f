"""Template tags and filters of pages: `{% load console %}`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from django import template
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.template.loader import get_template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from environments.domain.lifecycle import RUNNING, BuildState
from environments.domain.sizes import format_size

register = template.Library()

#: Class of `state` in console.css, by state of a build; running states are `is-run`.
STATE_CLASSES = {
    BuildState.QUEUED: "is-queued",
    BuildState.HELD: "is-held",
    BuildState.READY: "is-ready",
    BuildState.FAILED: "is-failed",
    BuildState.CANCELLING: "is-off",
    BuildState.CANCELLED: "is-off",
    BuildState.ARCHIVED: "is-off",
}
#: Icon in templates/icons, where its name is not `st-` and the state.
STATE_ICONS = {BuildState.CANCELLING: "st-cancelled"}
#: Times further away are shown as dates.
RELATIVE = timedelta(days=30)


@register.simple_tag(takes_context=True)
def site_host(context: template.RequestContext) -> str:
    """Show the host name of the request; nothing where Django refuses it (error pages)."""
    request = context.get("request")
    try:
        return request.get_host() if isinstance(request, HttpRequest) else ""
    except DisallowedHost:
        return ""


@register.filter
def size(size_bytes: int | str | None) -> str:
    """Show a number of bytes in decimal units: `44.3 MB`; nothing for a missing value."""
    return format_size(size_bytes) if isinstance(size_bytes, int) else ""


@cache
def _icon(name: str, css_class: str) -> str:
    return get_template(f"icons/{name}.svg").render({"css_class": css_class})


@register.simple_tag
def icon(name: str, css_class: str = "") -> str:
    """Include `templates/icons/NAME.svg`, with more classes for the `svg` element."""
    return _icon(name, css_class)


@register.inclusion_tag("console/_state.html")
def state(value: str, large: bool = False) -> dict[str, Any]:
    """Show the state of a build as icon and word."""
    known = BuildState(value)
    return {
        "word": known.value.capitalize(),
        "kind": "is-run" if known in RUNNING - {BuildState.CANCELLING} else STATE_CLASSES[known],
        "icon": STATE_ICONS.get(known, f"st-{known.value.lower()}"),
        "large": large,
    }


def relative(at: datetime, now: datetime) -> str:
    """Return the time as people say it: `2 hours ago`, `in 5 minutes`, `3 March 2025`."""
    distance = abs(now - at)
    if distance >= RELATIVE:
        return f"{at.day} {at:%B %Y}" if at.year != now.year else f"{at.day} {at:%B}"
    seconds = round(distance.total_seconds())
    if seconds < 45:
        return "now"
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (count := round(seconds / length)) and seconds >= 0.9 * length:
            words = f"{count} {name}{'s' if count > 1 else ''}"
            return f"{words} ago" if at <= now else f"in {words}"
    return "now"


@register.filter
def ago(at: datetime | None) -> str:
    """Show a relative time, with the exact one on hover."""
    if at is None:
        return ""
    exact = at.astimezone(UTC)
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        f"{exact:%Y-%m-%dT%H:%M:%SZ}",
        f"{exact:%Y-%m-%d %H:%M:%S}",
        relative(exact, timezone.now()),
    )


@register.filter
def duration(seconds: float | None) -> str:
    """Show a number of seconds: `0.4 s`, `41 s`, `3 min 5 s`, `2 h 4 min`."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def counted(number: int | None) -> str:
    """Show a count: exact up to 10,000, then to the nearest thousand."""
    if number is None:
        return ""
    return f"{number:,}" if number <= 10_000 else f"about {round(number, -3):,}"


@register.simple_tag
def bar(percent: float, label: str, kind: str = "", tick: float | None = None) -> SafeString:
    """Draw a horizontal bar.

    Args:
        percent: length, 0 to 100; more is drawn as 100.
        label: for screen readers.
        kind: `is-run`, `is-warn`, `is-bad` or empty.
        tick: position of a limit, in percent.
    """
    mark = "" if tick is None else format_html('<rect class="tick" x="{}%" height="100%"/>', tick)
    return format_html(
        '<svg class="bar" role="img" aria-label="{}"><rect class="bg" width="100%" height="100%"/>'
        '<rect class="fg {}" x="0%" width="{}%" height="100%"/>{}</svg>',
        label,
        kind,
        max(0, min(100, round(percent, 1))),
        mark,
    )


@register.inclusion_tag("console/_copy.html")
def copy(text: str, label: str) -> dict[str, str]:
    """Show a text to be copied, with a button; `label` names it for screen readers."""
    return {"text": text, "label": label}


@register.filter
def plural(number: int, words: str) -> str:
    """Return the number with its noun: `{{ 2|plural:"build" }}` or `"policy,policies"`."""
    one, _, many = words.partition(",")
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


@register.simple_tag
def continue_to(path: str | None) -> str:
    """Return what a person continues to after the sign-in: `research/churn` or a path."""
    shown = (path or "").partition("?")[0]
    if not shown.startswith("/") or shown.startswith("//") or shown == "/":
        return ""
    parts = shown.strip("/").split("/")
    if parts[0] == "environments" and len(parts) >= 3:
        return "/".join(parts[1:3])
    return shown
