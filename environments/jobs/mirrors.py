"""Read the upstream index of a mirror, and render the views of it.

Rows hold the state: a lease with a token says which worker reads or renders, and each write checks
the token. If the upstream does not respond, the last known state is served.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.utils import timezone

from condastore.errors import (
    DamagedError,
    LeaseLostError,
    StoreError,
)
from condastore.outages import failure, is_outage, persist
from environments.domain.mirrors import end_of
from environments.engine.channels import mirrors as engine
from environments.engine.channels.mirror_fetch import State, fetch_index
from environments.engine.channels.mirror_history import Join
from environments.engine.channels.mirror_views import INDEX, REPODATA, SHARDS, Render
from environments.engine.network.addresses import guard
from environments.engine.system import disk
from environments.models import Blob, MirrorIndex, MirrorView
from environments.models.mirrors import Worked
from environments.services import blobs, folders, mirrors
from environments.services.engine_context import read_limits

logger = structlog.get_logger(__name__)
TIME_LIMIT = timedelta(minutes=30)


class _Work:
    """A folder, and the lease that is renewed whenever somebody asks whether to go on."""

    def __init__(self, row: Worked, token: int) -> None:
        self._row, self.token = row, token
        self._renewed = time.monotonic()
        self._lost = False
        name = f"{type(row).__name__.lower()}-{row.pk}-{token}-{secrets.token_hex(4)}"
        self.folder = mirrors.work_folder() / name

    def cancelled(self) -> bool:
        if not self._lost and time.monotonic() - self._renewed > settings.LEASE.total_seconds() / 3:
            self._lost = not self._row.renew(self.token, life=settings.LEASE)
            self._renewed = time.monotonic()
        return self._lost

    def carry_out(self, work: Join | Render) -> Mapping[str, Any]:
        return engine.run_work(
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
    history = row.history if row.history and blobs.is_intact(row.history) else None
    fetched = work.folder / "fetched"
    state = fetch_index(
        mirror.upstream,
        row.subdir,
        to=fetched,
        known=State(**row.state) if history else State(),
        credential=mirrors.credential_source(mirror)(mirror.upstream),
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
        Join(
            channel=mirror.upstream,
            subdir=row.subdir,
            fetched=fetched,
            history=work.local(history) if history else None,
            out=out,
            minute=int(at.timestamp() // 60),
        )
    )
    if told["changed"]:
        done |= {"history": blobs.add(out), "changed_at": at}
    row.finish(work.token, state=asdict(state), records=told["records"], **done)
    return bool(told["changed"])


def _renew_views(index: MirrorIndex) -> None:
    """Make the views that are in use, so that whoever asks next finds them."""
    live = MirrorView.objects.filter(index=index, used_at__gt=timezone.now() - mirrors.LIVE_WINDOW)
    try:
        policy = mirrors.policy_for(index.mirror)
    except StoreError as error:
        logger.info("mirror not shown", mirror=str(index), reason=error.message)
        return
    for moment in sorted(set(live.values_list("moment", flat=True))):
        view = mirrors.current_view(index, moment, policy)
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
    policy = mirrors.policy_for(index.mirror)
    if row.made_at is not None or mirrors.current_view(index, row.moment, policy).pk != row.pk:
        row.finish(work.token)  # the rules or the channel have changed meanwhile
        return
    assert index.history is not None
    if not blobs.is_intact(index.history):
        raise DamagedError(f"What {index} has seen of its channel is lost: it is looked at again.")
    end = end_of(date.fromisoformat(row.moment)) if row.moment else None
    told = work.carry_out(
        Render(
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
        repodata=blobs.add(work.folder / REPODATA),
        shard_index=blobs.add(work.folder / INDEX),
        shards=blobs.add(work.folder / SHARDS),
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
