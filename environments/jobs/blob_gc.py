"""Mark-and-sweep garbage collection of unreferenced blobs.

A blob that nothing refers to, and that was not used for a while, is marked. After the grace period
it is removed in one transaction that locks its row: a process that needs the blob meanwhile either
removes the mark first, or waits until the row is gone and stores the bytes again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, ProtectedError, Q, QuerySet, Sum
from django.utils import timezone

from environments.domain.artifacts import ArtifactState
from environments.models import (
    Artifact,
    Blob,
    Build,
    ImageBlob,
    ImageIndex,
    ImageStatement,
    Layer,
    LockedConda,
    LockedPypi,
)
from environments.models.images import replaced_bases
from environments.services import blobs

logger = structlog.get_logger(__name__)
#: Rows that are looked at together.
BATCH = 500
#: Rows that are removed in one transaction.
TOGETHER = 50
#: Bytes without a row, and rows without bytes, are so only for a moment while something is kept.
ORPHAN = timedelta(days=1)
#: A mark that was set this long ago was seen by everybody who might want the bytes.
NOTICE = timedelta(hours=1)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True, kw_only=True)
class Amount:
    """So many blobs, of so many bytes."""

    number: int = 0
    size: int = 0  # bytes

    def add(self, number: int, size: int) -> None:
        self.number += number
        self.size += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a collection did, or would do."""

    marked: Amount
    removed: Amount
    needed_again: Amount
    without_row: Amount
    without_bytes: Amount

    @classmethod
    def empty(cls) -> Report:
        return cls(**{name: Amount() for name in cls.__dataclass_fields__})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def collect(*, dry_run: bool = False, notice: timedelta = NOTICE, orphans: bool = True) -> Report:
    """One round. Safe beside everything else, and beside itself; in constant memory.

    Args:
        dry_run: nothing is changed; what is marked only by this round counts as `marked`.
        notice: what was marked so long ago is removed.
        orphans: compare the rows with what is in the store, which means to list all of it.
    """
    report = Report.empty()
    now = timezone.now()
    if not dry_run:
        _drop_rows(now)
    _sweep(report, now, notice=notice, dry_run=dry_run)
    _mark(report, now, dry_run=dry_run)
    if orphans:
        _find_orphans(report, now, dry_run=dry_run)
    logger.info("collected", dry_run=dry_run, **report.to_json())
    return report


def _drop_rows(now: datetime) -> None:
    """Rows with bytes that nothing refers to."""
    replaced_bases(now - settings.COLLECTION_GRACE).delete()
    ImageStatement.objects.exclude(build__in=kept_builds(now)).delete()


# --- references ----------------------------------------------------------------------------------


def kept_builds(now: datetime) -> QuerySet[Build]:
    """All that are there, and those that were deleted but may be brought back."""
    since = now - settings.UNDO_WINDOW
    here = Q(deleted_at=None) | Q(deleted_at__gte=since)
    location = Q(environment__deleted_at=None) | Q(environment__deleted_at__gte=since)
    return Build.objects.filter(here, location).order_by()


def _needed(now: datetime) -> Q:
    """Match blobs that a build needs, or something that does not belong to one build."""

    def kept(lock: str) -> Exists:
        return Exists(kept_builds(now).filter(lock=OuterRef(lock)))

    same = OuterRef("pk")
    making = Q(artifact__state=ArtifactState.MAKING)
    found: Q = (
        Q(Exists(Artifact.objects.order_by().filter(kept("lock"), blob=same)))
        | Q(Exists(ImageBlob.objects.filter(kept("artifact__lock") | making, blob=same)))
        | Q(Exists(ImageIndex.objects.filter(kept("lock"), blob=same)))
    )
    for locked in (LockedConda, LockedPypi):
        of_lock = locked.objects.order_by().filter(package__sha256=OuterRef("sha256"))
        found |= Q(Exists(of_lock.filter(kept("lock"))))
    for relation in Blob._meta.related_objects:
        if relation.related_model not in (Artifact, ImageBlob, ImageIndex, Layer):
            rows = relation.related_model._default_manager.order_by()
            found |= Q(Exists(rows.filter(**{relation.field.name: same})))
    return found


