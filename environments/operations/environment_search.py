"""Search of environments by name, contained package, state, tag, channel and namespace."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet

from accounts.access import Actor
from condastore.errors import InvalidInputError
from environments.domain.lifecycle import FINISHED, BuildState
from environments.models import (
    Build,
    BuildTag,
    Environment,
    LockedConda,
    LockedPypi,
    LockRow,
    RecalledLock,
)
from environments.services.package_versions import conda_name, matching_records, pypi_name


class Health(StrEnum):
    """What a person must know first about an environment."""

    WORKS = "works"  # the current build can be used, and nothing newer failed
    RECALLED = "recalled"  # the current build holds a recalled package
    FAILED = "failed"  # the newest build failed
    HELD = "held"  # the newest build waits for an approval
    BUILDING = "building"  # the newest build is queued or running
    EMPTY = "empty"  # there is no current build


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFilters:
    """Conditions of a search, all of which must hold; empty ones do not count.

    Attributes:
        text: part of the name, of the namespace's name or of both joined by a slash; with an
            operator (`openssl <3.0.13`) a package of the current build.
        contains: package of the current build, with a version or range.
        channel: URL of a channel that the current build's lock uses.
    """

    text: str = ""
    contains: str = ""
    namespace: str = ""
    health: str = ""
    tag: str = ""
    channel: str = ""


_PACKAGE = re.compile(r"(?:(conda|pypi):)?([A-Za-z0-9_.-]+)\s*(.*)", re.DOTALL)
_RANGE = re.compile(r"[<>=!~*|,]|\s\d")


def is_package_search(text: str) -> bool:
    """Whether a search text names a package with a version rather than an environment."""
    return bool(_RANGE.search(text))


def search_environments(actor: Actor, filters: EnvironmentFilters) -> QuerySet[Environment]:
    """Return the environments that the actor may see and that match, without an order.

    Raises:
        InvalidInputError: a filter is not valid.
    """
    rows = Environment.objects.visible_to(actor)
    contains = filters.contains
    if filters.text:
        if is_package_search(filters.text):
            contains = contains or filters.text
        else:
            rows = rows.filter(_named(filters.text))
    if contains:
        rows = rows.filter(current__deleted_at=None, current__lock__in=locks_with(contains))
    if filters.namespace:
        rows = rows.filter(namespace__name=filters.namespace)
    if filters.tag:
        rows = rows.filter(
            pk__in=BuildTag.objects.filter(name=filters.tag).order_by().values("environment")
        )
    if filters.channel:
        rows = rows.filter(current__lock__in=_locks_of_channel(filters.channel))
    if filters.health:
        rows = rows.filter(_in_health(filters.health))
    return rows


def _named(text: str) -> Q:
    namespace, slash, name = text.partition("/")
    if slash:
        return Q(namespace__name__iendswith=namespace, name__istartswith=name)
    return Q(name__icontains=text) | Q(namespace__name__icontains=text)


def _records_with(package: str) -> dict[str, list[int]]:
    """Return the keys of records that match `[conda:|pypi:]NAME [VERSION]`, by manager."""
    match = _PACKAGE.fullmatch(package.strip())
    if match is None or len(package) > 300:
        raise InvalidInputError(
            f"{package[:100]!r} is not a package.",
            where="search",
            hint="Write a name, and a version if needed, such as openssl <3.0.13.",
        )
    manager, name, version = match[1], match[2], match[3].strip()
    names = {"conda": conda_name(name), "pypi": pypi_name(name)}
    return {
        kind: matching_records(kind, known, version)
        for kind, known in names.items()
        if manager in (None, kind)
    }


def locks_with(package: str) -> QuerySet[LockRow, Any]:
    """Return the keys of the locks that hold a package, as a subquery."""
    records = _records_with(package)
    conda = LockedConda.objects.filter(package__in=records.get("conda", [])).order_by()
    pypi = LockedPypi.objects.filter(package__in=records.get("pypi", [])).order_by()
    return LockRow.objects.filter(
        Q(pk__in=conda.values("lock")) | Q(pk__in=pypi.values("lock"))
    ).values("pk")


def packages_in(locks: Iterable[int], package: str) -> dict[int, list[str]]:
    """Return the `name version` of matching packages of each lock, for a page of locks."""
    found: dict[int, dict[str, None]] = {}
    records = _records_with(package)
    for rows, kind in ((LockedConda.objects, "conda"), (LockedPypi.objects, "pypi")):
        matching = (
            rows.filter(lock__in=list(locks), package__in=records.get(kind, []))
            .order_by("package__version")
            .values_list("lock", "package__name", "package__version")
            .distinct()
        )
        for lock, name, version in matching:
            found.setdefault(lock, {})[f"{name} {version}"] = None
    return {lock: list(names) for lock, names in found.items()}


def _locks_of_channel(channel: str) -> QuerySet[LockedConda, Any]:
    return LockedConda.objects.filter(package__channel=channel).order_by().values("lock")


def _newest_in(states: Iterable[str]) -> Q:
    newest = Build.objects.filter(
        state__in=list(states), deleted_at=None, number=F("environment__last_number")
    )
    return Q(pk__in=newest.order_by().values("environment"))


_UNFINISHED = sorted(set(BuildState) - FINISHED - {BuildState.HELD})


def _in_health(health: str) -> Q:
    recalled = Q(current__lock__in=RecalledLock.objects.active().order_by().values("lock"))
    conditions = {
        Health.RECALLED: recalled,
        Health.FAILED: _newest_in([BuildState.FAILED]),
        Health.HELD: _newest_in([BuildState.HELD]),
        Health.BUILDING: _newest_in(_UNFINISHED),
        Health.EMPTY: Q(current=None),
        Health.WORKS: Q(current__isnull=False)
        & ~recalled
        & ~_newest_in([BuildState.FAILED, BuildState.HELD, *_UNFINISHED]),
    }
    if health not in conditions:
        raise InvalidInputError(
            f"There is no state {health[:50]!r}.",
            where="state",
            hint=f"States: {', '.join(Health)}.",
        )
    return conditions[Health(health)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSummary:
    """An environment of a list, with what is shown of it."""

    environment: Environment
    newest: Build | None
    tags: Sequence[str]  # of the current build
    recalled: bool  # the current build holds a recalled package
    health: Health
    packages: Sequence[str] = ()  # those that the search asked for


def summaries(rows: Sequence[Environment], *, contains: str = "") -> list[EnvironmentSummary]:
    """Return what lists show of these environments, by a constant number of statements.

    `rows` are to be read with `select_related("namespace", "current__prefix", "created_by")`.
    """
    keys = [row.pk for row in rows]
    newest = {
        build.environment_id: build
        for build in Build.objects.filter(
            environment__in=keys, number=F("environment__last_number"), deleted_at=None
        ).defer("source", "log_archive", "verdicts")
    }
    locks = {row.current.lock_id for row in rows if row.current is not None} - {None}
    recalled = set(
        RecalledLock.objects.active().filter(lock__in=locks).values_list("lock", flat=True)
    )
    tags: dict[int, list[str]] = {}
    for build, name in BuildTag.objects.filter(environment__in=keys).values_list("build", "name"):
        tags.setdefault(build, []).append(name)
    packages = packages_in([lock for lock in locks if lock], contains) if contains else {}
    return [
        EnvironmentSummary(
            environment=row,
            newest=newest.get(row.pk),
            tags=tags.get(row.current_id or 0, ()),
            recalled=(hit := row.current is not None and row.current.lock_id in recalled),
            health=_health(row, newest.get(row.pk), recalled=hit),
            packages=packages.get(row.current.lock_id or 0, ()) if row.current else (),
        )
        for row in rows
    ]


def _health(environment: Environment, newest: Build | None, *, recalled: bool) -> Health:
    if recalled:
        return Health.RECALLED
    if newest is not None:
        if newest.state == BuildState.FAILED:
            return Health.FAILED
        if newest.state == BuildState.HELD:
            return Health.HELD
        if newest.state not in FINISHED:
            return Health.BUILDING
    return Health.EMPTY if environment.current_id is None else Health.WORKS


#: Entries of a facet that are counted and shown.
FACET_ENTRIES = 12


def health_counts(actor: Actor) -> Mapping[Health, int]:
    """Count the visible environments in each state."""
    visible = Environment.objects.visible_to(actor).order_by()
    return {one: visible.filter(_in_health(one)).count() for one in Health}


def namespace_counts(actor: Actor) -> list[tuple[str, int]]:
    """Return the namespaces with most visible environments, with their counts."""
    rows = Environment.objects.visible_to(actor).order_by()
    found = rows.values_list("namespace__name").annotate(count=Count("pk"))
    return list(found.order_by("-count", "namespace__name")[:FACET_ENTRIES])


def tag_counts(actor: Actor) -> list[tuple[str, int]]:
    """Return the most frequent tags of visible environments, with their counts."""
    visible = Environment.objects.visible_to(actor).order_by().filter(pk=OuterRef("environment"))
    rows = BuildTag.objects.filter(Exists(visible)).order_by().values_list("name")
    return list(
        rows.annotate(count=Count("environment")).order_by("-count", "name")[:FACET_ENTRIES]
    )


#: Environments whose channels are offered as filters: those that changed last.
CHANNEL_SAMPLE = 1_000


def channel_counts(actor: Actor) -> list[tuple[str, int]]:
    """Return the channels of recently changed visible environments, with their counts."""
    rows = Environment.objects.visible_to(actor).filter(current__isnull=False)
    recent = rows.order_by("-updated_at").values_list("current__lock__channels", flat=True)
    counts = Counter(url for urls in recent[:CHANNEL_SAMPLE] for url in set(urls or ()))
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:FACET_ENTRIES]
