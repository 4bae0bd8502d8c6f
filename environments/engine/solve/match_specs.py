"""MatchSpecs of rattler: cached parsing, names, and matching of versions and channels."""

from __future__ import annotations

from functools import lru_cache

import rattler
from rattler.version import VersionSpec

OR = " or "  # between alternatives, when different records of a package depend on different specs


@lru_cache(maxsize=20_000)
def parsed_spec(text: str) -> rattler.MatchSpec:
    return rattler.MatchSpec(text, strict=False)


@lru_cache(maxsize=20_000)
def spec_name(text: str) -> str:
    """Return the package name of a MatchSpec, or of alternatives joined by `OR`."""
    matcher = parsed_spec(text.split(OR)[0]).name
    return str(matcher.normalized if matcher is not None else text)


@lru_cache(maxsize=1_000)
def version_matches(wanted: str | None, version: str) -> bool:
    """Return True if the version part of a MatchSpec matches this version."""
    return wanted is None or VersionSpec(wanted).matches(rattler.Version(version))


def is_channel(url: str, wanted: str) -> bool:
    wanted = wanted.rstrip("/")
    return url == wanted or url.endswith(f"/{wanted}")
