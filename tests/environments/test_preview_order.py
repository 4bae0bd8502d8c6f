"""Which preview is next, when one makes way, and how many threads they hold."""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import islice

import pytest
from django.utils import timezone

from environments import preview_order
from environments.models import Namespace, Preview
from environments.models.previews import PreviewState
from environments.operations import queueing, upkeep
from environments.thread_bounds import Kind, ThreadBounds
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
    assert next(preview_order.next_previews()) == str(older.pk)
    newer = preview(small)
    assert next(preview_order.next_previews()) == str(newer.pk)
    assert newer.claim(patience=MINUTE)
    preview(small, running=True)
    assert next(preview_order.next_previews()) == str(older.pk)


def test_a_preview_whose_worker_is_silent_is_due_again(big: Namespace) -> None:
    lost = preview(big, running=True, ago=timedelta(days=1))
    assert list(islice(preview_order.next_previews(), 1)) == [str(lost.pk)]


def test_the_newest_of_several_makes_way_for_a_namespace_that_has_none(
    big: Namespace, small: Namespace
) -> None:
    running = [preview(big, running=True, ago=MINUTE / part) for part in (1, 2, 3)]
    assert [preview_order.should_make_way(each) for each in running] == [False] * 3
    preview(small)
    assert [preview_order.should_make_way(each) for each in running] == [False, False, True]
    preview(small, running=True)
    assert [preview_order.should_make_way(each) for each in running] == [False] * 3


def test_the_only_preview_of_a_namespace_goes_on(big: Namespace, small: Namespace) -> None:
    running = preview(big, running=True)
    preview(small)
    assert not preview_order.should_make_way(running)


def test_a_preview_that_came_just_now_is_waited_with(big: Namespace, small: Namespace) -> None:
    running = [preview(big, running=True), preview(big, running=True, ago=MINUTE / 2)]
    preview(small, ago=timedelta(0))
    assert [preview_order.should_make_way(each) for each in running] == [False, False]


def test_the_message_of_its_submission_covers_a_new_preview(
    big: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[uuid.UUID] = []
    monkeypatch.setattr(queueing, "send_preview", lambda row: sent.append(row.pk))
    new, old = preview(big, ago=timedelta(0)), preview(big)
    assert preview_order.is_covered(str(new.pk))
    assert not preview_order.is_covered(str(old.pk))
    upkeep.send_forgotten_messages()
    assert sent == [old.pk]


@pytest.mark.parametrize(
    ("threads", "previews", "indexing"),
    [(1, 1, 0), (2, 1, 0), (3, 1, 1), (4, 2, 1), (8, 4, 2)],
)
def test_builds_keep_a_thread(threads: int, previews: int, indexing: int) -> None:
    bounds = ThreadBounds(threads)
    with ExitStack() as held:
        for kind, most in ((Kind.PREVIEW, previews), (Kind.INDEXING, indexing)):
            taken = [held.enter_context(bounds.hold(kind)) for _ in range(threads)]
            assert sum(taken) == most
    with bounds.hold(Kind.INDEXING) as again:
        assert again
