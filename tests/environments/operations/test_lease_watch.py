"""A worker is lost where its lease is over and the scheduler saw it unchanged for long enough."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from environments.operations.lease_watch import LeaseWatch

LEASE, INTERVAL = timedelta(seconds=30), timedelta(seconds=5)
END = datetime(2026, 1, 1, tzinfo=UTC)


class Scheduler:
    """A watch whose monotonic clock a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = LeaseWatch(lease=LEASE, interval=INTERVAL, clock=lambda: self.now)

    def rounds(self, number: int, *, end: datetime = END, token: int = 1, pause: float = 5) -> bool:
        """Look so often at one lease; whether its worker is silent then."""
        for _ in range(number):
            self.now += pause
            self.watch.observe("build", {1: (token, end)})
        return self.watch.is_silent("build", 1)


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


def test_a_lease_that_stays_unchanged_is_silent_before_it_is_over(scheduler: Scheduler) -> None:
    assert not scheduler.rounds(4)
    assert scheduler.rounds(1)  # after 20 s, of the 30 s that a lease lasts


def test_a_lease_that_is_renewed_is_never_silent(scheduler: Scheduler) -> None:
    for number in range(50):  # a living worker renews after a third of the lease
        assert not scheduler.rounds(2, end=END + number * LEASE / 3)


def test_a_clock_that_is_set_forward_makes_no_worker_silent(scheduler: Scheduler) -> None:
    assert not scheduler.rounds(2)
    assert not scheduler.rounds(2, end=END + timedelta(hours=2))


def test_another_attempt_begins_anew(scheduler: Scheduler) -> None:
    assert scheduler.rounds(6)
    assert not scheduler.rounds(1, token=2)


def test_time_in_which_nobody_looked_hardly_counts(scheduler: Scheduler) -> None:
    assert not scheduler.rounds(3)
    assert not scheduler.rounds(1, pause=3600)
    assert scheduler.rounds(2)


def test_after_an_outage_workers_have_time_to_renew(scheduler: Scheduler) -> None:
    assert scheduler.rounds(6)
    scheduler.watch.forget()
    assert not scheduler.rounds(4)
    assert scheduler.rounds(1)


def test_slow_rounds_find_lost_workers_too(scheduler: Scheduler) -> None:
    assert scheduler.rounds(5, pause=100)


def test_a_lease_that_nobody_has_any_more_is_forgotten(scheduler: Scheduler) -> None:
    assert scheduler.rounds(6)
    scheduler.watch.observe("build", {})
    assert not scheduler.watch.is_silent("build", 1)
