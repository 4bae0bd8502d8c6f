"""Abstract model of background work that one worker at a time does under a lease.

A row waits in one of its `WAITING` states until `not_before`. A worker claims it: the row gets a
state of `LEASED`, an owner, an end of the lease, and a new fencing token. The worker's heartbeat
renews the lease. Every write of the attempt is one guarded UPDATE that carries the token, in one
transaction with its event row; a worker whose lease was taken over changes nothing. The attempt
ends in one of four ways:

- `finish`: it is done;
- `fail`: it is requeued after a backoff, or has failed for good;
- `give_back`: the worker stops, or the database was away; no attempt is counted;
- `give_up_lost`: the lease expired; the sweep of the scheduler requeues the row or lets it fail.

The row is the truth. A message of the queue is only a hint that a row is due.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone

from condastore import row_changes
from condastore.errors import LeaseLostError, StoreError, TransitionError, WorkerLostError
from environments.models.clock_bounds import SKEW, expired, older, valid

W = TypeVar("W", bound="LeasedWork", covariant=True)
#: The longest wait between two attempts, unless a kind of work says otherwise.
LONGEST_BACKOFF = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one worker to one attempt; `token` is its fencing token."""

    owner: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often work is tried, and how long it waits between two attempts."""

    attempts: int
    backoff: timedelta
    longest: timedelta = LONGEST_BACKOFF
    #: The longest wait of a row that has not failed: the interval of periodic work.
    interval: timedelta = timedelta(0)
    #: The wait of a row that has failed, if such rows are tried again.
    rest: timedelta = timedelta(0)

    def delay(self, attempt: int) -> timedelta:
        """Return the wait after `attempt` failed."""
        return backoff_delay(attempt, first=self.backoff, ceiling=self.longest)


def backoff_delay(attempt: int, *, first: timedelta, ceiling: timedelta | None = None) -> timedelta:
    """Return first, twice that, four times that, ... up to `ceiling` (10 minutes)."""
    factor: int = 2 ** max(0, attempt - 1)
    return min(first * factor, ceiling or LONGEST_BACKOFF)


def failure_json(error: StoreError) -> dict[str, Any]:
    """Return an error as it is stored and shown: JSON values only."""
    return {
        "code": error.code,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "details": dict(error.details),
    }


def in_states(states: Collection[str]) -> Q:
    """Match rows in one of `states`."""
    if len(states) == 1:
        [state] = states
        return Q(state=state)
    return Q(state__in=sorted(states))


class LeasedWorkQuerySet(models.QuerySet[W]):
    @property
    def _kind(self) -> type[LeasedWork]:
        return self.model

    def due(self, now: datetime) -> Self:
        """Rows that a worker may claim now."""
        return self.filter(in_states(self._kind.WAITING), not_before__lte=now)

    def leased(self) -> Self:
        """Rows that are in a state in which a worker holds a lease, be it valid or not."""
        return self.filter(in_states(self._kind.LEASED))

    def running(self, now: datetime) -> Self:
        """Rows whose lease is valid."""
        return self.leased().filter(valid("lease_expires_at", now, life=settings.LEASE))

    def lost(self, now: datetime) -> Self:
        """Rows whose lease has expired: their worker has stopped renewing it."""
        return self.leased().filter(expired("lease_expires_at", now, life=settings.LEASE))

    def unsent(self, now: datetime, *, resend: timedelta) -> Self:
        """Rows that no message covers: none was sent, or so long ago that it counts as lost."""
        overdue = older("message_sent_at", now, than=resend)
        return self.filter(Q(message_sent_at=None) | overdue)


class LeasedWork(models.Model):
    """A row that one worker at a time works on."""

    #: States in which the row waits for a worker; requeued rows get the state `QUEUED_STATE`.
    WAITING: ClassVar[Collection[str]]
    QUEUED_STATE: ClassVar[str]
    #: States in which a worker holds a lease.
    LEASED: ClassVar[Collection[str]]
    FAILED_STATE: ClassVar[str]
    #: Allowed changes of `state`.
    MOVES: ClassVar[Mapping[Any, Collection[str]]]

    if TYPE_CHECKING:
        state: Any

    attempt = models.PositiveIntegerField(default=0)
    not_before = models.DateTimeField(default=timezone.now)
    message_sent_at = models.DateTimeField(null=True)
    lease_owner = models.CharField(max_length=200, blank=True)
    lease_token = models.PositiveBigIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True)

    class Meta:
        abstract = True

    # --- what kinds of work extend -------------------------------------------------------------

    @classmethod
    def retry_policy(cls) -> RetryPolicy:
        """Return how often this kind of work is tried."""
        return RetryPolicy(attempts=settings.BUILD_ATTEMPTS, backoff=settings.BACKOFF)

    def claimable(self, now: datetime) -> Q:
        """Match the row while a worker may claim it.

        The first attempt waits for no backoff: the clock of the sender may be ahead of ours.
        """
        due = Q(not_before__lte=now) | Q(attempt=0, not_before__lte=now + SKEW)
        return in_states(self.WAITING) & due

    def state_when_claimed(self) -> str:
        """Return the state of an attempt that begins."""
        [state] = self.LEASED
        return state

    def changes_when_claimed(self, now: datetime) -> dict[str, Any]:
        """Return what else changes when an attempt begins."""
        return {}

    def changes_with_state(self, state: str, now: datetime) -> dict[str, Any]:
        """Return what else changes when the row leaves its state for `state`."""
        return {}

    def changes_of_failure(self, error: StoreError, *, retried: bool) -> dict[str, Any]:
        """Return how the row records why an attempt failed."""
        return {"failure": failure_json(error)}

    def announce(self) -> None:
        """Wake those who wait for a change of the row, once it is committed."""
        row_changes.announce(row_changes.topic_of(self))

    def record_event(self, state: str, message: str) -> None:
        """Record a change of state, in its transaction."""

    # --- the protocol --------------------------------------------------------------------------

    def claim(self, owner: str, *, life: timedelta) -> Lease | None:
        """Start the next attempt; None if the row is not due, or another worker has it."""
        now = timezone.now()
        state = self.state_when_claimed()
        changes = {
            "state": state,
            "attempt": F("attempt") + 1,
            "lease_owner": owner,
            "lease_token": F("lease_token") + 1,
            "lease_expires_at": now + life,
            **self.changes_when_claimed(now),
        }
        with transaction.atomic():
            if not self._rows().filter(self.claimable(now)).update(**changes):
                return None
            self.refresh_from_db()
            self.record_event(state, f"attempt {self.attempt}")
            self.announce()
        return Lease(owner=owner, token=self.lease_token)

    def lease_held_by(self, owner: str) -> Lease | None:
        """Return the lease if `owner`, unique to a claim, has it in the current row."""
        self.refresh_from_db()
        return self.current_lease() if self.lease_owner == owner else None

    def renew(self, lease: Lease, *, life: timedelta, **changes: Any) -> None:
        """Extend the lease from now on by `life`.

        Raises:
            LeaseLostError: the row is no longer leased under this token.
        """
        changes["lease_expires_at"] = timezone.now() + life
        if not self.leased_under(lease).update(**changes):
            raise self._lost()

    def write(self, lease: Lease, **changes: Any) -> None:
        """Write columns of the row while its lease holds.

        Raises:
            LeaseLostError: another worker has the row.
        """
        if not self.leased_under(lease).update(**changes):
            raise self._lost()
        for name, value in changes.items():
            setattr(self, name, value)

    def move(
        self, to: str, *, lease: Lease | None = None, message: str = "", **changes: Any
    ) -> None:
        """Change the state to `to` and record the event, in one transaction.

        Args:
            lease: of the attempt that changes it; without one, a person or the scheduler does.
        Raises:
            LeaseLostError: the lease is no longer the row's.
            TransitionError: another process changed the state first.
        """
        changes = {"state": to, **self._consequences(to), **changes}
        origins = {state for state, targets in self.MOVES.items() if to in targets}
        rows = self._rows()
        if lease is not None:
            origins &= set(self.LEASED)  # a row that was requeued meanwhile has no owner
            rows = rows.filter(lease_token=lease.token)
        with transaction.atomic():
            if not rows.filter(in_states(origins)).update(**changes):
                try:
                    self.refresh_from_db(fields=["state", "lease_token"])
                except type(self).DoesNotExist:
                    message = f"{type(self).__name__} {self.pk} was deleted."
                    raise LeaseLostError(message) from None
                if lease is not None and (
                    self.lease_token != lease.token or self.state in self.WAITING
                ):
                    raise self._lost()
                raise TransitionError(f"{self} is {self.state}; it cannot become {to}.")
            self.record_event(to, message)
            self.announce()
        self.refresh_from_db(fields=["attempt", *changes])

    def finish(self, lease: Lease, *, state: str, message: str = "", **changes: Any) -> None:
        """End the attempt with what was done."""
        self.move(state, lease=lease, message=message, **changes)

    def fail(self, error: StoreError, *, lease: Lease | None = None, retry: bool = True) -> bool:
        """Requeue the row after a backoff, or let it fail for good; True if it is requeued.

        Only transient errors are retried, until the attempts of the retry policy are used up.
        """
        policy = self.retry_policy()
        retried = retry and error.transient and self.attempt < policy.attempts
        periodic = bool(policy.interval or policy.rest)
        # Hints of transient errors promise a retry; only here it is known whether there is one.
        if not retried and not periodic and "retried" in error.hint:
            error.hint = f"It failed in attempt {self.attempt} and is not retried. Try again later."
        changes = self.changes_of_failure(error, retried=retried)
        if retried:
            delay = policy.delay(self.attempt)
            self.requeue(delay=delay, message=str(error), lease=lease, **changes)
        else:
            self.move(self.FAILED_STATE, lease=lease, message=str(error), **changes)
        return retried

    def requeue(
        self, *, delay: timedelta, message: str, lease: Lease | None = None, **changes: Any
    ) -> None:
        """Let the row wait for another attempt, due after `delay`."""
        changes = {"not_before": timezone.now() + delay, **changes}
        self.move(self.QUEUED_STATE, lease=lease, message=message, **changes)

    def give_back(self, lease: Lease, message: str = "its worker was stopped") -> None:
        """Hand the row to the next worker, due at once; no attempt is counted."""
        attempt = max(0, self.attempt - 1)
        self.requeue(delay=timedelta(0), message=message, lease=lease, attempt=attempt)

    def give_up_lost(self) -> None:
        """Requeue the row, whose lease has expired, or let it fail for good.

        Raises:
            LeaseLostError, TransitionError: its worker was faster, or another sweep.
        """
        with transaction.atomic():
            self.require_expired()
            self.fail(self.lost_error(), lease=self.current_lease())

    def require_expired(self) -> None:
        """Lock the row, whose lease was not renewed since this instance was read.

        Raises:
            LeaseLostError: it was renewed, or is no longer leased.
        """
        rows = self.leased_under(self.current_lease())
        if not rows.filter(lease_expires_at=self.lease_expires_at).select_for_update().exists():
            raise self._lost()

    def current_lease(self) -> Lease:
        """Return the lease as this instance was read."""
        return Lease(owner=self.lease_owner, token=self.lease_token)

    def lost_error(self) -> WorkerLostError:
        """Return the error of an attempt whose worker stopped renewing its lease."""
        return WorkerLostError(f"The worker of attempt {self.attempt} was lost.")

    def leased_under(self, lease: Lease) -> Any:
        """Return the queryset of this row while it is leased under the token."""
        return self._rows().filter(in_states(self.LEASED), lease_token=lease.token)

    def _rows(self) -> Any:
        return type(self)._default_manager.filter(pk=self.pk)

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"The lease of {self} was lost: another worker may have it now.")

    def _consequences(self, to: str) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if to not in self.LEASED:
            changes |= {"lease_expires_at": None, "lease_owner": "", "message_sent_at": None}
        return changes | self.changes_with_state(to, timezone.now())
