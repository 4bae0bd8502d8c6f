"""The lease protocol, which all kinds of background work share; each test runs for every kind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from condastore.errors import LeaseLostError, RequestError, TransitionError, UnavailableError
from environments.domain.artifacts import ArtifactKind
from environments.domain.lifecycle import BuildState
from environments.models import (
    Artifact,
    Build,
    Environment,
    FolderRestore,
    Mirror,
    MirrorIndex,
    MirrorView,
    Notification,
    Preview,
    Push,
    PushRule,
)
from environments.models.leased_work import Lease, LeasedWork, backoff_delay
from environments.models.notifications import ACCOUNT
from environments.operations import due_times, queueing, upkeep
from environments.operations.lease_watch import LeaseWatch
from tests.factories import make_build, make_specification

pytestmark = pytest.mark.django_db
LIFE = timedelta(seconds=30)
MINUTE = timedelta(minutes=1)


def make_artifact(environment: Environment) -> LeasedWork:
    return Artifact.wanted(make_build(environment), ArtifactKind.TAR_GZ, "linux-64")


def make_folder_restore(environment: Environment) -> LeasedWork:
    return FolderRestore.objects.create(prefix=make_build(environment).prefix)


def make_notification(environment: Environment) -> LeasedWork:
    content = {"text": "", "data": {}}
    return Notification.objects.create(email="a@example.org", event=ACCOUNT, content=content)


def make_push(environment: Environment) -> LeasedWork:
    rule = PushRule.objects.create(
        namespace=environment.namespace, pattern="*", target="r.example/x"
    )
    Push.want(rule, environment, make_build(environment))
    return Push.objects.get()


def make_preview(environment: Environment) -> LeasedWork:
    return Preview.objects.create(
        namespace=environment.namespace,
        specification=make_specification(),
        created_at=timezone.now() - MINUTE,
    )


def make_index(environment: Environment) -> MirrorIndex:
    mirror = Mirror.objects.create(name="m", upstream="https://example.org/m", subdirs=["noarch"])
    return MirrorIndex.objects.create(mirror=mirror, subdir="noarch")


def make_view(environment: Environment) -> LeasedWork:
    return MirrorView.objects.create(index=make_index(environment), key="k", policy_version="v")


KINDS: dict[str, Callable[[Environment], LeasedWork]] = {
    "build": lambda environment: make_build(environment, BuildState.QUEUED),
    "artifact": make_artifact,
    "folderrestore": make_folder_restore,
    "notification": make_notification,
    "push": make_push,
    "preview": make_preview,
    "mirrorindex": make_index,
    "mirrorview": make_view,
}


#: Read again by interval, whatever the outcome of the last attempt was.
PERIODIC = "mirrorindex"


def make_work(kind: str, environment: Environment, settings: Any) -> LeasedWork:
    settings.BUILD_ATTEMPTS = settings.NOTIFICATION_ATTEMPTS = 3
    settings.BACKOFF = settings.NOTIFICATION_BACKOFF = timedelta(seconds=5)
    return KINDS[kind](environment)


@pytest.fixture(params=KINDS)
def work(request: pytest.FixtureRequest, environment: Environment, settings: Any) -> LeasedWork:
    """A row of each kind that waits for a worker."""
    return make_work(request.param, environment, settings)


@pytest.fixture(params=[kind for kind in KINDS if kind != PERIODIC])
def counted(request: pytest.FixtureRequest, environment: Environment, settings: Any) -> LeasedWork:
    """A row of each kind whose attempts are counted."""
    return make_work(request.param, environment, settings)


def again(work: LeasedWork) -> LeasedWork:
    """The row as another process reads it."""
    return rows(work).get(pk=work.pk)  # type: ignore[no-any-return]


def rows(work: LeasedWork) -> Any:
    return type(work)._default_manager


def claimed(work: LeasedWork, owner: str = "one", *, life: timedelta = LIFE) -> Lease:
    rows(work).update(not_before=timezone.now())
    lease = work.claim(owner, life=life)
    assert lease is not None
    return lease


def test_every_kind_of_leased_work_is_tested_here() -> None:
    assert {str(model._meta.model_name) for model in queueing.KINDS} == set(KINDS)


def test_of_two_claims_one_gets_the_work(work: LeasedWork) -> None:
    other = again(work)
    assert work.claim("one", life=LIFE)
    assert other.claim("two", life=LIFE) is None
    work.refresh_from_db()
    assert (work.lease_owner, work.attempt, work.lease_token) == ("one", 1, 1)
    assert work.state in work.LEASED
    assert list(rows(work).running(timezone.now())) == [work]
    assert not rows(work).due(timezone.now()).exists()


def test_work_is_not_claimed_before_it_is_due(work: LeasedWork) -> None:
    rows(work).update(not_before=timezone.now() + MINUTE)
    assert not rows(work).due(timezone.now()).exists()
    if isinstance(work, MirrorIndex):
        assert work.claim("one", life=LIFE), "its message asks for a reading now"
    else:
        assert work.claim("one", life=LIFE) is None


def test_a_claim_whose_answer_was_cut_off_is_recognized_by_its_owner(work: LeasedWork) -> None:
    lease = claimed(work)
    assert again(work).lease_held_by("one") == lease
    assert again(work).lease_held_by("two") is None


def test_a_renewed_lease_is_not_lost(work: LeasedWork) -> None:
    lease = claimed(work, life=-LIFE)
    assert list(rows(work).lost(timezone.now())) == [work]
    work.renew(lease, life=LIFE)
    assert not rows(work).lost(timezone.now()).exists()


def test_a_worker_whose_lease_was_taken_over_writes_nothing(work: LeasedWork) -> None:
    """As one that was stopped for longer than its lease (SIGSTOP), and continues then."""
    stopped, lease = again(work), claimed(work, life=-LIFE)
    again(work).give_up_lost()
    before = again(work).state
    for write in (
        lambda: stopped.renew(lease, life=LIFE),
        lambda: stopped.fail(UnavailableError("It was away."), lease=lease),
        lambda: stopped.give_back(lease),
    ):
        with pytest.raises(LeaseLostError):
            write()
    second = claimed(work, "two")
    assert second.token == lease.token + 1
    for write in (
        lambda: stopped.renew(lease, life=LIFE),
        lambda: stopped.write(lease, not_before=timezone.now()),
        lambda: stopped.fail(UnavailableError("It was away."), lease=lease),
        lambda: stopped.give_back(lease),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert again(work).lease_owner == "two"
    assert again(work).state in work.LEASED
    assert before in work.WAITING


def test_a_transient_failure_is_retried_with_growing_waits_until_attempts_run_out(
    counted: LeasedWork,
) -> None:
    waits = []
    for attempt in (1, 2, 3):
        lease = claimed(counted)
        assert counted.attempt == attempt
        retried = counted.fail(UnavailableError("It is away."), lease=lease)
        assert retried == (attempt < 3)
        if retried:
            waits.append(round((counted.not_before - timezone.now()).total_seconds()))
            assert (counted.state, counted.message_sent_at) == (
                counted.QUEUED_STATE,
                None,
            )
    assert waits == [5, 10]
    assert counted.state == counted.FAILED_STATE
    assert counted.lease_expires_at is None


def test_an_error_that_is_not_transient_is_not_retried(work: LeasedWork) -> None:
    lease = claimed(work)
    assert not work.fail(RequestError("It cannot work."), lease=lease)
    assert work.state == work.FAILED_STATE


def test_work_that_is_given_back_counts_no_attempt_and_is_due_at_once(work: LeasedWork) -> None:
    lease = claimed(work)
    rows(work).update(message_sent_at=timezone.now())
    work.give_back(lease)
    row = again(work)
    assert (row.attempt, row.state, row.message_sent_at) == (0, row.QUEUED_STATE, None)
    assert list(rows(work).due(timezone.now())) == [row]
    with pytest.raises(LeaseLostError):
        work.give_back(lease)


def test_lost_work_is_requeued_by_the_sweep_and_fails_when_attempts_run_out(
    counted: LeasedWork,
) -> None:
    for attempt in (1, 2, 3):
        claimed(counted, life=-LIFE)
        upkeep.give_up_lost(type(counted))
        row = again(counted)
        assert row.state == (row.QUEUED_STATE if attempt < 3 else row.FAILED_STATE)
    upkeep.give_up_lost(type(counted))
    assert again(counted).state == counted.FAILED_STATE


def test_a_lease_that_a_clock_set_back_left_in_the_future_is_lost(work: LeasedWork) -> None:
    claimed(work, life=timedelta(hours=2))
    assert list(rows(work).lost(timezone.now())) == [work]
    assert not rows(work).running(timezone.now()).exists()
    upkeep.give_up_lost(type(work))
    assert again(work).state == work.QUEUED_STATE


def test_an_expired_lease_is_not_lost_before_the_scheduler_has_seen_it_for_long(
    work: LeasedWork,
) -> None:
    now = 1000.0
    watch = LeaseWatch(lease=LIFE, interval=timedelta(seconds=5), clock=lambda: now)
    claimed(work, life=-LIFE)
    upkeep.give_up_lost(type(work), watch)
    assert again(work).state in work.LEASED
    for _ in range(4):
        now += 7
        upkeep.give_up_lost(type(work), watch)
    assert again(work).state == work.QUEUED_STATE


def test_a_due_time_that_a_clock_set_back_left_in_the_future_is_corrected(
    work: LeasedWork,
) -> None:
    now = timezone.now()
    rows(work).update(not_before=now + timedelta(hours=9), message_sent_at=now)
    assert due_times.correct(now) == 1
    row = again(work)
    assert (row.not_before, row.message_sent_at) == (now, None)
    rows(work).update(attempt=2, not_before=now + timedelta(seconds=14))
    assert due_times.correct(now) == 0, "as the backoff of its attempt has set it"


def test_the_sweep_sends_a_message_once_and_again_when_it_counts_as_lost(
    work: LeasedWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    kind = queueing.KINDS[type(work)]
    monkeypatch.setattr(kind.actor, "send", sent.append)
    for _ in range(2):
        queueing.send_due(type(work))
    assert len(sent) == 1
    rows(work).update(message_sent_at=timezone.now() - kind.resend() - MINUTE)
    queueing.send_due(type(work))
    assert len(sent) == 2


def test_a_queue_that_is_down_leaves_the_row_for_a_later_sweep(
    work: LeasedWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(key: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(queueing.KINDS[type(work)].actor, "send", down)
    assert not queueing.send(work)
    assert again(work).message_sent_at is None


def test_a_finished_row_is_not_failed_by_a_late_sweep(work: LeasedWork) -> None:
    claimed(work, life=-LIFE)
    late = again(work)
    assert not work.fail(RequestError("It cannot work."), lease=late.current_lease())
    with pytest.raises((TransitionError, LeaseLostError)):
        late.give_up_lost()


def test_the_database_refuses_a_lease_without_its_state_and_the_reverse(work: LeasedWork) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        rows(work).update(lease_expires_at=timezone.now())
    claimed(work)
    with pytest.raises(IntegrityError), transaction.atomic():
        rows(work).update(lease_expires_at=None)


def test_the_wait_before_an_attempt_doubles_up_to_a_ceiling() -> None:
    waits = [backoff_delay(n, first=timedelta(seconds=5)).total_seconds() for n in range(1, 12)]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600, 600]


def test_a_newer_build_takes_the_lease_of_a_push_away(environment: Environment) -> None:
    push = make_push(environment)
    assert isinstance(push, Push)
    lease = claimed(push)
    newer = make_build(environment)
    Push.want(push.rule, environment, newer)
    with pytest.raises(LeaseLostError):
        push.finish(lease, state="pushed")
    assert (again(push).state, Push.objects.get().build) == ("waiting", newer)


def test_an_attempt_whose_row_was_requeued_writes_nothing(work: LeasedWork) -> None:
    lease = work.claim("first", life=LIFE)
    assert lease is not None
    type(work)._default_manager.filter(pk=work.pk).update(
        lease_expires_at=timezone.now() - timedelta(minutes=1)
    )
    work.refresh_from_db()
    work.give_up_lost()
    with pytest.raises(LeaseLostError):
        work.write(lease, message_sent_at=timezone.now())


def test_a_row_that_is_deleted_meanwhile_ends_its_attempt_as_lost(work: LeasedWork) -> None:
    lease = work.claim("first", life=LIFE)
    assert lease is not None
    type(work)._default_manager.filter(pk=work.pk).delete()
    with pytest.raises(LeaseLostError, match="was deleted"):
        work.move(work.FAILED_STATE, lease=lease)


def test_a_sweep_leaves_a_lease_that_was_renewed_after_it_looked(work: LeasedWork) -> None:
    lease = work.claim("first", life=LIFE)
    assert lease is not None
    seen = type(work)._default_manager.get(pk=work.pk)
    work.renew(lease, life=2 * LIFE)
    with pytest.raises(LeaseLostError):
        seen.give_up_lost()
    work.refresh_from_db()
    assert work.state in work.LEASED


@pytest.mark.parametrize("others", [0, 20])
def test_a_claim_takes_the_same_few_statements_however_many_rows_there_are(
    work: LeasedWork, environment: Environment, others: int
) -> None:
    for _ in range(others):
        make_build(environment, BuildState.QUEUED)
    with CaptureQueriesContext(connection) as first:
        assert work.claim("one", life=LIFE)
    with CaptureQueriesContext(connection) as second:
        assert again(work).claim("two", life=LIFE) is None
    events = ["INSERT"] if isinstance(work, Build) else []
    assert statements(first) == ["UPDATE", "SELECT", *events]
    assert statements(second) == ["SELECT", "UPDATE"], "the row is read, and not claimed"


def statements(queries: CaptureQueriesContext) -> list[str]:
    words = [query["sql"].split()[0] for query in queries.captured_queries]
    return [word for word in words if word in ("SELECT", "INSERT", "UPDATE", "DELETE")]


def test_the_sweep_of_each_kind_finds_its_rows_by_an_index(work: LeasedWork) -> None:
    now = timezone.now()
    table = work._meta.db_table
    for found in (rows(work).due(now), rows(work).leased()):
        plan = found.order_by().explain()
        assert f"SCAN {table}" not in plan, plan
