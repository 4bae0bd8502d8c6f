"""Scope of an installation-wide credential: the namespaces whose builds may use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from condastore.errors import InvalidInputError

_PATTERN = re.compile(r"[a-z0-9._*?-]{1,64}")
_WILDCARDS = frozenset("*?")
#: Largest number of patterns of one credential.
MAX_PATTERNS = 200


def parse_scope(patterns: Iterable[str]) -> tuple[str, ...]:
    """Validate and sort names and patterns of namespaces.

    Raises:
        InvalidInputError: one cannot match any namespace, or there are too many.
    """
    found = tuple(sorted({pattern.strip() for pattern in patterns}))
    for pattern in found:
        if not _PATTERN.fullmatch(pattern):
            raise InvalidInputError(
                f"{pattern!r:.100} is not the name of a namespace, nor a pattern of names.",
                where="namespaces",
                hint="Write a name (research), or a pattern (physics-*; * for all shared ones).",
            )
    if len(found) > MAX_PATTERNS:
        raise InvalidInputError(f"At most {MAX_PATTERNS} patterns.", where="namespaces")
    return found


def exact_names(patterns: Iterable[str]) -> list[str]:
    """The entries without wildcards."""
    return [pattern for pattern in patterns if not _WILDCARDS & set(pattern)]


def in_scope(patterns: Sequence[str], name: str, *, personal: bool) -> bool:
    """Whether the namespace `name` matches one of the patterns.

    A wildcard never matches a personal namespace, which must be named in full.
    """
    if name in exact_names(patterns):
        return True
    return not personal and any(fnmatchcase(name, pattern) for pattern in patterns)
