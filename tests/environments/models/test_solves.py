"""Stored solves: one attempt computes each, and another takes it over if that one is lost."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from environments.domain.lifecycle import BuildState
from environments.models import Environment, LockRow, Preview, SolveRow
from environments.models.leased_work import Lease, LeasedWork
from tests.factories import make_build, make_lock, make_package, make_specification

pytestmark = pytest.mark.django_db
LIFE = timedelta(seconds=30)
OTHER = Lease(owner="two", token=1)


@pytest.fixture
def lock() -> LockRow:
    return LockRow.store(make_lock(make_package("a")))


@pytest.fixture(params=["build", "preview"])
def attempt(request: pytest.FixtureRequest, environment: Environment) -> LeasedWork:
    """Work of each kind that solves, before its attempt."""
    if request.param == "build":
        return make_build(environment, BuildState.QUEUED)
    return Preview.objects.create(
        namespace=environment.namespace, specification=make_specification()
    )


def begin(attempt: LeasedWork) -> tuple[SolveRow, Lease]:
    """Claim the work, and begin its solve."""
    lease = attempt.claim("one", life=LIFE)
    assert lease is not None
    row = SolveRow.objects.create(
        key="k", specification=make_specification(), channel_state="c", lease_owner=lease.owner
    )
    return row, lease


def again(row: SolveRow) -> SolveRow:
    return SolveRow.objects.get(pk=row.pk)


def test_the_solve_of_a_living_attempt_is_not_taken_over(attempt: LeasedWork) -> None:
    row, _ = begin(attempt)
    assert not again(row).take_over(OTHER)
    assert again(row).lease_owner == "one"


@pytest.mark.parametrize("end", [-timedelta(seconds=1), -LIFE, timedelta(hours=2)])
def test_the_solve_of_an_attempt_whose_lease_expired_is_taken_over_once(
    attempt: LeasedWork, end: timedelta
) -> None:
    """Also of one whose lease ends hours ahead, as after the clock was set back."""
    row, _ = begin(attempt)
    rows = type(attempt)._default_manager.filter(pk=attempt.pk)
    rows.update(lease_expires_at=timezone.now() + end)
    first, second = again(row), again(row)
    assert first.take_over(OTHER)
    assert not second.take_over(Lease(owner="three", token=1))
    assert again(row).lease_owner == "two"


def test_the_solve_of_an_attempt_that_ended_is_taken_over(attempt: LeasedWork) -> None:
    row, lease = begin(attempt)
    attempt.give_back(lease)
    assert again(row).take_over(OTHER)


def test_an_attempt_takes_over_the_solve_of_an_earlier_attempt_of_the_same_work(
    attempt: LeasedWork,
) -> None:
    row, lease = begin(attempt)
    attempt.give_back(lease)
    following = attempt.claim("two", life=LIFE)
    assert following is not None
    assert again(row).take_over(following)
    assert not again(row).take_over(Lease(owner="three", token=1))


def test_an_attempt_whose_solve_was_taken_over_neither_ends_nor_deletes_it(
    attempt: LeasedWork, lock: LockRow
) -> None:
    row, lease = begin(attempt)
    attempt.give_back(lease)
    assert again(row).take_over(OTHER)
    row.finish(lease, lock, seconds=1)
    row.give_up(lease)
    assert (again(row).lock, again(row).lease_owner) == (None, "two")
    again(row).finish(OTHER, lock, seconds=2)
    assert (again(row).lock, again(row).lease_owner) == (lock, "")


def test_a_finished_solve_is_neither_taken_over_nor_given_up(
    attempt: LeasedWork, lock: LockRow
) -> None:
    row, lease = begin(attempt)
    created_at = row.created_at
    row.finish(lease, lock, seconds=1)
    assert not again(row).take_over(OTHER)
    row.give_up(lease)
    assert (again(row).lock, again(row).created_at) == (lock, created_at)


def test_the_database_refuses_a_solve_without_lock_and_owner_and_one_with_both(
    attempt: LeasedWork, lock: LockRow
) -> None:
    begin(attempt)
    for changes in ({"lease_owner": ""}, {"lock": lock}):
        with pytest.raises(IntegrityError), transaction.atomic():
            SolveRow.objects.update(**changes)
