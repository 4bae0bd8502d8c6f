"""Runtime of one attempt of a build: lease, cancellation, log, progress, cleanup.

`LinkRun` is what the stages that fetch and link packages need; `BuildRun` adds what only a build
has. The heartbeat writes log and progress.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from django.conf import settings
from django.db import Error, transaction
from django.utils import timezone
from dramatiq.middleware import Shutdown

from condastore import row_changes
from condastore.errors import LeaseLostError, StoreError, TimeLimitError, TransitionError
from condastore.outages import DATABASE_ERRORS, persist
from environments.domain.lifecycle import RUNNING, BuildState
from environments.domain.linking import PathCheck
from environments.domain.lock import PlatformLock
from environments.domain.policy import Policy
from environments.domain.progress import Progress
from environments.domain.specification import Specification
from environments.engine.packages.cache import CachedPackage
from environments.engine.prefix import linking
from environments.engine.prefix.sizes import PrefixSize
from environments.engine.pypi.install import CachedWheel
from environments.jobs.leased_run import LeasedRun
from environments.jobs.slot_sharing import SlotSharing
from environments.models import Build, Prefix
from environments.models.leased_work import Lease, LeasedWork
from environments.services import folder_access, folders, platforms
from environments.services.engine_context import download_patience, get_engine, source_of
from environments.services.solving import credentials_for, source_urls

if TYPE_CHECKING:
    from environments.jobs.bytecode import Uncompiled

logger = structlog.get_logger(__name__)
W = TypeVar("W", bound=LeasedWork)


class LinkRun(LeasedRun[W]):
    """What the stages that fetch and link the packages of a build need."""

    def __init__(self, row: W, lease: Lease, build: Build) -> None:
        super().__init__(row, lease, time_limit=settings.BUILD_TIME_LIMIT)
        self.build, self.tools = build, get_engine()
        self.specification: Specification = build.specification.value()
        self.packages: list[CachedPackage] = []
        self.wheels: list[CachedWheel] = []
        self.paths: PathCheck | None = None  # of `packages`, once they are fetched
        self.size = PrefixSize()  # of what was linked
        self.uncompiled: Uncompiled | None = None
        self.compile_later = False
        self._lines: list[str] = []
        self._progress: Progress | None = None
        self._guard = threading.Lock()

    @cached_property
    def part(self) -> PlatformLock:
        """The lock's packages for the platform that is linked."""
        assert self.build.lock is not None, "solved before it is fetched"
        part = self.build.lock.value().on(self.build.platform)
        if part is None:
            raise LeaseLostError(f"The lock has no packages for {self.build.platform}.")
        return part

    @property
    def fetching(self) -> dict[str, Any]:
        """Arguments of the caches: credentials, parallelism, time limits, progress."""
        urls = source_urls(self.specification)
        return {
            "credentials": source_of(credentials_for(self.build.environment.namespace, urls)),
            "parallel": settings.DOWNLOADS_PARALLEL,
            "patience": download_patience(),
            "progress": self.progress,
            "cancelled": self.cancelled,
        }

    @property
    def runs_here(self) -> bool:
        return self.build.platform == platforms.own_platform()

    @cached_property
    def final_prefix(self) -> Path:
        raise NotImplementedError

    @cached_property
    def hidden_prefix(self) -> Path:
        raise NotImplementedError

    def log(self, line: str) -> None:
        """Add one or more lines to the log; the heartbeat writes them."""
        with self._guard:
            self._lines += [part[:4000].replace("\0", "") for part in line.splitlines()] or [""]

    def progress(self, progress: Progress) -> None:
        self._progress = progress


