"""Versions of stored package records that match a version range."""

from __future__ import annotations

from typing import Any

from environments.domain.policy.package_specs import match_spec, package_spec
from environments.domain.policy.subjects import comparable
from environments.models import CondaRecord, PypiRecord

#: Characters that make a version a range.
_OPERATORS = frozenset("<>=!~*|,")


def matching_versions(manager: str, name: str, version: str) -> list[str]:
    """Return the versions of a package in stored locks that a range matches.

    They are few, so that the database looks up their records instead of scanning all packages.

    Args:
        manager: `conda` or `pypi`.
        name: normalized name of the package.
        version: a version, or a range such as `>=3,<3.0.13` or `1.26.*`.

    Raises:
        InvalidInputError: the range cannot be parsed.
    """
    if _OPERATORS.isdisjoint(version):
        return [version]
    spec = package_spec(f"{manager}:{name} {version}", wide=False)
    rows: Any = CondaRecord if manager == "conda" else PypiRecord
    stored = rows.objects.filter(name=name).order_by().values_list("version", flat=True).distinct()
    matcher = match_spec(spec.matcher)
    return [
        one
        for one in stored
        if (record := comparable(name, one)) is not None and matcher.matches(record)
    ]


def matching_records(manager: str, name: str, version: str = "", sha256: str = "") -> list[int]:
    """Return the keys of the stored records of a package; see `matching_versions`."""
    rows: Any = (CondaRecord if manager == "conda" else PypiRecord).objects.filter(name=name)
    if version:
        rows = rows.filter(version__in=matching_versions(manager, name, version))
    if sha256:
        rows = rows.filter(sha256=sha256)
    return list(rows.order_by().values_list("pk", flat=True))


def conda_name(name: str) -> str:
    return name.strip().lower()


def pypi_name(name: str) -> str:
    return conda_name(name).replace("_", "-").replace(".", "-")
