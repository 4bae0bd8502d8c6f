"""The rows of a build: guarded moves, the lease, the log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from condastore.errors import InvalidInputError, LeaseLostError, TransitionError
from environments.domain.lifecycle import FINISHED, MOVES, RUNNING, BuildState
from environments.models import Build, Environment
from environments.models.leased_work import Lease
from tests.factories import make_build, make_environment

LIFE = timedelta(seconds=30)
S = BuildState


@pytest.fixture(autouse=True)
def three_attempts(settings: Any) -> None:
    settings.BUILD_ATTEMPTS, settings.BACKOFF = 3, timedelta(0)


def test_every_state_has_its_moves_and_final_ones_end_only_on_request():
    assert set(MOVES) == set(BuildState)
    assert {target for moves in MOVES.values() for target in moves} <= set(BuildState)
    assert MOVES[S.FAILED] == MOVES[S.CANCELLED] == frozenset()
    assert FINISHED.isdisjoint(RUNNING)
    for state in RUNNING - {S.CANCELLING}:
        assert {S.FAILED, S.CANCELLING, S.QUEUED} <= MOVES[state]


@pytest.mark.parametrize("start", BuildState)
def test_a_build_moves_along_the_table_only(environment: Environment, start: BuildState):
    for target in BuildState:
        build = make_build(environment, start)
        if target == S.READY and start == S.PUBLISHING:
            continue  # needs a prefix, see publishing
        leased: dict[str, Any] = {"lease_expires_at": timezone.now() + LIFE}
        extra = leased if target in RUNNING else {}
        if target in MOVES[start]:
            build.move(target, **extra)
            assert build.state == target
            assert build.events.last().state == target
            assert (build.finished_at is not None) == (target in FINISHED)
        else:
            with pytest.raises(TransitionError):
                build.move(target, **extra)


def test_of_two_claims_one_gets_the_build(environment: Environment):
    build = make_build(environment, S.QUEUED)
    again = Build.objects.get(pk=build.pk)
    lease = build.claim("one", life=LIFE)
    assert lease is not None
    assert again.claim("two", life=LIFE) is None
    build.refresh_from_db()
    assert (build.lease_owner, build.attempt, build.state) == ("one", 1, S.SOLVING)


def test_a_build_that_has_its_lock_is_not_solved_again(environment: Environment):
    build = make_build(environment, S.ARCHIVED)
    build.move(S.QUEUED)
    assert build.claim("one", life=LIFE)
    assert build.state == S.FETCHING


def test_a_build_is_not_claimed_before_its_time(environment: Environment):
    build = make_build(environment, S.QUEUED)
    Build.objects.update(not_before=timezone.now() + timedelta(minutes=1))
    assert build.claim("one", life=LIFE) is None


def test_a_stale_lease_writes_nothing(environment: Environment):
    build = make_build(environment, S.QUEUED)
    first = build.claim("one", life=LIFE)
    assert first is not None
    build.give_up_lost()
    with pytest.raises(LeaseLostError):  # it waits for another worker: not a state to start from
        Build.objects.get(pk=build.pk).move(S.FETCHING, lease=first)
    second = build.claim("two", life=LIFE)
    assert second is not None
    assert second.token == first.token + 1
    stale = Build.objects.get(pk=build.pk)
    with pytest.raises(LeaseLostError):
        stale.move(S.FETCHING, lease=first)
    with pytest.raises(LeaseLostError):
        stale.append_log(["from the past"], lease=first)
    build.move(S.FETCHING, lease=second)
    assert build.log_from() == []


def test_a_lost_build_is_tried_again_with_growing_waits_and_then_fails(
    environment: Environment, settings: Any
):
    settings.BACKOFF = timedelta(seconds=5)
    build = make_build(environment, S.QUEUED)
    waits = []
    for attempt in range(1, 4):
        Build.objects.update(not_before=timezone.now())
        assert build.claim(f"worker {attempt}", life=-LIFE)
        assert build in Build.objects.lost(timezone.now())
        build.give_up_lost()
        waits.append(round((build.not_before - timezone.now()).total_seconds()))
    assert waits[:2] == [5, 10]
    assert build.state == S.FAILED
    assert build.failure["code"] == "worker-lost"


def test_a_lost_build_that_was_being_cancelled_is_cancelled(environment: Environment):
    build = make_build(environment, S.QUEUED)
    build.claim("one", life=-LIFE)
    build.move(S.CANCELLING)
    build.give_up_lost()
    assert build.state == S.CANCELLED


@pytest.mark.parametrize(
    "changes",
    [
        {"state": S.READY, "finished_at": None},
        {"state": S.SOLVING},
        {"state": S.READY, "finished_at": timezone.now(), "prefix": None},
    ],
)
def test_the_database_refuses_rows_that_cannot_be(environment: Environment, changes):
    build = make_build(environment, S.QUEUED)
    with pytest.raises(IntegrityError), transaction.atomic():
        Build.objects.filter(pk=build.pk).update(**changes)


def test_numbers_are_never_used_twice(environment: Environment):
    assert [make_build(environment).number for _ in range(3)] == [1, 2, 3]
    assert make_build(make_environment(environment.namespace, "other")).number == 1


def test_the_pointer_never_goes_back_by_itself(environment: Environment):
    older, newer = make_build(environment, current=False), make_build(environment)
    assert not environment.advance(older)
    Environment.objects.update(pinned=True)
    newest = make_build(environment, current=False)
    assert not environment.advance(newest)
    Environment.objects.update(pinned=False)
    assert environment.advance(newest)
    environment.refresh_from_db()
    assert environment.current == newest
    assert not environment.point(older, pinned=True, expected=newer)
    assert environment.point(older, pinned=True, expected=newest)


def test_a_log_is_read_from_any_line_and_survives_its_compression(environment: Environment):
    build = make_build(environment, S.QUEUED)
    lease = build.claim("one", life=LIFE)
    lines = [f"line {n}" for n in range(10)] + ["", "ünïcode ✓", ""]
    build.append_log(lines[:4], lease=lease)
    build.append_log([], lease=lease)
    build.append_log(lines[4:], lease=lease)
    assert build.log_from() == lines
    for start in range(len(lines) + 2):
        assert build.log_from(start) == lines[start:]
    assert build.log_from(2, limit=3) == lines[2:5]
    build.refresh_from_db()
    build.move(S.FAILED, lease=lease, failure={})
    build.archive_log()
    assert not build.log_chunks.exists()
    assert build.log_from() == lines
    assert build.log_from(11) == lines[11:]
    with pytest.raises(LeaseLostError):
        build.append_log(["too late"], lease=Lease(owner="", token=1))


def test_an_empty_log_stays_empty(environment: Environment):
    build = make_build(environment, S.FAILED)
    build.archive_log()
    assert build.log_from() == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x", "Ünï", "a\nb", "x" * 65])
def test_a_name_that_could_do_harm_is_refused(alice, environment: Environment, name: str):
    from environments.operations.environments import create_environment

    with pytest.raises(InvalidInputError):
        create_environment(actor=alice, namespace=environment.namespace, name=name)