class BuildRun(LinkRun[Build]):
    """One attempt of a build, as its stages see it."""

    cancellable = True

    def __init__(self, build: Build, lease: Lease) -> None:
        super().__init__(build, lease, build)
        self.timings: dict[str, float] = {}
        self.policy: Policy | None = None  # by which the lock was judged in this attempt
        self._cancelling = False
        self._sharing: SlotSharing | None = None
        self._made_way = False  # the slot is handed to another namespace
        self._write = threading.Lock()
        self._named = False  # the final prefix is in place
        self._locked = build.lock_id is not None  # the names of the folders are known

    @cached_property
    def final_prefix(self) -> Path:
        return folders.data() / folders.planned_prefix(self.build)

    @cached_property
    def hidden_prefix(self) -> Path:
        """Where this attempt links: another attempt, or another worker, has another folder."""
        final = self.final_prefix
        return final.with_name(f".{final.name}.{self.lease.token}")

    # --- cancellation --------------------------------------------------------------------------

    def cancelled(self) -> bool:
        return self._cancelling or self._made_way or super().cancelled()

    @contextlib.contextmanager
    def sharing_slot(self) -> Iterator[None]:
        """Let the work make way for a build of another namespace; see `slot_sharing`."""
        self._sharing = SlotSharing(self.build)
        try:
            yield
        finally:
            self._sharing = None

    def notice(self, state: str) -> None:
        if state == BuildState.CANCELLING:
            self._cancelling = True
        elif (sharing := self._sharing) is not None and sharing.makes_way():
            self._made_way = True

    def update(self, **changes: Any) -> None:
        super().update(**changes)
        if "lock" in changes:
            self._locked = True

    # --- outcomes ------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Write down what became of a build that was stopped, and remove what it left."""
        if not self.clean_up():
            return
        if self.lost:
            logger.warning("lease lost", build=self.build.pk)
            return
        build, lease = self.build, self.lease
        with contextlib.suppress(TransitionError, LeaseLostError):
            if self.stopping is not None:
                persist(lambda: build.give_back(lease))
            elif self._made_way and not self._cancelling:
                message = "made way for a build of another namespace"
                persist(lambda: build.give_back(lease, message))
            elif self.timed_out and build.state != BuildState.CANCELLING:
                limit = settings.BUILD_TIME_LIMIT.total_seconds()
                error = TimeLimitError(f"The build took longer than {limit:.0f} s.")
                self.log(f"{error.code}: {error}")
                persist(lambda: build.fail(error, lease=lease, retry=False))
            else:
                persist(lambda: build.move(BuildState.CANCELLED, lease=lease))

    def fail(self, error: StoreError) -> None:
        """Requeue the build with backoff on a transient error until attempts run out."""
        build = self.build
        self.log(f"{error.code}: {error}")
        if not self.clean_up() or self.lost:
            return
        policy = build.retry_policy()
        if error.transient and build.attempt < policy.attempts:
            self.log(f"trying again in {policy.delay(build.attempt).total_seconds():.0f} s")
        elif error.transient:
            error.hint = f"It failed {build.attempt} times. Submit it again later."
        try:
            persist(lambda: build.fail(error, lease=self.lease))
        except TransitionError:  # a cancel came first
            self.abandon()
        except LeaseLostError:  # done already, by a commit whose answer was cut off
            logger.warning("lease lost", build=build.pk)

    def outlast(self, error: BaseException) -> None:
        self.log(f"the database could not be reached: {error}".strip())
        try:
            if self.clean_up() and not self.lost:
                message = "the database could not be reached"
                persist(lambda: self.build.give_back(self.lease, message))
        except TransitionError:  # a cancel came first
            self.abandon()
        except LeaseLostError:
            logger.warning("lease lost", build=self.build.pk)

    def interrupted(self, error: BaseException) -> None:
        if isinstance(error, Shutdown):
            self.stopping = error
        else:
            self.deadline = 0.0
        self.abandon()

    # --- log and progress ----------------------------------------------------------------------

    @contextlib.contextmanager
    def stage(self, state: BuildState) -> Iterator[None]:
        """Time one stage."""
        started = time.monotonic()
        self.log(f"--- {state.value.lower()}")
        try:
            yield
        finally:
            self.timings[state.value] = round(time.monotonic() - started, 3)
            self._progress = None

    def flush(self) -> None:
        with self._write:
            with self._guard:
                lines, self._lines = self._lines, []
            progress, self._progress = self._progress, None
            try:
                self.build.append_log(lines, lease=self.lease)
            except DATABASE_ERRORS:
                with self._guard:
                    self._lines = lines + self._lines
                raise
            if progress is not None:
                Build.objects.filter(pk=self.build.pk, lease_token=self.lease.token).update(
                    progress=asdict(progress)
                )
            if lines or progress is not None:
                row_changes.publish(f"buildlog:{self.build.pk}")

    # --- the prefix ----------------------------------------------------------------------------

    def name_prefix(self) -> None:
        """Rename the finished folder to its final name, and make its row."""
        self.confirm()  # a worker that was stopped publishes nothing after its lease was lost
        final = self.final_prefix
        if final.is_symlink():  # of smoke tests that were killed
            final.unlink()
        elif final.exists():  # of an attempt that ended between this rename and its outcome
            with self._holding():
                folders.discard(final, self.build.environment)
        namespace = self.build.environment.namespace
        folder_access.set_mode(self.hidden_prefix, folder_access.mode_of(namespace))
        linking.publish_prefix(self.hidden_prefix, final, mode=None)
        self._named = True
        assert self.build.lock is not None
        # In one transaction: upkeep drops the row and the folder of a prefix that no build has.
        with transaction.atomic():
            prefix, _ = Prefix.objects.update_or_create(
                path=final.relative_to(folders.data()).as_posix(),
                defaults={
                    "lock": self.build.lock,
                    "platform": self.build.platform,
                    "apparent_size": self.size.apparent,
                    "unique_size": self.size.unique,
                    "share_size": self.size.share,
                    "measured_at": timezone.now(),
                },
            )
            self.update(prefix=prefix)

    def clean_up(self) -> bool:
        """Remove what a failed attempt left; False if the build turns out to be READY.

        After a lost lease only the hidden folder is removed, which is surely ours. The next
        attempt, or upkeep, finds the rest.
        """
        build = self.build
        if self._locked:
            hidden = persist(lambda: self.hidden_prefix)  # its name may have to be asked for
            linking.move_to_trash(hidden, folders.data() / folders.TRASH)
        if self.lost:
            return True
        # A commit whose answer was cut off may have been done.
        persist(lambda: build.refresh_from_db(fields=["state", "lease_token", "prefix"]))
        if build.state == BuildState.READY:
            return False
        if build.lease_token == self.lease.token and self._named:
            try:
                persist(self._discard_named)
            except LeaseLostError:  # taken over since the row was read
                return True
            named = build.prefix_id
            persist(lambda: self._forget_prefix(named))
            build.prefix = None
        return True

    def _discard_named(self) -> None:
        with self._holding():
            folders.discard(self.final_prefix, self.build.environment)

    @contextlib.contextmanager
    def _holding(self) -> Iterator[None]:
        """Lock the build's row, so that no other worker takes the build over meanwhile.

        Attempts of a build share their final folder. A worker that was suspended for longer than
        its lease would otherwise take the folder of a later attempt for its own leftover.

        Raises:
            LeaseLostError: another worker has the build.
        """
        with transaction.atomic():
            held = Build.objects.select_for_update().filter(pk=self.build.pk, state__in=RUNNING)
            if held.filter(lease_token=self.lease.token).first() is None:
                self.lost = True
                raise LeaseLostError(f"Another worker runs {self.build} now.")
            yield

    def _forget_prefix(self, named: int | None) -> None:
        Build.objects.filter(pk=self.build.pk, lease_token=self.lease.token).update(prefix=None)
        if named is not None:
            Prefix.objects.filter(pk=named, builds=None).delete()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        with contextlib.suppress(LeaseLostError, Error):
            self.flush()
