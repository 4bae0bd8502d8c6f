"""Views and packages of mirrors: which view is current, what it was judged by, what is stored.

Callable from a request and from a worker. Rendering views and reading upstream indexes is the work
of `jobs.mirrors`. If the upstream does not respond, the last known state is served.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from condastore.errors import ChannelNotAllowedError, UnavailableError
from environments.domain.mirrors import end_of
from environments.domain.policy import Effect, Policy
from environments.engine.channels.credentials import CredentialSource
from environments.engine.network.addresses import Guard, guard
from environments.engine.packages.download_types import Download
from environments.engine.packages.downloads import download_all, remove_leftovers
from environments.engine.system import disk
from environments.models import Blob, Mirror, MirrorIndex, MirrorPackage, MirrorView
from environments.services import blobs, folders
from environments.services.engine_context import download_patience, source_of
from environments.services.package_archive import PackageArchive
from environments.services.policies import policy_of
from environments.services.solving import mirror_credentials

#: Part of each view's key. Increase it when the same records are rendered differently.
VIEW_FORMAT = 1
#: A view used within this time is rendered again as soon as the upstream has changed.
LIVE_WINDOW = timedelta(days=1)
#: How long a superseded view stays readable for clients that began to read it.
SUPERSEDED_TTL = timedelta(hours=1)
#: Days of one index with views at the same time; each costs as much as the current view.
MAX_DAYS = 60
#: Packages that one web process fetches at the same time.
MAX_CONCURRENT_FETCHES = 8


# --- views ----------------------------------------------------------------------------------------


def policy_for(mirror: Mirror) -> Policy:
    """Return the policy in force for the mirror.

    Raises:
        ChannelNotAllowedError: the policy no longer allows the upstream channel.
    """
    policy = policy_of(mirror.namespace)
    for rule in policy.rules:
        for _, reason in rule.refused_channels((mirror.upstream,)):
            if rule.effect is not Effect.WARN:
                raise ChannelNotAllowedError(f"{reason} (rule “{rule.name}”)")
    return policy


def current_view(index: MirrorIndex, day: str, policy: Policy) -> MirrorView:
    """Get or create the view of what is known now; it may not be rendered yet.

    Args:
        index: one whose upstream was read at least once.
        day: an ISO date, or "" for what is listed now.
    Raises:
        UnavailableError: too many days of this index have views.
    """
    assert index.history is not None, "an index without history has no views"
    now = timezone.now()
    # The end of a day is final once the upstream was read after it.
    looked_at = index.looked_at if day else None
    is_final = looked_at is not None and looked_at >= end_of(date.fromisoformat(day))
    parts = [
        str(VIEW_FORMAT),
        policy.version,
        # A minimum age lets more packages in as time passes; solves use the same hourly key.
        f"{now:%Y%m%d%H}" if policy.ages else "",
        "" if is_final else index.history.sha256,
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    rows = MirrorView.objects.select_related("repodata", "shard_index", "shards")
    row = rows.filter(index=index, moment=day, key=key).first()
    if row is not None:
        return row
    # A day counts once, whatever policies it was judged by.
    others = MirrorView.objects.filter(index=index).exclude(moment__in=("", day)).order_by()
    if day and others.values("moment").distinct().count() >= MAX_DAYS:
        hours = LIVE_WINDOW.total_seconds() / 3600
        raise UnavailableError(
            f"{MAX_DAYS} days of {index} were requested within {hours:.0f} hours; "
            "no more views are rendered for now.",
            hint="Retry tomorrow, or request a day that was requested before.",
        )
    row, _ = rows.get_or_create(
        index=index, moment=day, key=key, defaults={"policy_version": policy.version}
    )
    return row


def newest_rendered_view(index: MirrorIndex, day: str, policy: Policy) -> MirrorView | None:
    """Return the newest rendered view that was judged by exactly this policy version."""
    return rendered_views(index, day, policy).first()


def rendered_views(index: MirrorIndex, day: str, policy: Policy) -> QuerySet[MirrorView]:
    """Rendered views judged by exactly this policy version, newest first."""
    rows = MirrorView.objects.select_related("repodata", "shard_index", "shards")
    rows = rows.filter(index=index, moment=day, policy_version=policy.version)
    return rows.exclude(made_at=None).order_by("-made_at", "-pk")


def delete_unused_views(*, now: datetime | None = None) -> int:
    """Delete the rows of views that nobody reads; their blobs are garbage collected later.

    Returns:
        Number of deleted rows.
    """
    now = now or timezone.now()
    rows = MirrorView.objects.all()
    deleted = rows.filter(made_at=None, created_at__lt=now - SUPERSEDED_TTL).delete()[0]
    deleted += rows.exclude(moment="").filter(used_at__lt=now - LIVE_WINDOW).delete()[0]
    pairs = rows.order_by().values_list("index", "moment").distinct()
    for index, day in list(pairs):
        rendered = rows.filter(index=index, moment=day).exclude(made_at=None)
        newest = rendered.order_by("-made_at", "-pk").values_list("pk", flat=True)[:1]
        old = rendered.exclude(pk__in=list(newest)).filter(made_at__lt=now - SUPERSEDED_TTL)
        deleted += old.filter(used_at__lt=now - SUPERSEDED_TTL).delete()[0]
    return deleted


# --- packages -------------------------------------------------------------------------------------


def work_folder() -> Path:
    """Folder for files in preparation, on the file system of the data folder."""
    return folders.data() / "cache" / "mirrors"


def delete_leftovers(*, older_than: timedelta) -> None:
    """Delete files of killed processes, and fetched packages that were never stored."""
    remove_leftovers(work_folder(), older_than=older_than)
    oldest = time.time() - older_than.total_seconds()
    for path in work_folder().glob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def credential_source(mirror: Mirror) -> CredentialSource:
    """Return the credentials for the mirror's upstream."""
    return source_of(mirror_credentials(mirror.namespace, mirror.upstream))


