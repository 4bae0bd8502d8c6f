"""Link the missing folder of a READY build again: the stages of a build, without solve and rules.

What it holds was judged and tested when the build became READY, and its lock names every byte. So
neither rules nor smoke tests run again, and kept packages need no channel. The folder appears by
one rename under the name that it had: nobody sees half of it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.utils import timezone

from condastore.errors import ConflictError
from condastore.outages import persist
from environments.engine.prefix import linking
from environments.jobs import builds
from environments.jobs.build_run import LinkRun
from environments.jobs.leased_run import claim
from environments.models import Build, Environment, FolderRestore, Namespace, RecalledLock
from environments.models.folder_restores import RestoreState
from environments.models.leased_work import Lease
from environments.services import (
    data_folder_marker,
    folder_access,
    folders,
    missing_folders,
    recalled_locks,
)

logger = structlog.get_logger(__name__)
#: Rows that are tried before the others are left to their workers.
TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The outcome of one attempt; `compile_later` as in `LinkRun`."""

    build_id: int
    compile_later: bool


def is_more_due() -> bool:
    return FolderRestore.objects.due(timezone.now()).exists()


def restore_next() -> Restored | None:
    """Link the most urgent missing folder again; None if nothing is due, or enough are linked."""
    now = timezone.now()
    if FolderRestore.objects.due(now).exists() and (fault := data_folder_marker.fault()):
        logger.error("no folder is linked again", reason=fault)
        return None
    if FolderRestore.objects.running(now).count() >= settings.RESTORES_AT_ONCE:
        return None
    due = FolderRestore.objects.due(now).by_urgency().select_related("prefix__lock")
    for restore in due[:TRIES]:
        build = restore.build
        lease = claim(restore) if build is not None else None
        if build is not None and lease is not None:
            return _attempt(restore, build, lease)
    return None


def _attempt(restore: FolderRestore, build: Build, lease: Lease) -> Restored:
    with (
        structlog.contextvars.bound_contextvars(build=build.pk, folder=str(restore)),
        persist(lambda: FolderRun(restore, lease, build)) as run,
    ):
        try:
            run.carry_out(lambda: _work(run))
        finally:
            linking.move_to_trash(run.hidden_prefix, folders.data() / folders.TRASH)
    return Restored(build_id=build.pk, compile_later=run.compile_later)


def _work(run: FolderRun) -> None:
    builds.fetch_packages(run)
    run.check()
    run.create_parent()
    builds.link(run)
    run.check()
    run.publish()


class FolderRun(LinkRun[FolderRestore]):
    """One attempt to link the folder of a READY build again; writes nothing to the build."""

    @property
    def restore(self) -> FolderRestore:
        return self.row

    @cached_property
    def final_prefix(self) -> Path:
        return folders.data() / self.restore.prefix.path

    @cached_property
    def hidden_prefix(self) -> Path:
        return missing_folders.hidden_name(self.final_prefix, self.lease.token)

    def update(self, **changes: Any) -> None:
        self.check()

    def flush(self) -> None:
        with self._guard:
            lines, self._lines = self._lines, []
        for line in lines:
            logger.debug(line)

    def create_parent(self) -> None:
        """Create the folder that holds the prefix; an environment may have moved from there."""
        parent = self.final_prefix.parent
        home = Namespace.objects.filter(name=parent.name).first()
        if home is not None:
            folder_access.create_folder(folders.PREFIXES, home)
        else:
            parent.parent.mkdir(parents=True, exist_ok=True)
            parent.mkdir(mode=0o700, exist_ok=True)

    def publish(self) -> None:
        """Give the folder its name and its modes, and lead the links of environments there."""
        self.confirm()  # a worker that was stopped publishes nothing after its lease was lost
        prefix = self.restore.prefix
        self.hidden_prefix.chmod(0o700)  # nobody else's before its mode is known to be right
        # It is there again: a worker that was taken for lost, or its successor, was faster.
        with contextlib.suppress(ConflictError):
            linking.publish_prefix(self.hidden_prefix, self.final_prefix, mode=None)
        folder_access.apply_to_environment(self.build.environment)
        self.finish(RestoreState.RESTORED)
        current = Environment.objects.present().filter(current__prefix=prefix)
        for namespace, name in current.values_list("namespace__name", "name"):
            folders.follow(namespace, name)
        if RecalledLock.objects.active().filter(lock=prefix.lock_id).exists():  # meanwhile
            recalled_locks.follow_lock(prefix.lock)
        logger.info("folder restored")
