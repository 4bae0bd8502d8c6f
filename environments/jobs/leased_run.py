"""Runtime of one attempt at leased work: claim, heartbeat, cancellation, outcome.

The heartbeat is a thread of its own, so that work that sits in a blocking call neither loses its
row nor overlooks that it was cancelled or taken over. Every third of a lease one UPDATE renews the
lease, or finds that it is lost. Only work that somebody may cancel is read in between: after a
notice of its change, and from time to time (`row_changes`).
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import structlog
from django.conf import settings
from django.db import Error, connection
from dramatiq.middleware import Shutdown

from condastore import row_changes
from condastore.errors import (
    LeaseLostError,
    StoreError,
    TimeLimitError,
    TransitionError,
    UnavailableError,
)
from condastore.outages import DATABASE_ERRORS, failure, is_outage, persist
from environments.models.leased_work import Lease, LeasedWork

logger = structlog.get_logger(__name__)
W = TypeVar("W", bound=LeasedWork)
#: Seconds between two heartbeats, which write progress; without notices each looks for a cancel.
HEARTBEAT = 0.4
#: How long a worker that is stopped tries to give its work back.
STOPPING = timedelta(seconds=1)


def claim(row: LeasedWork) -> Lease | None:
    """Start the next attempt for this worker; None if the row is not due, or another has it.

    The answer of a commit may be cut off. The owner is unique, so the row tells whether the claim
    has succeeded.

    Raises:
        OperationalError, InterfaceError: the database was away, and the row is not ours.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"
    try:
        return row.claim(owner, life=settings.LEASE)
    except DATABASE_ERRORS as error:
        if not is_outage(error):
            raise
        lease = persist(lambda: row.lease_held_by(owner))
        if lease is None:
            raise
        return lease


