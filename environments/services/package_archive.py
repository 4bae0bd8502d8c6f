"""Where are the packages that builds use kept as they came, so that nobody else need have them?

In the blob store, once: a package's sha256 names its blob. A worker takes from there what it misses
before it asks the channel, and adds what it fetched. A damaged one is fetched again from upstream.
A sha256 is no right to the bytes: they are taken for a URL that delivered them before.
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
from environments.engine.packages.downloads import Download
from environments.models import Blob, Build, BuildEvent, ChannelCredential, CondaRecord
from environments.models.locks import LockedConda
from environments.services import blobs, hosted_channels

logger = structlog.get_logger(__name__)
#: SQLite takes a limited number of variables in one statement.
BATCH = 500


class Kept:
    """What was there when it was asked; the database is written at the end, by who asked."""

    def __init__(self, known: Collection[str], *, keeps: bool = True) -> None:
        """`keeps`: False takes what is there, and adds nothing."""
        self._known = known
        self._keeps = keeps
        self._guard = threading.Lock()
        self.added: dict[str, int] = {}  # sha256: bytes
        self.damaged: dict[str, str] = {}  # sha256: why
        self.taken: list[str] = []

    def has(self, sha256: str) -> bool:
        return sha256 in self._known

    def take(self, sha256: str, to: Path) -> bool:
        try:
            why = blobs.copy(sha256, to)
        except StoreError as error:
            logger.warning("package archive failed", sha256=sha256, error=str(error))
            return False
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            why = f"they cannot be read: {error}"
        with self._guard:
            if why:
                self.damaged[sha256] = why
            else:
                self.taken.append(sha256)
        return not why

    def keep(self, sha256: str, path: Path) -> None:
        if not self._keeps:
            return
        try:
            size = path.stat().st_size
            # Not waited for until it is on the disk: what is damaged is fetched again.
            blobs.put(path, sha256, durable=False)
        except (StoreError, OSError) as error:
            logger.warning("package not kept", sha256=sha256, error=str(error))
            return
        with self._guard:
            self.added[sha256] = size


class PackageArchive:
    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps

    @contextmanager
    def opened(self, digests: Collection[str]) -> Iterator[Kept]:
        wanted = sorted(set(digests))
        for start in range(0, len(wanted), BATCH):
            blobs.mark_used(Blob.objects.filter(sha256__in=wanted[start : start + BATCH]))
        kept = Kept(self.kept(wanted), keeps=self._keeps)
        try:
            yield kept
        finally:
            try:
                _note(kept)
            except (DatabaseError, UnavailableError) as error:
                # Files without a row: `keeping` brings them again.
                logger.warning("kept packages not noted", error=str(error))

    def kept(self, digests: Collection[str]) -> set[str]:
        found: set[str] = set()
        ordered = sorted(set(digests))
        for start in range(0, len(ordered), BATCH):
            rows = Blob.objects.filter(sha256__in=ordered[start : start + BATCH], damaged_at=None)
            found.update(rows.values_list("sha256", flat=True))
        return found

    def delivered(self, downloads: Collection[Download]) -> set[str]:
        """Return the keys of those whose bytes may be used without asking their URL.

        A package of a build that was finished came from its URL then, through its channel. Hosted
        packages are here only, and whoever reads their channel was asked for before. Wheels come
        from indexes that the installation allows, or were fetched from their own URL in the solve.
        A channel may list files outside of itself (`base_url`). Those of a hosted channel, and
        those below a URL for which anybody stored a credential, are asked for every time.
        """
        exempt = {
            each.key
            for each in downloads
            if each.wheel
            or (each.channel and not each.is_foreign and hosted_channels.is_hosted(each.url))
        }
        closed = _closed([each.url for each in downloads if each.is_foreign])
        asked = {
            (each.url, each.sha256, each.channel): each.key
            for each in downloads
            if each.sha256 and not (each.is_foreign and each.url in closed)
        }
        digests = sorted({sha256 for _, sha256, _ in asked})
        # A build that was archived is fetched again in other states.
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
        return exempt | {key for place, key in asked.items() if place in found}

    def missing(self, packages: Sequence[Package]) -> list[Package]:
        """Those that are not kept; a package without a sha256 never is."""
        known = self.kept([package.sha256 for package in packages if package.sha256])
        return [package for package in packages if package.sha256 not in known]


def _closed(urls: Collection[str]) -> set[str]:
    """Those of `urls` that are of a hosted channel, or covered by a credential of anybody."""
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
    """Where the installation keeps no packages, those that were uploaded to it are there still."""
    return PackageArchive(keeps=settings.KEEP_PACKAGES)


def _note(kept: Kept) -> None:
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
