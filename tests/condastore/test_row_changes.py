"""Waits for changes of rows end with a notice, a cancellation, or the next poll."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from django.db import transaction

from condastore import row_changes
from condastore.row_changes import AsyncWatch, Watch

NEVER = 3600.0  # seconds


class Heard:
    """Transport of a queue that answers."""

    listening = True

    def __init__(self) -> None:
        self.sent: list[str] = []

    def listen(self) -> None:
        pass

    def publish(self, topic: str) -> None:
        self.sent.append(topic)


@pytest.fixture(autouse=True)
def transport() -> Iterator[Heard]:
    before = row_changes._transport
    heard = Heard()
    row_changes.set_transport(heard)
    yield heard
    row_changes.set_transport(before)


@pytest.mark.parametrize("topic", ["artifact:12", "artifact"])
def test_a_notice_of_a_row_wakes_those_who_wait_for_it_or_for_its_kind(topic: str) -> None:
    with Watch(topic) as watch:
        threading.Timer(0.05, row_changes.publish, ["artifact:12"]).start()
        assert watch.wait(NEVER)


def test_a_notice_that_comes_between_a_read_and_the_wait_is_not_lost() -> None:
    with Watch("artifact:12", "artifact:13") as watch:
        row_changes.publish("artifact:13")
        assert watch.wait(NEVER)
        assert not watch.wait(0.01), "it counts once"


def test_notices_of_other_rows_wake_nobody() -> None:
    with Watch("artifact:12") as watch:
        for topic in ("artifact:1", "artifact:123", "build:12"):
            row_changes.publish(topic)
        assert not watch.wait(0.01)


def test_a_wait_ends_when_it_is_cancelled() -> None:
    cancelled = threading.Event()
    with Watch("artifact:12") as watch:
        threading.Timer(0.05, cancelled.set).start()
        assert not watch.wait(NEVER, cancelled=cancelled.is_set)


def test_a_watch_that_has_ended_leaves_nothing_behind() -> None:
    before = dict(row_changes._watches)
    with Watch("artifact:12", "artifact"):
        assert row_changes._watches != before
    assert row_changes._watches == before


def test_a_coroutine_is_woken_by_a_notice_from_a_thread() -> None:
    async def wait() -> tuple[bool, bool]:
        with AsyncWatch("artifact:12") as watch:
            threading.Timer(0.05, row_changes.publish, ["artifact:12"]).start()
            return await watch.changed(NEVER), await watch.changed(0.01)

    assert asyncio.run(wait()) == (True, False)


def test_rows_are_read_seldom_while_notices_arrive_and_often_otherwise(transport: Heard) -> None:
    assert row_changes.poll_interval() == row_changes.POLL_WITH_NOTICES
    transport.listening = False
    assert row_changes.poll_interval() == row_changes.POLL
    assert row_changes.poll_interval(0.4) == 0.4


@pytest.mark.django_db(transaction=True)
def test_a_notice_is_published_after_the_commit_and_not_after_a_rollback(transport: Heard) -> None:
    with transaction.atomic():
        row_changes.announce("artifact:12")
        assert transport.sent == []
    assert transport.sent == ["artifact:12"]
    with transaction.atomic():
        row_changes.announce("artifact:13")
        transaction.set_rollback(True)
    assert transport.sent == ["artifact:12"]