class LeasedRun(Generic[W]):
    """One attempt at the work of a row. Use as a context manager.

    Kinds of work extend it: `notice` for states that ask for the end, `flush` for what the
    heartbeat writes, and the outcomes `abandon`, `fail`, `outlast` and `interrupted`.
    """

    #: Of an attempt that took too long; a transient error lets it be retried.
    time_limit_error: ClassVar[type[StoreError]] = TimeLimitError
    #: Whether somebody may end an attempt that runs: each heartbeat reads the row.
    cancellable: ClassVar[bool] = False

    def __init__(
        self, row: W, lease: Lease, *, time_limit: timedelta, heartbeat: float = HEARTBEAT
    ) -> None:
        self.row, self.lease = row, lease
        self.lost = False  # another worker has the row, or may have it by now
        self.stopping: BaseException | None = None  # Dramatiq stops this worker
        self.time_limit = time_limit
        self.deadline = time.monotonic() + time_limit.total_seconds()
        self._renewed = time.monotonic()
        self._heartbeat = heartbeat
        self._ended = threading.Event()
        self._watch = row_changes.Watch(row_changes.topic_of(row))
        self._thread = threading.Thread(
            target=self._beat_until_ended, name=f"{self.kind}-{row.pk}", daemon=True
        )

    @property
    def kind(self) -> str:
        """Name of the kind of work, for logs."""
        return str(self.row._meta.model_name)

    # --- what the work asks --------------------------------------------------------------------

    @property
    def timed_out(self) -> bool:
        return time.monotonic() > self.deadline

    def cancelled(self) -> bool:
        """Return whether the work is to stop now; asks no database."""
        return self.lost or self.stopping is not None or self.timed_out

    def check(self) -> None:
        """Raise LeaseLostError if the work is to stop now."""
        if self.cancelled():
            raise LeaseLostError(f"{self.row} was cancelled, or its lease was lost.")

    def confirm(self) -> None:
        """Read the row now, and raise LeaseLostError if the work is to stop.

        For steps that cannot be undone; the heartbeat notices a lost lease a moment later.
        """
        self.observe()
        self.check()

    def update(self, **changes: Any) -> None:
        """Write columns of the row while the lease holds."""
        try:
            self.row.write(self.lease, **changes)
        except LeaseLostError:
            self.lost = True
            raise

    # --- outcomes ------------------------------------------------------------------------------

    def carry_out(self, work: Callable[[], object]) -> None:
        """Do the work, which ends with `finish`; write down how it ended otherwise."""
        try:
            work()
        except (LeaseLostError, TransitionError):
            self.abandon()
        except StoreError as error:
            self.fail(error)
        except Exception as error:
            if is_outage(error):
                self.outlast(error)
            else:
                self.fail(failure(error, what=f"{self.kind.capitalize()} {self.row.pk}"))
        except BaseException as error:  # Dramatiq stops the thread
            self.interrupted(error)
            raise

    def finish(self, state: str, *, message: str = "", **changes: Any) -> None:
        """End the attempt with what was done; wait for a database that is away."""
        persist(lambda: self.row.finish(self.lease, state=state, message=message, **changes))

    def abandon(self) -> None:
        """Write down what became of work that was stopped."""
        if self.lost or not self.timed_out:
            logger.warning("lease lost", **self.log_context)
            return
        limit = self.time_limit.total_seconds()
        self.fail(self.time_limit_error(f"It took longer than {limit:.0f} s."))

    def fail(self, error: StoreError) -> None:
        """Requeue the row after a backoff, or let it fail for good."""
        logger.warning("attempt failed", code=error.code, error=str(error), **self.log_context)
        self.persist(lambda: self.row.fail(error, lease=self.lease))

    def outlast(self, error: BaseException) -> None:
        """Wait until the database is back, and give the row back: an outage is no attempt."""
        logger.warning("database unreachable", error=str(error).strip(), **self.log_context)
        message = "the database could not be reached"
        self.persist(lambda: self.row.give_back(self.lease, message))

    def interrupted(self, error: BaseException) -> None:
        """Give the row back if the worker is stopped; else Dramatiq's time limit was reached."""
        if isinstance(error, Shutdown):
            self.stopping = error
            self.persist(lambda: self.row.give_back(self.lease), patience=STOPPING)
        else:
            self.fail(UnavailableError("Its worker was stopped."))

    def persist(self, write: Callable[[], object], *, patience: timedelta | None = None) -> None:
        """Write an outcome, unless another worker has the row by now."""
        try:
            persist(write, patience=patience)
        except (LeaseLostError, TransitionError):
            # Or it is written already, by a commit whose answer was cut off.
            logger.warning("lease lost", **self.log_context)
        except Error as error:
            logger.warning("outcome not written", error=str(error).strip(), **self.log_context)

    # --- the heartbeat -------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watch.wake()
        self._thread.join()

    def observe(self) -> bool:
        """Read the row, which may have been cancelled or taken over; False if it is not leased."""
        rows = type(self.row)._default_manager.filter(pk=self.row.pk)
        found = rows.values_list("state", "lease_token").first()
        state, token = found or (None, None)
        if found is None or token != self.lease.token or state in self.row.WAITING:
            self.lost = True
        if self.lost or state not in self.row.LEASED:
            return False
        try:
            self.notice(str(state))
        except DATABASE_ERRORS:
            raise
        except Exception:  # the lease must be renewed all the same
            logger.exception("a heartbeat failed", **self.log_context)
        return True

    def notice(self, state: str) -> None:
        """Take note of the state of the row, which is still ours."""

    def renew(self) -> None:
        """Extend the lease."""
        self.row.renew(self.lease, life=settings.LEASE)

    def flush(self) -> None:
        """Write what the work has reported since the last heartbeat."""

    def _beat_until_ended(self) -> None:
        looked = time.monotonic()
        try:
            with self._watch:
                while not self._ended.is_set():
                    changed = self._watch.wait(self._heartbeat)
                    if self._ended.is_set():
                        return
                    now = time.monotonic()
                    looks = changed or now - looked >= row_changes.poll_interval(self._heartbeat)
                    looked = now if looks else looked
                    self.beat(looks=looks)
        finally:
            connection.close()

    def beat(self, *, looks: bool = True) -> None:
        """Renew the lease if that is due, note whether the work is to stop, write its progress.

        Args:
            looks: read the row of work that can be cancelled.
        """
        started = time.monotonic()
        renewal_is_due = started - self._renewed > settings.LEASE.total_seconds() / 3
        try:
            leased = self.observe() if self.cancellable and looks else True
            if leased and renewal_is_due:
                self._renew_or_observe()
                self._renewed = started
            self.flush()
        except LeaseLostError:
            self.lost = True
        except DATABASE_ERRORS as error:
            connection.close()
            logger.warning("database unreachable", error=str(error).strip(), **self.log_context)
        except Exception:
            logger.exception("a heartbeat failed", **self.log_context)
        # If the database is away for long, the work continues: every write carries the token, and
        # `observe` sees in the row, once it can be read again, whether another worker has it.

    def _renew_or_observe(self) -> None:
        try:
            self.renew()
        except LeaseLostError:  # or the work has just ended: the row tells which
            self.observe()

    @property
    def log_context(self) -> dict[str, Any]:
        return {self.kind: self.row.pk}