def _chunks(rows: QuerySet[Blob]) -> Iterator[QuerySet[Blob]]:
    """Some at a time, in the order of keys: what comes to lie before is for the next round."""
    last = 0
    while True:
        keys = list(rows.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:BATCH])
        if not keys:
            return
        yield rows.filter(pk__in=keys)
        last = keys[-1]


def _count(rows: QuerySet[Blob]) -> tuple[int, int]:
    found = rows.aggregate(number=Count("pk"), size=Sum("size"))
    return found["number"], found["size"] or 0


# --- mark and sweep -------------------------------------------------------------------------------


def _unused(now: datetime) -> QuerySet[Blob]:
    return Blob.objects.filter(used_at__lt=now - settings.COLLECTION_GRACE)


def _mark(report: Report, now: datetime, *, dry_run: bool) -> None:
    for chunk in _chunks(_unused(now).filter(removing_at=None)):
        unneeded = chunk.exclude(_needed(now))
        keys = list(unneeded.values_list("pk", flat=True))
        if keys:
            report.marked.add(*_count(Blob.objects.filter(pk__in=keys)))
        if keys and not dry_run:
            # Only if unused since: one that somebody wanted meanwhile is left alone.
            _unused(now).filter(pk__in=keys, removing_at=None).update(removing_at=now)


def _sweep(report: Report, now: datetime, *, notice: timedelta, dry_run: bool) -> None:
    for chunk in _chunks(Blob.objects.filter(removing_at__lte=now - notice)):
        again = chunk.filter(_needed(now) | Q(used_at__gte=now - settings.COLLECTION_GRACE))
        again_keys = list(again.values_list("pk", flat=True))
        if again_keys:
            report.needed_again.add(*_count(Blob.objects.filter(pk__in=again_keys)))
        rest = list(chunk.exclude(pk__in=again_keys).order_by("pk"))
        if dry_run:
            report.removed.add(len(rest), sum(blob.size for blob in rest))
            continue
        Blob.objects.filter(pk__in=again_keys).update(removing_at=None)
        if rest:
            # A store that does not answer is found out here, not while a row is held.
            blobs.storage().exists(blobs.name_of(rest[0].sha256))
        # An object store is asked while the rows are held: for one at a time.
        step = TOGETHER if isinstance(blobs.storage(), blobs.BlobFolder) else 1
        for start in range(0, len(rest), step):
            for blob in _remove(rest[start : start + step], now):
                report.removed.add(1, blob.size)


def _remove(some: Sequence[Blob], now: datetime) -> list[Blob]:
    """Bytes and rows, of those that still nothing needs; which they were."""
    keys = [blob.pk for blob in some]
    marked = _unused(now).filter(pk__in=keys, removing_at__isnull=False).order_by("pk")
    try:
        with transaction.atomic():
            # Without those that somebody wants again, or that another collection took first.
            held = {blob.pk: blob for blob in marked.select_for_update()}
            # A new statement, which sees what others committed while this one waited for the rows.
            again = Blob.objects.filter(pk__in=list(held)).filter(_needed(now))
            for key in list(again.values_list("pk", flat=True)):
                Blob.objects.filter(pk=key).update(removing_at=None)
                del held[key]
            if held:
                _forget(list(held))
                Blob.objects.filter(pk__in=list(held)).delete()
            for blob in held.values():
                blobs.remove(blob)
    except ProtectedError as error:
        if len(some) > 1:
            return [blob for one in some for blob in _remove([one], now)]
        logger.warning("blob is referred to", sha256=some[0].sha256, by=str(error)[:200])
        return []
    return list(held.values())


def _forget(keys: list[int]) -> None:
    """What was made of these blobs is not made any more."""
    parts = ImageBlob.objects.filter(blob__in=keys).values_list("artifact", flat=True)
    Artifact.objects.filter(pk__in=set(parts)).delete()
    Artifact.objects.filter(blob__in=keys).delete()
    ImageIndex.objects.filter(blob__in=keys).delete()
    emptied = Layer.objects.filter(gzip__in=keys).update(gzip=None)
    emptied += Layer.objects.filter(zstd__in=keys).update(zstd=None)
    if emptied:
        Layer.objects.filter(gzip=None, zstd=None).delete()


