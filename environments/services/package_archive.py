"""Archive of original packages, so that builds outlive their channels.

Packages are blobs, named by their sha256. A worker looks here before it asks the channel, and adds
what it has fetched. A damaged blob is fetched again from upstream. Knowing a sha256 gives no
access: stored bytes are used only for a URL that has delivered them before.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from django.conf import settings
from django.db import DatabaseError
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from condastore.errors import StoreError, UnavailableError
from environments.domain.lifecycle import SERVED, BuildState
from environments.domain.records import Package
from environments.domain.urls import canonical_or_same, is_below
from environments.engine.packages.download_types import Download
from environments.models import Blob, Build, BuildEvent, ChannelCredential, CondaRecord
from environments.models.locks import LockedConda
from environments.services import blobs, hosted_channels

logger = structlog.get_logger(__name__)
#: SQLite limits the number of variables in one statement.
BATCH = 500


class ArchivedPackages:
    """Snapshot of the archived digests for one fetch; rows are written once at the end."""

    def __init__(self, known: Collection[str], *, keeps: bool = True) -> None:
        """`keeps`: False uses archived packages without adding any."""
        self._known = known
        self._keeps = keeps
        self._guard = threading.Lock()
        self.added: dict[str, int] = {}  # sha256 -> size in bytes
        self.damaged: dict[str, str] = {}  # sha256 -> reason
        self.taken: list[str] = []

    def has(self, sha256: str) -> bool:
        return sha256 in self._known

    def copy_to_file(self, sha256: str, to: Path) -> bool:
        try:
            why = blobs.copy(sha256, to)
        except StoreError as error:
            logger.warning("package archive failed", sha256=sha256, error=str(error))
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            why = f"it cannot be read: {error}"
        with self._guard:
            if why:
                self.damaged[sha256] = why
            else:
                self.taken.append(sha256)
        return not why

    def add(self, sha256: str, path: Path) -> None:
        if not self._keeps:
            return
        try:
            size = path.stat().st_size
            # Do not wait for fsync: a damaged package is fetched again.
            blobs.put(path, sha256, durable=False)
        except (StoreError, OSError) as error:
            logger.warning("package not archived", sha256=sha256, error=str(error))
            return
        with self._guard:
            self.added[sha256] = size


class PackageArchive:
    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps

    @contextmanager
    def opened(self, digests: Collection[str]) -> Iterator[ArchivedPackages]:
        requested = sorted(set(digests))
        for start in range(0, len(requested), BATCH):
            blobs.mark_used(Blob.objects.filter(sha256__in=requested[start : start + BATCH]))
        retained = ArchivedPackages(self.kept(requested), keeps=self._keeps)
        try:
            yield retained
        finally:
            try:
                _record(retained)
            except (DatabaseError, UnavailableError) as error:
                # The files have no row now; `package_backfill` adds them later.
                logger.warning("archived packages not recorded", error=str(error))

    def kept(self, digests: Collection[str]) -> set[str]:
        found: set[str] = set()
        ordered = sorted(set(digests))
        for start in range(0, len(ordered), BATCH):
            rows = Blob.objects.filter(sha256__in=ordered[start : start + BATCH], damaged_at=None)
            found.update(rows.values_list("sha256", flat=True))
        return found

    def delivered(self, downloads: Collection[Download]) -> set[str]:
        """Return the keys of downloads whose archived bytes may be used without asking their URL.

        The package of a finished build came from its URL through its channel. Hosted packages exist
        only here, and access to their channel was checked before. Wheels come from indexes that the
        installation allows, or were fetched from their own URL in the solve. A channel may list
        files outside of itself (`base_url`). Files of a hosted channel, and files below a URL for
        which any credential is stored, are requested each time.
        """
        exempt = {
            each.key
            for each in downloads
            if each.wheel
            or (each.channel and not each.is_foreign and hosted_channels.is_hosted(each.url))
        }
        closed = _restricted([each.url for each in downloads if each.is_foreign])
        requested = {
            (each.url, each.sha256, each.channel): each.key
            for each in downloads
            if each.sha256 and not (each.is_foreign and each.url in closed)
        }
        digests = sorted({sha256 for _, sha256, _ in requested})
        # An archived build may be fetched again in other states.
        was_ready = BuildEvent.objects.filter(build=OuterRef("pk"), state=BuildState.READY)
        finished = Build.objects.filter(
            Q(state__in=SERVED) | Exists(was_ready.order_by()),
            lock=OuterRef("lock"),
            platform=OuterRef("platform"),
        )
        used = LockedConda.objects.filter(Exists(finished), package=OuterRef("pk")).order_by()
        found: set[tuple[str, str, str]] = set()
        for start in range(0, len(digests), BATCH):
            rows = CondaRecord.objects.filter(
                Exists(used), sha256__in=digests[start : start + BATCH]
            )
            found.update(rows.order_by().values_list("url", "sha256", "channel"))
        return exempt | {key for location, key in requested.items() if location in found}

    def missing(self, packages: Sequence[Package]) -> list[Package]:
        """Return the packages that are not archived; one without a sha256 never is."""
        known = self.kept([package.sha256 for package in packages if package.sha256])
        return [package for package in packages if package.sha256 not in known]


def _restricted(urls: Collection[str]) -> set[str]:
    """Return those of `urls` that belong to a hosted channel or are covered by any credential."""
    if not urls:
        return set()
    stored = ChannelCredential.objects.order_by().values_list("url_prefix", flat=True).distinct()
    prefixes = [canonical_or_same(prefix) for prefix in stored]
    return {
        url
        for url in urls
        if hosted_channels.is_hosted(url) or any(is_below(url, prefix) for prefix in prefixes)
    }


def package_archive() -> PackageArchive:
    """Return the archive; if archiving is disabled, packages uploaded here are still used."""
    return PackageArchive(keeps=settings.KEEP_PACKAGES)


def _record(kept: ArchivedPackages) -> None:
    now = timezone.now()
    if kept.added:
        rows = [
            Blob(sha256=sha256, size=size, stored_at=now, used_at=now)
            for sha256, size in kept.added.items()
        ]
        Blob.objects.bulk_create(
            rows,
            update_conflicts=True,
            unique_fields=["sha256"],
            update_fields=["size", "used_at", "damaged_at", "removing_at"],
            batch_size=BATCH // 5,
        )
    if kept.damaged:
        blobs.require_mounted()
    for sha256, why in kept.damaged.items():
        logger.error("damaged package", sha256=sha256, reason=why, again=sha256 in kept.added)
        if sha256 not in kept.added:
            Blob.objects.filter(sha256=sha256).update(damaged_at=now)
    if kept.taken:
        taken = Blob.objects.filter(sha256__in=kept.taken)
        taken.update(used_at=now, checked_at=now, removing_at=None)
