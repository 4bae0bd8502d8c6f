"""Template filters of pages: `{% load console %}`."""

from __future__ import annotations

from django import template

from environments.domain.sizes import format_size

register = template.Library()


@register.filter
def size(size_bytes: int | None) -> str:
    """Show a number of bytes in decimal units: `44.3 MB`."""
    return "" if size_bytes is None else format_size(size_bytes)
