"""How does a mirror follow its channel, and how are its views made and its packages fetched?

The rows are the truth, as for builds: a lease with a token says who looks or renders, and every
write carries the token. Where the channel does not answer, what was seen last is served.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from condastore.errors import (
    ChannelNotAllowedError,
    DamagedError,
    LeaseLostError,
    StoreError,
    UnavailableError,
)
from condastore.outages import failure, is_outage, persist
from environments.domain.mirrors import end_of
from environments.domain.policy import Effect, Policy
from environments.engine.channels import mirrors as engine
from environments.engine.channels.credentials import CredentialSource
from environments.engine.network.addresses import Guard, guard
from environments.engine.packages.downloads import Download, download_all, remove_leftovers
from environments.engine.system import disk
from environments.models import Blob, Mirror, MirrorIndex, MirrorPackage, MirrorView
from environments.models.clock_bounds import SKEW, older
from environments.models.mirrors import Worked
from environments.services import blobs, folders
from environments.services.engine_context import download_patience, read_limits, source_of
from environments.services.package_archive import PackageArchive
from environments.services.policies import policy_of
from environments.services.solving import mirror_credentials

logger = structlog.get_logger(__name__)
#: Part of each view's key: grows when the same records are told in another way.
RECIPE = 1
#: A view that somebody used so recently is made anew as soon as the channel has changed.
LIVE = timedelta(days=1)
#: Clients that began to read a view have so long to read the rest of it.
SUPERSEDED = timedelta(hours=1)
TIME_LIMIT = timedelta(minutes=30)
#: Days of one index that are kept as views: each takes as much as what is listed now.
MOST_DAYS = 60
#: Packages that one web process fetches at once.
FETCHERS = 8


# --- views: which one is it? ----------------------------------------------------------------------


def policy_for(mirror: Mirror) -> Policy:
    """The rules in force for it now.

    Raises:
        ChannelNotAllowedError: they do not allow the channel itself any more.
    """
    policy = policy_of(mirror.namespace)
    for rule in policy.rules:
        for _, reason in rule.of_channels((mirror.upstream,)):
            if rule.effect is not Effect.WARN:
                raise ChannelNotAllowedError(f"{reason} (rule “{rule.name}”)")
    return policy


def wanted(index: MirrorIndex, moment: str, policy: Policy) -> MirrorView:
    """The view of what is known now, made or not. `moment`: a day, or "" for what is listed now."""
    assert index.history is not None, "asked of indexes that were looked at"
    now = timezone.now()
    # The end of a day stays as it is, once a look has begun after it.
    looked_at = index.looked_at if moment else None
    over = looked_at is not None and looked_at >= end_of(date.fromisoformat(moment))
    parts = [
        str(RECIPE),
        policy.version,
        # An age lets other packages in as time goes by: so it is for solves, too.
        f"{now:%Y%m%d%H}" if policy.ages else "",
        "" if over else index.history.sha256,
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    rows = MirrorView.objects.select_related("repodata", "shard_index", "shards")
    row = rows.filter(index=index, moment=moment, key=key).first()
    if row is not None:
        return row
    # A day that was asked for stays one of them, whatever rules it is judged by meanwhile.
    others = MirrorView.objects.filter(index=index).exclude(moment__in=("", moment)).order_by()
    if moment and others.values("moment").distinct().count() >= MOST_DAYS:
        raise UnavailableError(
            f"Within {LIVE.total_seconds() / 3600:.0f} hours {MOST_DAYS} days of {index} were "
            "asked for, and no more are made.",
            hint="Ask again tomorrow, or for a day that was asked for.",
        )
    row, _ = rows.get_or_create(
        index=index, moment=moment, key=key, defaults={"policy_version": policy.version}
    )
    return row


def made(index: MirrorIndex, moment: str, policy: Policy) -> MirrorView | None:
    """The newest view that is there and was judged by just these rules."""
    return made_views(index, moment, policy).first()


def made_views(index: MirrorIndex, moment: str, policy: Policy) -> QuerySet[MirrorView]:
    rows = MirrorView.objects.select_related("repodata", "shard_index", "shards")
    rows = rows.filter(index=index, moment=moment, policy_version=policy.version)
    return rows.exclude(made_at=None).order_by("-made_at", "-pk")


# --- work of a worker -----------------------------------------------------------------------------


class _Work:
    """A folder, and the lease that is renewed whenever somebody asks whether to go on."""

    def __init__(self, row: Worked, token: int) -> None:
        self._row, self.token = row, token
        self._renewed = time.monotonic()
        self._lost = False
        name = f"{type(row).__name__.lower()}-{row.pk}-{token}-{secrets.token_hex(4)}"
        self.folder = folder() / name

    def cancelled(self) -> bool:
        if not self._lost and time.monotonic() - self._renewed > settings.LEASE.total_seconds() / 3:
            self._lost = not self._row.renew(self.token, life=settings.LEASE)
            self._renewed = time.monotonic()
        return self._lost

    def carry_out(self, work: engine.Join | engine.Render) -> Mapping[str, Any]:
        return engine.carry_out(
            work, folder=self.folder, cancelled=self.cancelled, time_limit=TIME_LIMIT
        )

    def local(self, blob: Blob) -> Path:
        """The bytes as a file of this machine."""
        path = blobs.local_path(blob)
        if path is None:
            path = self.folder / blob.sha256
            blobs.fetch(blob, path)
        return path

    def __enter__(self) -> _Work:
        disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def look(index_id: int, *, at: datetime | None = None) -> bool:
    """See what the channel lists now; whether it was another than before.

    Nothing is done where another worker looks, or where the mirror was deleted meanwhile.
    """
    rows = MirrorIndex.objects.select_related("mirror__namespace", "history")
    row = rows.filter(pk=index_id).first()
    token = row.claim(life=settings.LEASE) if row is not None else None
    if row is None or token is None:
        return False
    changed = False
    try:
        with _Work(row, token) as work:
            changed = _looked(row, work, at or timezone.now())
    except LeaseLostError:
        logger.warning("lease lost", mirror=str(row))
        return False
    except Exception as error:
        _gave_up(row, token, error)
        return False
    if changed:
        _renew_views(row)
    return changed


def _looked(row: MirrorIndex, work: _Work, at: datetime) -> bool:
    mirror = row.mirror
    # What was lost cannot be asked of the channel again: the mirror begins anew.
    history = row.history if row.history and blobs.is_whole(row.history) else None
    fetched = work.folder / "fetched"
    state = engine.fetch_index(
        mirror.upstream,
        row.subdir,
        to=fetched,
        known=engine.State(**row.state) if history else engine.State(),
        credential=credential_source(mirror)(mirror.upstream),
        cancelled=work.cancelled,
        limits=read_limits(),
        within=guard().allowing(urls=[mirror.upstream]),
    )
    done: dict[str, Any] = {"looked_at": at, "failure": None}
    if state is None:
        row.finish(work.token, **done)
        return False
    out = work.folder / "history"
    told = work.carry_out(
        engine.Join(
            channel=mirror.upstream,
            subdir=row.subdir,
            fetched=fetched,
            history=work.local(history) if history else None,
            out=out,
            minute=int(at.timestamp() // 60),
        )
    )
    if told["changed"]:
        done |= {"history": blobs.keep(out), "changed_at": at}
    row.finish(work.token, state=asdict(state), records=told["records"], **done)
    return bool(told["changed"])


def _renew_views(index: MirrorIndex) -> None:
    """Make the views that are in use, so that whoever asks next finds them."""
    live = MirrorView.objects.filter(index=index, used_at__gt=timezone.now() - LIVE)
    try:
        policy = policy_for(index.mirror)
    except StoreError as error:
        logger.info("mirror not shown", mirror=str(index), reason=error.message)
        return
    for moment in sorted(set(live.values_list("moment", flat=True))):
        view = wanted(index, moment, policy)
        if view.made_at is None:
            make(view.pk)


def make(view_id: int) -> None:
    """Render a view. Nothing is done for one that is there, or that another worker makes."""
    rows = MirrorView.objects.select_related("index__mirror__namespace", "index__history")
    row = rows.filter(pk=view_id).first()
    if row is None or row.made_at is not None:
        return
    token = row.claim(life=settings.LEASE)
    if token is None:
        return
    try:
        with _Work(row, token) as work:
            _made(row, work)
    except LeaseLostError:
        logger.warning("lease lost", mirror=str(row))
    except Exception as error:
        _gave_up(row, token, error)


def _made(row: MirrorView, work: _Work) -> None:
    index = row.index
    policy = policy_for(index.mirror)
    if row.made_at is not None or wanted(index, row.moment, policy).pk != row.pk:
        row.finish(work.token)  # the rules or the channel have changed meanwhile
        return
    assert index.history is not None
    if not blobs.is_whole(index.history):
        raise DamagedError(f"What {index} has seen of its channel is lost: it is looked at again.")
    end = end_of(date.fromisoformat(row.moment)) if row.moment else None
    told = work.carry_out(
        engine.Render(
            channel=index.mirror.upstream,
            subdir=index.subdir,
            history=work.local(index.history),
            folder=work.folder,
            policy=policy,
            now=time.time(),
            end=int(end.timestamp() // 60) if end else None,
            first_seen=folders.data() / folders.SEEN,
        )
    )
    row.finish(
        work.token,
        repodata=blobs.keep(work.folder / engine.REPODATA),
        shard_index=blobs.keep(work.folder / engine.INDEX),
        shards=blobs.keep(work.folder / engine.SHARDS),
        packages=told["packages"],
        refused=told["refused"],
        made_at=timezone.now(),
        failure=None,
    )


def _gave_up(row: Worked, token: int, error: Exception) -> None:
    if is_outage(error):  # of the database, not of the channel: looked at again at once
        logger.warning("mirror interrupted", mirror=str(row), error=str(error).strip())
        with suppress(LeaseLostError):
            persist(lambda: row.finish(token))
        return
    if not isinstance(error, StoreError):
        error = failure(error, what=f"Reading {row}")
    logger.warning("mirror failed", mirror=str(row), error=str(error))
    failed = error
    with suppress(LeaseLostError):
        persist(lambda: row.fail(token, failed))


def drop_views(*, now: datetime | None = None) -> int:
    """Forget the views that nobody reads; how many. Their bytes are collected later."""
    now = now or timezone.now()
    rows = MirrorView.objects.all()
    dropped = rows.filter(made_at=None, created_at__lt=now - SUPERSEDED).delete()[0]
    dropped += rows.exclude(moment="").filter(used_at__lt=now - LIVE).delete()[0]
    places = rows.order_by().values_list("index", "moment").distinct()
    for index, moment in list(places):
        here = rows.filter(index=index, moment=moment).exclude(made_at=None)
        newest = here.order_by("-made_at", "-pk").values_list("pk", flat=True)[:1]
        old = here.exclude(pk__in=list(newest)).filter(made_at__lt=now - SUPERSEDED)
        dropped += old.filter(used_at__lt=now - SUPERSEDED).delete()[0]
    return dropped


# --- packages -------------------------------------------------------------------------------------


def folder() -> Path:
    """Where files of mirrors are prepared: on the file system of the data folder."""
    return folders.data() / "cache" / "mirrors"


def drop_leftovers(*, older_than: timedelta) -> None:
    """Remove what killed processes left, and packages that were fetched and never kept."""
    remove_leftovers(folder(), older_than=older_than)
    oldest = time.time() - older_than.total_seconds()
    for path in folder().glob("*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def credential_source(mirror: Mirror) -> CredentialSource:
    return source_of(mirror_credentials(mirror.namespace, mirror.upstream))


def kept_package(mirror: Mirror, subdir: str, download: Download) -> Blob | None:
    """Return the bytes where they are kept, and the mirror's own upstream delivered them before.

    What an upstream lists is no right to bytes that are kept for others.
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
    blobs.want(rows)
    blob = rows.first()
    if blob is None or not blobs.is_whole(blob):
        return None
    MirrorPackage.objects.get_or_create(
        mirror=mirror, subdir=subdir, file_name=download.name, blob=blob
    )
    return blob


