"""Backfill of the blob store with packages that builds use and that are not archived yet."""

from __future__ import annotations

import secrets
import shutil
import time
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet

from condastore.errors import StoreError
from environments.domain.lifecycle import BuildState
from environments.domain.records import Package
from environments.engine.packages.download_types import Patience
from environments.engine.packages.downloads import fetch_originals
from environments.models import (
    Blob,
    Build,
    CondaRecord,
    LockedConda,
    LockedPypi,
    PypiRecord,
)
from environments.services import blobs
from environments.services.engine_context import source_of
from environments.services.package_archive import PackageArchive, package_archive
from environments.services.solving import credentials_for

logger = structlog.get_logger(__name__)
#: Pause after a run that archived nothing.
IDLE = timedelta(minutes=30)
_idle_until = float("-inf")
_USED = Q(state=BuildState.READY, deleted_at=None, environment__deleted_at=None)


def backfill_if_due() -> None:
    """Backfill some packages; pause for a while once nothing could be archived."""
    global _idle_until
    if time.monotonic() >= _idle_until and not complete():
        _idle_until = time.monotonic() + IDLE.total_seconds()


def complete(*, most: int = 20) -> int:
    """Archive packages of usable builds that the store lacks; return how many were archived.

    A package is missing if it was in a worker's cache before packages were archived, or if its row
    was lost with a worker. Each run tries some, in changing order: a channel may be gone.
    """
    if not settings.KEEP_PACKAGES:
        return 0
    archive = package_archive()
    retained = 0
    for record, locked, part in (
        (CondaRecord, LockedConda, "conda"),
        (PypiRecord, LockedPypi, "pypi"),
    ):
        for row in _missing(record, locked)[:most]:
            builds = Build.objects.filter(_USED, **{f"lock__{part}__package": row})
            build = builds.select_related("environment__namespace").first()
            if build is not None:
                retained += _kept(row.value(), build, archive)
    return retained


def _missing(record: Any, locked: Any) -> QuerySet[Any]:
    """Records of packages in the folders of builds, without a whole blob; in no order."""
    ready = Build.objects.filter(_USED, lock=OuterRef("lock"), platform=OuterRef("platform"))
    used = locked.objects.filter(Exists(ready), package=OuterRef("pk"))
    there = Blob.objects.filter(sha256=OuterRef("sha256"), damaged_at=None)
    rows: QuerySet[Any] = record.objects.exclude(sha256="")
    return rows.filter(Exists(used.order_by()), ~Exists(there)).order_by("?")


def _kept(package: Package, build: Build, archive: PackageArchive) -> bool:
    credentials = credentials_for(build.environment.namespace, (package.url,))
    folder = blobs.blobs_folder() / f"keep-{package.sha256[:12]}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        fetch_originals(
            [package],
            folder,
            archive=archive,
            credentials=source_of(credentials),
            patience=Patience(read=settings.DOWNLOAD_TIMEOUT, attempts=1),
        )
    except StoreError as error:
        logger.warning("package cannot be kept", package=package.file_name, error=str(error))
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return bool(archive.kept([package.sha256]))
