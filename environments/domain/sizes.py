"""Sizes in bytes as people read and write them: decimal units, 1 MB = 1,000,000 bytes."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(?i)(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(i?)b?")


def format_size(size_bytes: int) -> str:
    """Return the size with one decimal: `44.3 MB`."""
    amount = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def parse_size(text: str) -> int:
    """Return the bytes of `5 GB`, `1.5 GiB` or `5000000000`.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size.")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
