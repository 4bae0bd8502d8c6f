"""Read the upstream index of a mirror, and render the views of it.

If the upstream does not respond, the last known state is served.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.utils import timezone

from condastore.errors import DamagedError, StoreError
from environments.domain.mirrors import end_of
from environments.engine.channels import mirrors as engine
from environments.engine.channels.mirror_fetch import State, fetch_index
from environments.engine.channels.mirror_history import Join
from environments.engine.channels.mirror_views import INDEX, REPODATA, SHARDS, Render
from environments.engine.network.addresses import guard
from environments.engine.system import disk
from environments.jobs.leased_run import LeasedRun, claim
from environments.models import Blob, MirrorIndex, MirrorView
from environments.models.leased_work import Lease
from environments.models.mirrors import IndexState, MirrorWork, ViewState
from environments.services import blobs, folders, mirrors
from environments.services.engine_context import read_limits

logger = structlog.get_logger(__name__)
W = TypeVar("W", bound=MirrorWork)
#: How long the program that joins or renders may take, and the attempt as a whole.
PROGRAM_TIME_LIMIT, TIME_LIMIT = timedelta(minutes=30), timedelta(hours=1)


class MirrorRun(LeasedRun[W]):
    """One attempt of work at a mirror, with a folder for its files."""

    def __init__(self, row: W, lease: Lease) -> None:
        super().__init__(row, lease, time_limit=TIME_LIMIT)
        name = f"{self.kind}-{row.pk}-{lease.token}-{secrets.token_hex(4)}"
        self.folder = mirrors.work_folder() / name

    def create_folder(self) -> None:
        disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
        self.folder.mkdir(parents=True)

    def run_program(self, work: Join | Render) -> Mapping[str, Any]:
        """Run the engine's program in the folder; return its report."""
        return engine.run_work(
            work, folder=self.folder, cancelled=self.cancelled, time_limit=PROGRAM_TIME_LIMIT
        )

    def local(self, blob: Blob) -> Path:
        """Return the path of a file of this machine with the bytes of the blob."""
        path = blobs.local_path(blob)
        if path is None:
            path = self.folder / blob.sha256
            blobs.fetch(blob, path)
        return path

    def fail(self, error: StoreError) -> None:
        # An index is read again by interval, a view is rendered again by request.
        logger.warning("mirror failed", mirror=str(self.row), error=str(error))
        self.persist(lambda: self.row.fail(error, lease=self.lease, retry=False))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.folder, ignore_errors=True)


# --- indexes --------------------------------------------------------------------------------------


def read_upstream(index_id: int, *, at: datetime | None = None) -> bool:
    """Read what the upstream lists now; True if that has changed.

    Does nothing if another worker reads it, or if the mirror was deleted meanwhile.
    """
    rows = MirrorIndex.objects.select_related("mirror__namespace", "history")
    row = rows.filter(pk=index_id).first()
    lease = claim(row) if row is not None else None
    if row is None or lease is None:
        return False
    with IndexRun(row, lease) as run:
        run.carry_out(lambda: run.read(at or timezone.now()))
    if run.changed:
        _render_used_views(row)
    return run.changed


class IndexRun(MirrorRun[MirrorIndex]):
    """One attempt to read an upstream index."""

    changed = False

    def read(self, at: datetime) -> None:
        self.create_folder()
        row, mirror = self.row, self.row.mirror
        # An upstream does not list its past again: without its history a mirror starts over.
        history = row.history if row.history and blobs.is_intact(row.history) else None
        fetched = self.folder / "fetched"
        state = fetch_index(
            mirror.upstream,
            row.subdir,
            to=fetched,
            known=State(**row.upstream_state) if history else State(),
            credential=mirrors.credential_source(mirror)(mirror.upstream),
            cancelled=self.cancelled,
            limits=read_limits(),
            within=guard().allowing(urls=[mirror.upstream]),
        )
        done: dict[str, Any] = {"looked_at": at, "failure": None}
        if state is None:
            self.finish(IndexState.WAITING, **done)
            return
        out = self.folder / "history"
        report = self.run_program(
            Join(
                channel=mirror.upstream,
                subdir=row.subdir,
                fetched=fetched,
                history=self.local(history) if history else None,
                out=out,
                minute=int(at.timestamp() // 60),
            )
        )
        if report["changed"]:
            done |= {"history": blobs.add(out), "changed_at": at}
        done |= {"upstream_state": asdict(state), "records": report["records"]}
        self.finish(IndexState.WAITING, **done)
        self.changed = bool(report["changed"])


def _render_used_views(index: MirrorIndex) -> None:
    """Render the views that are in use, so that the next request finds them."""
    used = MirrorView.objects.filter(index=index, used_at__gt=timezone.now() - mirrors.LIVE_WINDOW)
    try:
        policy = mirrors.policy_for(index.mirror)
    except StoreError as error:
        logger.info("mirror not shown", mirror=str(index), reason=error.message)
        return
    for moment in sorted(set(used.values_list("moment", flat=True))):
        view = mirrors.current_view(index, moment, policy)
        if view.made_at is None:
            render(view.pk)


# --- views ----------------------------------------------------------------------------------------


def render(view_id: int) -> None:
    """Render a view, unless it is rendered already, or another worker does so."""
    rows = MirrorView.objects.select_related("index__mirror__namespace", "index__history")
    row = rows.filter(pk=view_id).first()
    lease = claim(row) if row is not None and row.made_at is None else None
    if row is None or lease is None:
        return
    with ViewRun(row, lease) as run:
        run.carry_out(run.render)


class ViewRun(MirrorRun[MirrorView]):
    """One attempt to render a view."""

    def render(self) -> None:
        self.create_folder()
        row, index = self.row, self.row.index
        policy = mirrors.policy_for(index.mirror)
        if mirrors.current_view(index, row.moment, policy).pk != row.pk:
            # The policy or the upstream has changed meanwhile: another row is current.
            self.finish(ViewState.FAILED, failure=None)
            return
        assert index.history is not None
        if not blobs.is_intact(index.history):
            raise DamagedError(f"The history of {index} is lost; its upstream is read again.")
        end = end_of(date.fromisoformat(row.moment)) if row.moment else None
        report = self.run_program(
            Render(
                channel=index.mirror.upstream,
                subdir=index.subdir,
                history=self.local(index.history),
                folder=self.folder,
                policy=policy,
                now=time.time(),
                end=int(end.timestamp() // 60) if end else None,
                first_seen=folders.data() / folders.SEEN,
            )
        )
        self.finish(
            ViewState.READY,
            repodata=blobs.add(self.folder / REPODATA),
            shard_index=blobs.add(self.folder / INDEX),
            shards=blobs.add(self.folder / SHARDS),
            packages=report["packages"],
            refused=report["refused"],
        )
