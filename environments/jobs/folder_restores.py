"""Link the missing folder of a READY build again: the stages of a build, without solve and rules.

What it holds was judged and tested when the build became READY, and its lock names every byte. So
neither rules nor smoke tests run again, and kept packages need no channel. The folder appears by
one rename under the name that it had: nobody sees half of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings
from django.db import Error
from django.utils import timezone
from dramatiq.middleware import Shutdown

from condastore.errors import ConflictError, LeaseLostError, StoreError, TimeLimitError
from condastore.outages import failure, is_outage, persist
from environments.engine.prefix import linking
from environments.jobs import builds
from environments.jobs.build_run import Run
from environments.models import Build, Environment, FolderRestore, Namespace, RecalledLock
from environments.models.builds import Lease
from environments.services import (
    claiming,
    data_folder_marker,
    folder_access,
    folders,
    missing_folders,
    recalled_locks,
)
from environments.services.engine_context import Engine, get_engine

logger = structlog.get_logger(__name__)
#: Rows that are tried before the others are left to their workers.
TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The outcome of one attempt; `compile_later` as in `Run`."""

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
        lease = claiming.claim(restore)
        if build is not None and lease is not None:
            return _attempt(restore, build, lease)
    return None


def _attempt(restore: FolderRestore, build: Build, lease: Lease) -> Restored:
    with (
        structlog.contextvars.bound_contextvars(build=build.pk, folder=str(restore)),
        persist(lambda: FolderRun(build, lease, get_engine(), restore=restore)) as run,
    ):
        try:
            _work(run)
        finally:
            linking.move_to_trash(run.hidden_prefix, folders.data() / folders.TRASH)
    return Restored(build_id=build.pk, compile_later=run.compile_later)


def _work(run: FolderRun) -> None:
    try:
        builds.fetch_packages(run)
        run.check()
        run.create_parent()
        builds.link(run)
        run.check()
        run.publish()
    except LeaseLostError:
        if run.timed_out and not run.lost:
            limit = settings.BUILD_TIME_LIMIT.total_seconds()
            run.fail(TimeLimitError(f"Linking the folder again took longer than {limit:.0f} s."))
        else:
            logger.warning("lease lost")
    except StoreError as error:
        run.fail(error)
    except Shutdown:
        run.give_back_restore()
        raise
    except Exception as error:
        if is_outage(error):
            run.give_back_restore()  # an outage is no attempt
        else:
            run.fail(failure(error, what=f"Restoring {run.restore}"))


class FolderRun(Run):
    """What the stages see of a READY build whose folder is linked again.

    The lease is that of the FolderRestore: nothing is written to the build.
    """

    def __init__(
        self, build: Build, lease: Lease, engine: Engine, *, restore: FolderRestore
    ) -> None:
        super().__init__(build, lease, engine)
        self.restore = restore

    @cached_property
    def final_prefix(self) -> Path:
        return folders.data() / self.restore.prefix.path

    @cached_property
    def hidden_prefix(self) -> Path:
        return missing_folders.hidden_name(self.final_prefix, self.lease.token)

    @property
    def timed_out(self) -> bool:
        return time.monotonic() > self._deadline

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
        prefix = self.restore.prefix
        self.hidden_prefix.chmod(0o700)  # nobody else's before its mode is known to be right
        # It is there again: a worker that was taken for lost, or its successor, was faster.
        with contextlib.suppress(ConflictError):
            linking.publish_prefix(self.hidden_prefix, self.final_prefix, mode=None)
        folder_access.apply_to_environment(self.build.environment)
        persist(lambda: self.restore.succeed(self.lease))
        current = Environment.objects.present().filter(current__prefix=prefix)
        for namespace, name in current.values_list("namespace__name", "name"):
            folders.follow(namespace, name)
        if RecalledLock.objects.active().filter(lock=prefix.lock_id).exists():  # meanwhile
            recalled_locks.follow_lock(prefix.lock)
        logger.info("folder restored")

    def fail(self, error: StoreError) -> None:
        logger.warning("folder not restored", code=error.code, error=str(error))
        attempts, backoff = settings.BUILD_ATTEMPTS, settings.BACKOFF
        self._note(lambda: self.restore.fail(error, self.lease, attempts=attempts, backoff=backoff))

    def give_back_restore(self) -> None:
        self._note(lambda: self.restore.give_back(self.lease))

    def _note(self, write: Callable[[], None]) -> None:
        with contextlib.suppress(LeaseLostError, Error):
            persist(write)

    # --- the watching thread -------------------------------------------------------------------

    def _look(self) -> None:
        row = FolderRestore.objects.filter(pk=self.restore.pk).values_list("lease_token").first()
        if row is None or row[0] != self.lease.token:
            self.lost = True

    def _renew(self) -> None:
        started = time.monotonic()
        self.restore.renew(self.lease, life=settings.LEASE)
        self._renewed = started