def stored_package(mirror: Mirror, subdir: str, download: Download) -> Blob | None:
    """Return the stored package, if this mirror's own upstream has delivered it before.

    A listing alone gives no access: an upstream could list the digest of another tenant's package.
    """
    rows = Blob.objects.filter(sha256=download.sha256, damaged_at=None)
    ours = MirrorPackage.objects.filter(
        mirror=mirror, subdir=subdir, file_name=download.name, blob__in=rows
    )
    if not ours.exists() and download.key not in PackageArchive().delivered([download]):
        return None
    return _add_package(mirror, subdir, download)


def _add_package(mirror: Mirror, subdir: str, download: Download) -> Blob | None:
    rows = Blob.objects.filter(sha256=download.sha256, damaged_at=None)
    blobs.mark_used(rows)
    blob = rows.first()
    if blob is None or not blobs.is_intact(blob):
        return None
    MirrorPackage.objects.get_or_create(
        mirror=mirror, subdir=subdir, file_name=download.name, blob=blob
    )
    return blob


def store_package(mirror: Mirror, subdir: str, download: Download, path: Path) -> Blob | None:
    """Store a fetched file; None if another request moved the file and has not stored it yet."""
    with suppress(FileNotFoundError):
        blobs.add(path, download.sha256)
    return _add_package(mirror, subdir, download)


def start_fetch(download: Download, credentials: CredentialSource) -> Future[Path]:
    """Fetch and verify a file, once for all concurrent requests of this process.

    The fetch continues if the request is closed; the next request for the file finds it.
    """
    with _guard:
        running = _running.get(download.stem)
        if running is None:
            credential = credentials(download.url)
            within = guard().allowing(urls=[download.url])
            running = _pool().submit(_fetch, download, lambda url: credential, within)
            _running[download.stem] = running
            running.add_done_callback(lambda future: _running.pop(download.stem, None))
        return running


_running: dict[str, Future[Path]] = {}
_guard = threading.RLock()
_executor: tuple[int, ThreadPoolExecutor] | None = None


def _pool() -> ThreadPoolExecutor:
    global _executor
    if _executor is None or _executor[0] != os.getpid():  # threads do not survive a fork
        workers = ThreadPoolExecutor(MAX_CONCURRENT_FETCHES, thread_name_prefix="mirror")
        _executor = (os.getpid(), workers)
    return _executor[1]


def _fetch(download: Download, credentials: CredentialSource, within: Guard) -> Path:
    """Use no database: this may run longer than the request and its connection."""
    target_folder = work_folder()
    final = target_folder / download.stem
    disk.require_space(target_folder, needed=download.size, reserve=settings.DISK_RESERVE)

    async def use(one: Download, part: Path) -> None:
        with suppress(FileExistsError):
            os.link(part, final)

    download_all(
        [download],
        folder=target_folder,
        present=lambda one: final.exists(),
        use=use,
        verify=True,
        credentials=credentials,
        patience=download_patience(),
        parallel=1,
        within=within,
    )
    return final
