"""Locks that hold recalled packages, and the quarantine of their folders.

Rows say what is recalled; folders are brought in line with them here and at each cleanup.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from django.db.models import Q, QuerySet
from rattler import PackageRecord

from environments.domain.policy import PackageSpec, package_spec
from environments.domain.policy.subjects import comparable
from environments.models import (
    CondaRecord,
    Environment,
    LockedConda,
    LockedPypi,
    LockRow,
    Prefix,
    PypiRecord,
    Recall,
    RecalledLock,
)
from environments.models.locks import BATCH
from environments.services import folders

_GLOB = frozenset("*?[")
_COLUMNS = ("pk", "name", "version", "sha256")
_CONDA = (*_COLUMNS, "build", "build_number", "channel", "subdir", "file_name", "license")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """The columns of a stored record that a MatchSpec compares; its JSON is not loaded."""

    manager: str
    pk: int
    name: str
    version: str
    sha256: str
    build: str = ""
    build_number: int = 0
    channel: str = ""
    subdir: str = ""
    file_name: str = ""
    license: str = ""
    listed: bool = True
    source: str = ""
    published: float | None = None
    indexed: float | None = None

    @property
    def record(self) -> PackageRecord | None:
        if self.manager == "pypi":
            return comparable(self.name, self.version)
        return comparable(self.name, self.version, self.build, self.build_number, self.subdir)


def spec_of(recall: Recall) -> PackageSpec:
    return package_spec(f"{recall.manager}:{recall.spec}", wide=True)


def mark(recall: Recall) -> int:
    """Mark all stored locks that hold recalled packages, and return their number."""
    return _mark(recall, LockRow.objects.all())


def mark_lock(lock: LockRow) -> bool:
    """Apply recalls in force to a newly stored lock; True if it holds a recalled package."""
    found = 0
    for recall in Recall.objects.active():
        found += _mark(recall, LockRow.objects.filter(pk=lock.pk))
    return bool(found)


def recalled_packages(recall: Recall, locks: QuerySet[LockRow]) -> dict[int, set[str]]:
    """Return the recalled packages ("name version") of each of `locks` that holds any, by key.

    The recall need not be stored.
    """
    held: dict[int, set[str]] = {}
    for record, entry, columns in (
        (CondaRecord, LockedConda, _CONDA),
        (PypiRecord, LockedPypi, _COLUMNS),
    ):
        manager = "conda" if record is CondaRecord else "pypi"
        keys = sorted(_matching(recall, manager, record.objects.all(), columns))
        for start in range(0, len(keys), BATCH):
            entries: Any = entry.objects.order_by().filter(
                package__in=keys[start : start + BATCH], lock__in=locks
            )
            for lock, name, version in entries.values_list(
                "lock", "package__name", "package__version"
            ):
                held.setdefault(lock, set()).add(f"{name} {version}")
    return held


def _mark(recall: Recall, locks: QuerySet[LockRow]) -> int:
    held = recalled_packages(recall, locks)
    RecalledLock.objects.bulk_create(
        [
            RecalledLock(recall=recall, lock_id=lock, packages=sorted(packages))
            for lock, packages in held.items()
        ],
        batch_size=BATCH,
        ignore_conflicts=True,
    )
    return len(held)


def _matching(recall: Recall, manager: str, rows: Any, columns: tuple[str, ...]) -> Iterator[int]:
    """Yield the keys of recalled records: filtered by name in SQL, then compared."""
    if recall.sha256:
        yield from rows.filter(sha256=recall.sha256).order_by().values_list("pk", flat=True)
        return
    if manager != recall.manager:
        return
    spec = spec_of(recall)
    if not _GLOB & set(spec.name):
        rows = rows.filter(name=spec.name)
    elif spec.name != "*":
        names = rows.order_by().values_list("name", flat=True).distinct()
        wanted = [name for name in names if fnmatchcase(name, spec.name)]
        for start in range(0, len(wanted), BATCH):
            part = rows.filter(name__in=wanted[start : start + BATCH])
            yield from _compared(spec, manager, part, columns)
        return
    yield from _compared(spec, manager, rows, columns)


def _compared(
    spec: PackageSpec, manager: str, rows: Any, columns: tuple[str, ...]
) -> Iterator[int]:
    for values in rows.order_by().values_list(*columns).iterator():
        candidate = _Candidate(manager=manager, **dict(zip(columns, values, strict=True)))
        if spec.matches(candidate):
            yield candidate.pk


# --- folders --------------------------------------------------------------------------------------


def follow_recall(recall: Recall) -> None:
    """Move folders of recalled locks to quarantine, or restore those no longer recalled."""
    locks = RecalledLock.objects.filter(recall=recall).values("lock")
    follow_prefixes(Prefix.objects.filter(lock__in=locks))
    environments = Environment.objects.present().filter(current__lock__in=locks)
    for namespace, name in environments.values_list("namespace__name", "name"):
        folders.follow(namespace, name)


def follow_lock(lock: LockRow) -> None:
    """As `follow_recall`, for one lock."""
    follow_prefixes(Prefix.objects.filter(lock=lock))
    environments = Environment.objects.present().filter(current__lock=lock)
    for namespace, name in environments.values_list("namespace__name", "name"):
        folders.follow(namespace, name)


def follow_all() -> None:
    """Bring every folder in line with the rows, and discard quarantined prefixes without a row."""
    locks = RecalledLock.objects.active().values("lock")
    follow_prefixes(Prefix.objects.filter(Q(lock__in=locks) | Q(path__in=folders.quarantined())))
    known = set(
        Prefix.objects.filter(path__in=folders.quarantined()).values_list("path", flat=True)
    )
    for path in set(folders.quarantined()) - known:
        folders.discard_quarantined(path)


def follow_prefixes(prefixes: QuerySet[Prefix]) -> None:
    recalled = RecalledLock.objects.active().values("lock")
    for path in prefixes.filter(lock__in=recalled).values_list("path", flat=True):
        folders.quarantine(path)
    for path in prefixes.exclude(lock__in=recalled).values_list("path", flat=True):
        folders.restore(path)
