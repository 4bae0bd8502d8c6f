"""One attempt of a build while it runs: its lease, its log, its progress, what it leaves behind.

A thread of its own renews the lease, looks for a cancel, and writes log and progress, so that
a stage which sits in a blocking call neither loses its build nor hides a cancel.
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
from typing import TYPE_CHECKING, Any, Self

import structlog
from django.conf import settings
from django.db import Error, connection, transaction
from django.utils import timezone
from dramatiq.middleware import Shutdown

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
from environments.jobs.slot_sharing import SlotSharing
from environments.models import Build, Prefix
from environments.models.builds import Lease, backoff_delay
from environments.services import folder_access, folders, platforms
from environments.services.engine_context import Engine, download_patience, source_of
from environments.services.solving import credentials_for, source_urls

if TYPE_CHECKING:
    from environments.jobs.bytecode import Uncompiled

logger = structlog.get_logger(__name__)

#: A cancel is seen, and log and progress are written, at least so often.
BEAT = 0.4


class Run:
    """What the stages of a build see. Use as a context manager."""

    def __init__(self, build: Build, lease: Lease, tools: Engine) -> None:
        self.build, self.lease, self.tools = build, lease, tools
        self.specification: Specification = build.specification.value()
        self.timings: dict[str, float] = {}
        self.packages: list[CachedPackage] = []
        self.wheels: list[CachedWheel] = []
        self.paths: PathCheck | None = None  # of `packages`, once they are fetched
        self.policy: Policy | None = None  # by which the lock was judged in this attempt
        self.lost = False  # another worker has the build, or may have by now
        self._cancelling = False
        self._stopping: BaseException | None = None
        self._sharing: SlotSharing | None = None
        self._made_way = False  # the slot is handed to another namespace
        self._deadline = time.monotonic() + settings.BUILD_TIME_LIMIT.total_seconds()
        self._lines: list[str] = []
        self._progress: Progress | None = None
        self._guard = threading.Lock()
        self._write = threading.Lock()
        self._end = threading.Event()
        self.uncompiled: Uncompiled | None = None
        self.compile_later = False
        self.size = PrefixSize()  # of what was linked
        self._named = False  # the final prefix is in place
        self._locked = build.lock_id is not None  # what the folders are named after is known
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name=f"build-{build.pk}", daemon=True)

    # --- what a build is made of ---------------------------------------------------------------

    @cached_property
    def part(self) -> PlatformLock:
        """The lock's packages for the platform that is linked."""
        assert self.build.lock is not None, "solved before it is fetched"
        part = self.build.lock.value().on(self.build.platform)
        if part is None:
            raise LeaseLostError(f"The lock has nothing for {self.build.platform}.")
        return part

    @property
    def fetching(self) -> dict[str, Any]:
        """How this build fetches: with which credentials, how many at once, told to whom."""
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
        return folders.data() / folders.planned_prefix(self.build)

    @cached_property
    def hidden_prefix(self) -> Path:
        """Where this attempt links: another attempt, or another worker, has another folder."""
        final = self.final_prefix
        return final.with_name(f".{final.name}.{self.lease.token}")

    # --- the lease -----------------------------------------------------------------------------

    def cancelled(self) -> bool:
        """Should the work stop now? Asked by everything that takes its time."""
        return (
            self.lost
            or self._cancelling
            or self._stopping is not None
            or self._made_way
            or time.monotonic() > self._deadline
        )

    @contextlib.contextmanager
    def sharing_slot(self) -> Iterator[None]:
        """Let the work make way for a build of another namespace; see `slot_sharing`."""
        self._sharing = SlotSharing(self.build)
        try:
            yield
        finally:
            self._sharing = None

    def check(self) -> None:
        if self.cancelled():
            raise LeaseLostError(f"{self.build} is not to go on.")

    def update(self, **changes: Any) -> None:
        """Write to the build's row, as long as the lease holds."""
        rows = Build.objects.filter(pk=self.build.pk, lease_token=self.lease.token)
        if not rows.update(**changes):
            self.lost = True
            raise LeaseLostError(f"{self.build} is run by another worker.")
        for name, value in changes.items():
            setattr(self.build, name, value)
        if "lock" in changes:
            self._locked = True

    def abandon(self) -> None:
        """The work was told to stop: say what became of the build, and leave nothing behind."""
        if not self.clean_up():
            return
        if self.lost:
            logger.warning("lease lost", build=self.build.pk)
            return
        with contextlib.suppress(TransitionError, LeaseLostError):
            if self._stopping is not None:
                persist(self.give_back)
            elif self._made_way and not self._cancelling:
                persist(lambda: self.give_back("made way for a build of another namespace"))
            elif time.monotonic() > self._deadline and self.build.state != BuildState.CANCELLING:
                limit = settings.BUILD_TIME_LIMIT.total_seconds()
                error = TimeLimitError(f"The build took longer than {limit:.0f} s.")
                self.log(f"{error.code}: {error}")
                persist(lambda: self.build.fail(error, lease=self.lease))
            else:
                persist(lambda: self.build.move(BuildState.CANCELLED, lease=self.lease))

    def give_up(self, error: StoreError) -> None:
        """Another attempt for the world's failures, while any are left; else the outcome."""
        build = self.build
        self.log(f"{error.code}: {error}")
        if not self.clean_up() or self.lost:
            return
        attempts = settings.BUILD_ATTEMPTS
        try:
            if error.transient and build.attempt < attempts:
                delay = backoff_delay(build.attempt, first=settings.BACKOFF)
                self.log(f"trying again in {delay.total_seconds():.0f} s")
                persist(lambda: build.requeue(delay=delay, message=str(error), lease=self.lease))
            else:
                if error.transient:
                    error.hint = f"It failed {build.attempt} times. Submit it again later."
                persist(lambda: build.fail(error, lease=self.lease))
        except TransitionError:  # a cancel came first
            self.abandon()
        except LeaseLostError:  # done already, by a commit whose answer was cut off
            logger.warning("lease lost", build=build.pk)

    def outlast(self, error: BaseException) -> None:
        """Wait until the database is back, and give the build back: an outage is no attempt."""
        self.log(f"the database could not be reached: {error}".strip())
        try:
            if self.clean_up() and not self.lost:
                persist(lambda: self.give_back("the database could not be reached"))
        except TransitionError:  # a cancel came first
            self.abandon()
        except LeaseLostError:
            logger.warning("lease lost", build=self.build.pk)

    def interrupted(self, error: BaseException) -> None:
        """Dramatiq stops the thread: the worker shuts down, or its own time limit struck."""
        if isinstance(error, Shutdown):
            self._stopping = error
        else:
            self._deadline = 0.0
        self.abandon()

    def give_back(self, message: str = "its worker was stopped") -> None:
        """Hand the build to whichever worker is next; no attempt is counted."""
        build = self.build
        build.refresh_from_db(fields=["state", "attempt"])
        if build.state == BuildState.CANCELLING:
            build.move(BuildState.CANCELLED, lease=self.lease)
            return
        build.move(
            BuildState.QUEUED,
            lease=self.lease,
            message=message,
            attempt=max(0, build.attempt - 1),
            not_before=timezone.now(),
            message_sent_at=None,
        )

    # --- what it says --------------------------------------------------------------------------

    def log(self, line: str) -> None:
        """A line (or some) of the build's log; the watching thread writes it within a second."""
        with self._guard:
            self._lines += [part[:4000].replace("\0", "") for part in line.splitlines()] or [""]

    def progress(self, progress: Progress) -> None:
        self._progress = progress

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

    # --- what it leaves ------------------------------------------------------------------------

    def name_prefix(self) -> None:
        """Rename the finished folder to its final name, and make its row."""
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
        """Nothing of an attempt that failed stays; False where it turns out to be READY.

        After a lost lease, or without a database, only what is surely ours goes: the hidden
        folder. The rest is found by the next attempt, or by the upkeep.
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
                raise LeaseLostError(f"{self.build} is run by another worker.")
            yield

    def _forget_prefix(self, named: int | None) -> None:
        Build.objects.filter(pk=self.build.pk, lease_token=self.lease.token).update(prefix=None)
        if named is not None:
            Prefix.objects.filter(pk=named, builds=None).delete()

    # --- the watching thread -------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(LeaseLostError, Error):
            self.flush()

    def _watch(self) -> None:
        try:
            while not self._end.wait(BEAT):
                self._beat()
        finally:
            connection.close()

    def _beat(self) -> None:
        life = settings.LEASE.total_seconds()
        try:
            self._look()
            if time.monotonic() - self._renewed > life / 3:
                self._renew()
            self.flush()
        except LeaseLostError:
            self.lost = True
        except DATABASE_ERRORS as error:
            connection.close()
            logger.warning("database unreachable", build=self.build.pk, error=str(error))
        except Exception:
            logger.exception("watching a build failed", build=self.build.pk)
        # Where nobody could be asked for long, the work goes on: every write carries the token, and
        # `_look` sees in the row, once it can be read again, whether another worker has the build.

    def _look(self) -> None:
        row = Build.objects.filter(pk=self.build.pk).values_list("state", "lease_token").first()
        if row is None or row[1] != self.lease.token:
            self.lost = True
        elif row[0] == BuildState.CANCELLING:
            self._cancelling = True
        elif (sharing := self._sharing) is not None and sharing.makes_way():
            self._made_way = True

    def _renew(self) -> None:
        started = time.monotonic()
        if Build.objects.filter(
            pk=self.build.pk, lease_token=self.lease.token, lease_expires_at__isnull=False
        ).update(lease_expires_at=timezone.now() + settings.LEASE):
            self._renewed = started
