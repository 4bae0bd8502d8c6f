"""Redis broker that wakes idle workers by publish and subscribe instead of frequent polling.

Each consumer of dramatiq polls Redis several times a second. Here consumers wait for a
notification, which enqueueing a message publishes. Notifications may be lost, so consumers also
poll: rarely while they are subscribed, and as often as dramatiq's own while they are not.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq import Consumer, Message, MessageProxy, Worker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from condastore import row_changes

logger = structlog.get_logger(__name__)
#: Seconds between two polls of a subscribed consumer, and until a lost connection is reopened.
SUBSCRIBED_POLL_INTERVAL, RECONNECT_DELAY = 2.0, 1.0
#: Notices of rows that wait to be sent; more are dropped.
MAX_UNSENT = 1_000


class WakingBroker(RedisBroker):
    """Broker for Redis or Valkey that publishes a notification for each message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.word = f"{self.namespace}:wake"
        self.listening = False
        self.leaving = False
        self._waiting: list[WakingConsumer] = []
        self._guard = threading.Lock()
        self._listener: threading.Thread | None = None
        self.add_middleware(_Leaving())

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        fetched = super().consume(queue_name, prefetch, timeout=0)
        return WakingConsumer(self, queue_name, fetched, pause=timeout / 1000)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        sent = super().enqueue(message, delay=delay)
        self.say(sent.queue_name)
        return sent

    def say(self, queue_name: str) -> None:
        """Wake those who wait for this queue; where that fails, they find the message later."""
        with contextlib.suppress(redis.RedisError):
            self.client.publish(self.word, queue_name)

    def wait(self, consumer: WakingConsumer, seconds: float) -> None:
        """Until there may be something for `consumer`; `seconds` where nobody would tell."""
        told = self.listening and not self.leaving and not consumer.has_delayed
        consumer.woken.wait(SUBSCRIBED_POLL_INTERVAL if told else seconds)

    def joined(self, consumer: WakingConsumer) -> None:
        with self._guard:
            self._waiting.append(consumer)
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="waking", daemon=True)
                self._listener.start()

    def left(self, consumer: WakingConsumer) -> None:
        with self._guard:
            self._waiting = [one for one in self._waiting if one is not consumer]

    def wake(self, queue_name: str = "") -> None:
        """The consumers of a queue, or all."""
        with self._guard:
            for consumer in self._waiting:
                if queue_name in ("", consumer.queue_name):
                    consumer.woken.set()

    def _listen(self) -> None:
        while not self.leaving:
            try:
                with self.client.pubsub() as words:
                    words.subscribe(self.word)
                    for word in words.listen():
                        if self.leaving:
                            return
                        self.listening = True
                        # All of them at the beginning, for what came before.
                        said = word["type"] == "message"
                        self.wake(word["data"].decode() if said else "")
            except (redis.RedisError, OSError) as error:
                logger.debug("nobody tells of messages", error=str(error))
            finally:
                self.listening = False
                self.wake()
            time.sleep(RECONNECT_DELAY)


class WakingConsumer(Consumer):
    """Consumer of one queue that waits for notifications, around dramatiq's own consumer."""

    def __init__(
        self, broker: WakingBroker, queue_name: str, fetched: Consumer, pause: float
    ) -> None:
        """Wrap `fetched`, which returns at once; `pause` is the longest wait in seconds."""
        self.broker, self.queue_name = broker, queue_name
        self.woken = threading.Event()
        self._fetched, self._pause = fetched, pause
        self._unfinished: set[str] = set()
        broker.joined(self)

    @property
    def has_delayed(self) -> bool:
        """True while it holds messages whose time is still to come."""
        return self.queue_name in self.broker.delay_queues and bool(self._unfinished)

    def __next__(self) -> MessageProxy | None:
        self.woken.clear()  # first: what comes from here on ends the wait below
        found = next(self._fetched)
        if found is None:
            self.broker.wait(self, self._pause)
        else:
            self._unfinished.add(found.message_id)
        return found

    def ack(self, message: MessageProxy) -> None:
        try:
            self._fetched.ack(message)
        finally:
            self._finished(message)

    def nack(self, message: MessageProxy) -> None:
        try:
            self._fetched.nack(message)
        finally:
            self._finished(message)

    def _finished(self, message: MessageProxy) -> None:
        self._unfinished.discard(message.message_id)
        self.woken.set()  # another message can be fetched

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._fetched.requeue(messages)
        self.broker.say(self.queue_name)  # to the other workers

    def close(self) -> None:
        self.broker.left(self)
        self._fetched.close()


class RowNotices:
    """Notices of changed rows (`row_changes`) between the processes of an installation."""

    def __init__(self, broker: WakingBroker) -> None:
        self._client = broker.client
        self._channel = f"{broker.namespace}:changed"
        self._guard = threading.Lock()
        self._listener: threading.Thread | None = None
        self._subscribed = False
        self._sender: threading.Thread | None = None
        self._unsent: queue.Queue[str] = queue.Queue(MAX_UNSENT)

    @property
    def listening(self) -> bool:
        # The thread does not survive a fork, which copies the flag.
        return self._subscribed and self._listener is not None and self._listener.is_alive()

    def listen(self) -> None:
        with self._guard:
            if self._listener is None or not self._listener.is_alive():
                self._subscribed = False
                self._listener = threading.Thread(
                    target=self._receive, name="row-notices", daemon=True
                )
                self._listener.start()

    def publish(self, topic: str) -> None:
        """Let a thread send the notice: a server that hangs must not hold up a heartbeat."""
        with contextlib.suppress(queue.Full):
            self._unsent.put_nowait(topic)
        if self._sender is None or not self._sender.is_alive():
            with self._guard:
                if self._sender is None or not self._sender.is_alive():
                    self._sender = threading.Thread(
                        target=self._send, name="row-notices-sent", daemon=True
                    )
                    self._sender.start()

    def _send(self) -> None:
        while True:
            topic = self._unsent.get()
            try:
                self._client.publish(self._channel, topic)
            except (redis.RedisError, OSError) as error:
                logger.debug("no notices of rows are sent", error=str(error))
                time.sleep(RECONNECT_DELAY)

    def _receive(self) -> None:
        while True:
            try:
                with self._client.pubsub() as notices:
                    notices.subscribe(self._channel)
                    for notice in notices.listen():
                        self._subscribed = True
                        if notice["type"] == "message":
                            row_changes.deliver(notice["data"].decode(errors="replace"))
                        else:  # for what came before
                            row_changes.deliver_all()
            except (redis.RedisError, OSError) as error:
                logger.debug("no notices of rows arrive", error=str(error))
            if self._subscribed:
                self._subscribed = False
                row_changes.deliver_all()  # they poll more often from now on
            time.sleep(RECONNECT_DELAY)


class _Leaving(Middleware):
    """A worker that is to stop does not wait for what will not come."""

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: Worker) -> None:
        assert isinstance(broker, WakingBroker)
        broker.leaving = True
        broker.wake()
        broker.say("")  # to ourselves: the listener ends
