"""A waiting worker is notified of a message; one that gets no notification polls for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from condastore import broker, redis_wakeup
from condastore.row_changes import Watch
from tests.services import Service, valkey
from tests.services.processes import wait_for

NEVER = 3600.0  # seconds


@contextmanager
def working(url: str) -> Iterator[tuple[Any, dict[str, threading.Event]]]:
    """A worker at its queue, and what it was asked to do."""
    real = broker.make_broker(url)
    assert isinstance(real, redis_wakeup.WakingBroker)
    done = {name: threading.Event() for name in ("first", "second", "third")}

    @dramatiq.actor(broker=real, queue_name="waking", max_retries=0)
    def do(name: str) -> None:
        done[name].set()

    worker = dramatiq.Worker(real, queues={"waking"}, worker_threads=1, worker_timeout=100)
    worker.start()
    try:
        wait_for(lambda: real.listening, what="listening")
        yield do, done
    finally:
        worker.stop(timeout=60_000)
        assert not [one for one in worker.consumers.values() if one.is_alive()]
        real.flush_all()
        real.close()


def test_a_message_wakes_a_worker_that_would_look_an_hour_later(
    valkey_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wakeup, "SUBSCRIBED_POLL_INTERVAL", NEVER)
    with working(valkey_service.url) as (actor, done):
        for name in ("first", "second"):
            actor.send(name)
            assert done[name].wait(60)
        actor.send_with_options(args=("third",), delay=200)
        assert done["third"].wait(60)


def test_a_message_of_which_nobody_spoke_is_found(
    valkey_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wakeup, "SUBSCRIBED_POLL_INTERVAL", 0.1)
    silent: Any = RedisBroker(url=valkey_service.url)
    with working(valkey_service.url) as (actor, done):
        silent.enqueue(actor.message("first"))
        assert done["first"].wait(60)
    silent.close()


def test_a_worker_is_told_again_after_the_queue_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_wakeup, "SUBSCRIBED_POLL_INTERVAL", NEVER)
    with valkey() as queue, working(queue.url) as (actor, done):
        listening = actor.broker
        queue.kill()
        wait_for(lambda: not listening.listening, what="noticing")
        queue.start()
        wait_for(lambda: listening.listening, what="listening again")
        actor.send("first")
        assert done["first"].wait(60)


@contextmanager
def carrying(url: str) -> Iterator[redis_wakeup.RowNotices]:
    """The notices of rows of a process; it listens, and wakes those of this process."""
    real = broker.make_broker(url)
    assert isinstance(real, redis_wakeup.WakingBroker)
    notices = redis_wakeup.RowNotices(real)
    notices.listen()
    wait_for(lambda: notices.listening, what="listening")
    yield notices


def test_a_changed_row_wakes_those_who_wait_in_another_process(valkey_service: Service) -> None:
    other = broker.make_broker(valkey_service.url)
    assert isinstance(other, redis_wakeup.WakingBroker)
    with carrying(valkey_service.url), Watch("artifact:12") as watch:
        watch.wait(0.01)  # that listening began wakes everybody once
        redis_wakeup.RowNotices(other).publish("artifact:12")
        assert watch.wait(60)


def test_notices_are_dropped_while_the_queue_is_away_and_arrive_afterwards() -> None:
    with valkey() as queue, carrying(queue.url) as notices:
        queue.kill()
        wait_for(lambda: not notices.listening, what="noticing")
        notices.publish("artifact:12")
        queue.start()
        wait_for(lambda: notices.listening, what="listening again")

        def arrives() -> bool:
            notices.publish("artifact:12")
            return watch.wait(0.01)

        with Watch("artifact:12") as watch:
            wait_for(arrives, what="a notice")


def test_a_queue_that_does_not_answer_holds_up_nobody_who_publishes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        real = broker.make_broker(f"redis://127.0.0.1:{hanging.getsockname()[1]}/0")
        assert isinstance(real, redis_wakeup.WakingBroker)
        notices = redis_wakeup.RowNotices(real)
        for number in range(redis_wakeup.MAX_UNSENT + 10):  # what is too much is dropped
            notices.publish(f"artifact:{number}")
        assert not notices.listening