# --- orphans --------------------------------------------------------------------------------------


def _find_orphans(report: Report, now: datetime, *, dry_run: bool) -> None:
    """Bytes without a row get one that is to be removed; rows without bytes are damaged."""
    rows = _by_folder()
    folder, known = next(rows, ("", {}))
    for location in sorted(_folders()):
        while folder and folder < location:
            _lost(report, known, set(), now, dry_run=dry_run)
            folder, known = next(rows, ("", {}))
        # First files, then rows, since bytes are stored before their row.
        names = _listed(location)
        if folder == location:
            _lost(report, known, names, now, dry_run=dry_run)
            folder, known = next(rows, ("", {}))
        for name in names - _known(names):
            _adopt(report, f"sha256/{location}/{name}", name, now, dry_run=dry_run)
    while folder:
        _lost(report, known, set(), now, dry_run=dry_run)
        folder, known = next(rows, ("", {}))


def _by_folder() -> Iterator[tuple[str, dict[str, datetime]]]:
    """The rows of each folder of the store, by digest: when each was stored."""

    def pages() -> Iterator[tuple[str, datetime]]:
        last = ""
        while page := list(
            Blob.objects.filter(sha256__gt=last)
            .order_by("sha256")
            .values_list("sha256", "stored_at")[: BATCH * 10]
        ):
            yield from page
            last = page[-1][0]

    for folder, rows in groupby(pages(), key=lambda row: row[0][:2]):
        yield folder, dict(rows)


def _known(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    ordered = sorted(names)
    for start in range(0, len(ordered), BATCH):
        rows = Blob.objects.filter(sha256__in=ordered[start : start + BATCH])
        found.update(rows.values_list("sha256", flat=True))
    return found


def _lost(
    report: Report, known: dict[str, datetime], names: set[str], now: datetime, *, dry_run: bool
) -> None:
    lost = [sha256 for sha256, at in known.items() if at < now - ORPHAN and sha256 not in names]
    for blob in _in_batches(lost):
        report.without_bytes.add(1, blob.size)
        if not dry_run:
            blobs.record_damage(blob, "its bytes are gone")


def _in_batches(digests: list[str]) -> Iterator[Blob]:
    """Those that are not known to be damaged, and whose bytes really are not there."""
    for start in range(0, len(digests), BATCH):
        among = digests[start : start + BATCH]
        for blob in Blob.objects.filter(sha256__in=among, damaged_at=None, removing_at=None):
            if not blobs.storage().exists(blobs.name_of(blob.sha256)):
                yield blob


def _folders() -> set[str]:
    try:
        folders, _ = blobs.storage().listdir("sha256")
    except FileNotFoundError:
        return set()
    return set(folders)


def _listed(folder: str) -> set[str]:
    try:
        _, names = blobs.storage().listdir(f"sha256/{folder}")
    except FileNotFoundError:
        return set()
    return set(names)


def _adopt(report: Report, path: str, name: str, now: datetime, *, dry_run: bool) -> None:
    store = blobs.storage()
    try:
        stored_at, size = blobs.stored_at(path), store.size(path)
    except FileNotFoundError:
        return
    if stored_at > now - ORPHAN:
        return
    report.without_row.add(1, size)
    logger.warning("orphan bytes", path=path, size=size)
    if dry_run:
        return
    if not _DIGEST.fullmatch(name):
        store.delete(path)  # what a killed process left half-written
        return
    # A killed worker may have left a whole package: one that a build needs stays.
    damaged_at = None if blobs.has_intact(name) else now
    Blob.objects.get_or_create(
        sha256=name,
        defaults={
            "size": size,
            "stored_at": stored_at,
            "used_at": stored_at,
            "damaged_at": damaged_at,
            "removing_at": now,
        },
    )
