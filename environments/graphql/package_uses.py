"""Search for builds whose lock contains a package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from django.db.models import CharField, F, Q, QuerySet, Value
from strawberry import Info

from condastore.errors import InvalidInputError
from environments.graphql.channels import LockedPackageUse
from environments.graphql.connections import Key, Keyed
from environments.graphql.fields import actor_of, described
from environments.graphql.optimizer import below, optimized
from environments.graphql.packages import LockedPackage
from environments.models import (
    Build,
    Environment,
    LockedConda,
    LockedPypi,
)
from environments.services.package_versions import conda_name, matching_records, pypi_name

#: Order of the result: by environment, newest build first, then by package manager and entry.
_ORDER = ("namespace_name", "place_name", "-build_number", "kind", "entry")
_REVERSED = tuple(one[1:] if one.startswith("-") else f"-{one}" for one in _ORDER)


class PackageUses(Keyed):
    """Locked packages of both managers, read as a union with their builds and environments."""

    def __init__(self, info: Info, parts: Mapping[str, QuerySet[Any, Any]]) -> None:
        """`parts`: by manager, rows with the columns of `_ORDER` and `build` and `place`."""
        self._info, self._parts = info, parts

    def count(self) -> int:
        return self._union({}).count()

    def read(
        self, *, after: Key | None, before: Key | None, size: int, backwards: bool
    ) -> list[tuple[Key, Any]]:
        limits = {}
        for kind in self._parts:
            limits[kind] = Q()
            if after is not None:
                limits[kind] &= _beyond(kind, after, backwards=False)
            if before is not None:
                limits[kind] &= _beyond(kind, before, backwards=True)
        page = list(self._union(limits).order_by(*(_REVERSED if backwards else _ORDER))[:size])
        keys = [tuple(row[name.removeprefix("-")] for name in _ORDER) for row in page]
        return list(zip(keys, self._uses(page), strict=True))

    def _union(self, limits: Mapping[str, Q]) -> QuerySet[Any, Any]:
        conda, pypi = (rows.filter(limits.get(kind, Q())) for kind, rows in self._parts.items())
        return conda.union(pypi, all=True)

    def _uses(self, page: list[dict[str, Any]]) -> list[LockedPackageUse]:
        of_kind = {
            kind: [row["entry"] for row in page if row["kind"] == kind] for kind in self._parts
        }
        conda = LockedConda.objects.select_related("package").defer("package__record")
        entries: dict[tuple[str, int], Any] = {
            ("conda", one.pk): one for one in conda.filter(pk__in=of_kind["conda"])
        }
        pypi = LockedPypi.objects.select_related("package")
        entries |= {("pypi", one.pk): one for one in pypi.filter(pk__in=of_kind["pypi"])}
        builds = self._read(Build, "build", {row["build"] for row in page})
        environments = self._read(Environment, "environment", {row["place"] for row in page})
        return [
            LockedPackageUse(
                package=LockedPackage.of(entry.package, entry.platform),
                build=builds[row["build"]],
                environment=environments[row["place"]],
            )
            for row in page
            if (entry := entries[row["kind"], row["entry"]])
        ]

    def _read(self, model: type[Any], field: str, keys: set[int]) -> dict[int, Any]:
        rows = model.objects.filter(pk__in=keys)
        wanted = optimized(rows, below(self._info, "edges", "node", field))
        return {row.pk: row for row in wanted}


def _beyond(kind: str, key: Key, *, backwards: bool) -> Q:
    """The rows of one manager that follow a key in the order, or precede it."""
    namespace, place, number, other, entry = key
    if not all(isinstance(one, str) for one in (namespace, place, other)):
        raise TypeError(key)
    if not all(isinstance(one, int) and abs(one) < 2**62 for one in (number, entry)):
        raise TypeError(key)
    up, down = ("lt", "gt") if backwards else ("gt", "lt")
    same = Q(namespace_name=namespace, place_name=place, build_number=number)
    found = Q(**{f"namespace_name__{up}": namespace})
    found |= Q(namespace_name=namespace, **{f"place_name__{up}": place})
    found |= Q(namespace_name=namespace, place_name=place, **{f"build_number__{down}": number})
    if kind == other:
        found |= same & Q(**{f"entry__{up}": entry})
    elif (kind > other) is not backwards:
        found |= same
    return found


def find_uses(
    info: Info,
    name: Annotated[str, described("Exact name of the package.")],
    version: Annotated[
        str | None, described("Version, or a version range such as `<3.0.13`.")
    ] = None,
    sha256: Annotated[
        str | None, described("SHA-256 digest of the package file, in hexadecimal.")
    ] = None,
    current_only: Annotated[
        bool, described("True to search current builds only, false to search all builds.")
    ] = True,
) -> Iterable[LockedPackageUse]:
    if not name.strip():
        raise InvalidInputError("The name of a package is missing.", where="name")
    actor = actor_of(info)
    rows: Any
    if current_only:
        # From the environments on: databases expect next to no build to be the current one of its
        # own environment, and make plans for that which go through all packages of all of them.
        rows = Environment.objects.visible_to(actor).filter(current__deleted_at=None)
        build, place = "current__", ""
    else:
        rows = Build.objects.visible_to(actor)
        build, place = "", "environment__"

    def of(kind: str, name: str) -> QuerySet[Any, Any]:
        # Resolve record ids first so that the planner cannot choose a scan of all packages.
        keys = matching_records(kind, name, version or "", sha256 or "")
        found: QuerySet[Any, Any] = (
            rows.order_by()
            .filter(**{f"{build}lock__{kind}__package__in": keys})
            .values(
                kind=Value(kind, output_field=CharField()),
                entry=F(f"{build}lock__{kind}__pk"),
                build=F(f"{build}pk"),
                place=F(f"{place}pk"),
                namespace_name=F(f"{place}namespace__name"),
                place_name=F(f"{place}name"),
                build_number=F(f"{build}number"),
            )
        )
        return found

    parts = {"conda": of("conda", conda_name(name)), "pypi": of("pypi", pypi_name(name))}
    found: Any = PackageUses(info, parts)
    return found  # type: ignore[no-any-return]