def keep_package(mirror: Mirror, subdir: str, download: Download, path: Path) -> Blob | None:
    """Keep a fetched file; None where somebody else took it and does so at this moment."""
    with suppress(FileNotFoundError):
        blobs.keep(path, download.sha256)
    return _add_package(mirror, subdir, download)


def fetching(download: Download, credentials: CredentialSource) -> Future[Path]:
    """The verified file, fetched once for all who ask at the same time, here and elsewhere.

    It goes on where whoever asked goes away; the next one finds it.
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
    if _executor is None or _executor[0] != os.getpid():  # a fork has no threads
        _executor = (os.getpid(), ThreadPoolExecutor(FETCHERS, thread_name_prefix="mirror"))
    return _executor[1]


def _fetch(download: Download, credentials: CredentialSource, within: Guard) -> Path:
    """Asks no database: it may outlive the request."""
    place = folder()
    final = place / download.stem
    disk.require_space(place, needed=download.size, reserve=settings.DISK_RESERVE)

    async def use(one: Download, part: Path) -> None:
        with suppress(FileExistsError):
            os.link(part, final)

    download_all(
        [download],
        folder=place,
        present=lambda one: final.exists(),
        use=use,
        verify=True,
        credentials=credentials,
        patience=download_patience(),
        parallel=1,
        within=within,
    )
    return final


def due(now: datetime, *, interval: timedelta) -> QuerySet[MirrorIndex]:
    """Indexes that were not looked at for `interval`, and that nobody looks at."""
    old = Q(looked_at=None) | older("looked_at", now, than=interval)
    rest = min(interval, 2 * Worked.REST)
    rests = Q(failure__isnull=False, tried_at__gt=now - rest, tried_at__lte=now + SKEW)
    return MirrorIndex.objects.filter(old, Worked.free(now)).exclude(rests)
