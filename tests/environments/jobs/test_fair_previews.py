"""Which preview is next, when one makes way, and how many threads they hold."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from django.utils import timezone

from environments import tasks
from environments.jobs import fair_previews
from environments.models import Namespace, Preview
from environments.models.previews import PreviewState
from environments.operations import queueing, upkeep
from environments.services import thread_bounds
from environments.services.thread_bounds import Kind, ThreadBounds
from tests import factories

pytestmark = pytest.mark.django_db
MINUTE = timedelta(minutes=1)


def preview(namespace: Namespace, *, running: bool = False, ago: timedelta = MINUTE) -> Preview:
    moment: datetime = timezone.now() - ago
    return Preview.objects.create(
        namespace=namespace,
        specification=factories.make_specification(),
        state=PreviewState.SOLVING if running else PreviewState.QUEUED,
        created_at=moment,
        started_at=moment if running else None,
        lease_expires_at=timezone.now() + MINUTE / 6 if running else None,
    )


@pytest.fixture
def big() -> Namespace:
    return factories.make_namespace("big")


@pytest.fixture
def small() -> Namespace:
    return factories.make_namespace("small")


def test_the_oldest_preview_of_the_namespace_with_the_fewest_running_is_next(
    big: Namespace, small: Namespace
) -> None:
    preview(big, running=True)
    older = preview(big, ago=5 * MINUTE)
    assert next(fair_previews.next_previews()) == str(older.pk)
    newer = preview(small)
    assert next(fair_previews.next_previews()) == str(newer.pk)
    assert newer.claim("worker", life=MINUTE / 2)
    preview(small, running=True)
    assert next(fair_previews.next_previews()) == str(older.pk)


def test_a_preview_whose_worker_is_silent_is_due_again(big: Namespace, settings: Any) -> None:
    settings.BACKOFF = timedelta(0)
    lost = preview(big, running=True, ago=MINUTE)
    Preview.objects.update(lease_expires_at=timezone.now() - MINUTE)
    upkeep.give_up_lost(Preview)
    assert list(islice(fair_previews.next_previews(), 1)) == [str(lost.pk)]


def test_the_newest_of_several_makes_way_for_a_namespace_that_has_none(
    big: Namespace, small: Namespace
) -> None:
    running = [preview(big, running=True, ago=MINUTE / part) for part in (1, 2, 3)]
    assert [fair_previews.should_make_way(each) for each in running] == [False] * 3
    preview(small)
    assert [fair_previews.should_make_way(each) for each in running] == [False, False, True]
    preview(small, running=True)
    assert [fair_previews.should_make_way(each) for each in running] == [False] * 3


def test_the_only_preview_of_a_namespace_goes_on(big: Namespace, small: Namespace) -> None:
    running = preview(big, running=True)
    preview(small)
    assert not fair_previews.should_make_way(running)


def test_a_preview_that_came_just_now_is_waited_with(big: Namespace, small: Namespace) -> None:
    running = [preview(big, running=True), preview(big, running=True, ago=MINUTE / 2)]
    preview(small, ago=timedelta(0))
    assert [fair_previews.should_make_way(each) for each in running] == [False, False]


def test_the_message_of_its_submission_covers_a_new_preview(
    big: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[uuid.UUID] = []
    monkeypatch.setattr(tasks.run_next_preview, "send", lambda key: sent.append(uuid.UUID(key)))
    new, old = preview(big, ago=timedelta(0)), preview(big)
    assert fair_previews.is_covered(str(new.pk))
    assert not fair_previews.is_covered(str(old.pk))
    queueing.send_due(Preview)
    assert sent == [old.pk]


@pytest.mark.parametrize("kind", [Kind.MIRRORING, Kind.PUSHING])
def test_mirrors_and_pushes_hold_a_quarter_of_the_threads_each(kind: Kind) -> None:
    bounds = ThreadBounds(8)
    with ExitStack() as held:
        assert not bounds.is_reached(kind)
        assert [held.enter_context(bounds.hold(kind)) for _ in range(3)] == [True, True, False]
        assert bounds.is_reached(kind)
    assert not bounds.is_reached(kind)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (tasks.read_mirror, Kind.MIRRORING),
        (tasks.render_mirror_view, Kind.MIRRORING),
        (tasks.push_image, Kind.PUSHING),
    ],
    ids=["look", "view", "push"],
)
def test_a_mirror_or_push_without_a_free_thread_is_offered_again(
    task: Any, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Any] = []
    monkeypatch.setattr(task, "send_with_options", lambda **options: later.append(options["args"]))
    with ExitStack() as held:
        while held.enter_context(thread_bounds.hold(kind)):
            pass
        task.fn(7)
    assert later == [(7,)]


def test_the_newest_of_slow_previews_that_hold_all_slots_makes_way_for_a_third_namespace(
    big: Namespace, small: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_previews, "UNDISTURBED", timedelta(0))
    slow = [preview(big, running=True, ago=MINUTE), preview(small, running=True, ago=MINUTE / 2)]
    waiting = preview(factories.make_namespace("third"), ago=MINUTE / 3)
    with ExitStack() as held:
        slots = [held.enter_context(fair_previews.hold_slot(one)) for one in slow]
        assert [slot.makes_way() for slot in slots] == [False, False], "a slot is free"
        while held.enter_context(thread_bounds.hold(Kind.PREVIEW)):
            pass
        again = [held.enter_context(fair_previews.hold_slot(one)) for one in slow]
        assert [slot.makes_way() for slot in again] == [False, True]
    slow[1].give_back(slow[1].current_lease())
    assert next(fair_previews.next_previews()) == str(waiting.pk), "not the one that made way"


def test_a_namespace_with_a_new_preview_each_time_does_not_overtake_one_that_made_way(
    big: Namespace, small: Namespace
) -> None:
    slow = preview(big)
    lease = slow.claim("worker", life=MINUTE / 2)
    assert lease is not None
    slow.give_back(lease)
    first = preview(small, ago=MINUTE / 2)
    assert next(fair_previews.next_previews()) == str(first.pk), "it was never served"
    served = first.claim("worker", life=MINUTE / 2)
    assert served is not None
    first.finish(served, state=PreviewState.READY)
    preview(small, ago=MINUTE / 3)
    assert next(fair_previews.next_previews()) == str(slow.pk)


@pytest.mark.parametrize(
    ("threads", "most_of_kinds"),
    [
        (1, (1, 0, 0, 0)),
        (2, (1, 0, 0, 0)),
        (3, (1, 1, 0, 0)),
        (4, (2, 1, 0, 0)),
        (8, (4, 2, 1, 0)),
        (16, (8, 4, 3, 0)),
    ],
)
def test_builds_keep_a_thread(threads: int, most_of_kinds: Sequence[int]) -> None:
    bounds = ThreadBounds(threads)
    with ExitStack() as held:
        for kind, most in zip(Kind, most_of_kinds, strict=True):
            taken = [held.enter_context(bounds.hold(kind)) for _ in range(threads)]
            assert sum(taken) == most
    with bounds.hold(Kind.INDEXING) as again:
        assert again
