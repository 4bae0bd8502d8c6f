"""Waits for changes of rows: woken by notices, with polling as the fallback.

The process that changes the state of a row publishes a notice once that is committed; the broker
carries it to the other processes. A notice can be lost, and only Redis and Valkey carry any, so
those who wait also poll: seldom while notices arrive, otherwise often. All waits for rows use the
intervals of this module.

    with Watch(topic_of(artifact)) as watch:
        while not is_finished(artifact):
            watch.wait(cancelled=run.cancelled)
            artifact.refresh_from_db()

Topics are `kind:key`, such as `artifact:12`; the kind alone stands for all its rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from django.db import transaction

#: Seconds between two reads of a row that somebody waits for: without notices, and with them.
POLL, POLL_WITH_NOTICES = 0.2, 1.0
#: Seconds between two checks whether a wait was cancelled; they ask no database.
CANCEL_CHECK = 0.1


class Transport(Protocol):
    """What carries notices to other processes."""

    @property
    def listening(self) -> bool:
        """True while the notices of other processes arrive."""

    def listen(self) -> None:
        """Begin to receive notices, if that has not begun."""

    def publish(self, topic: str) -> None:
        """Send a notice; one that cannot be sent is dropped."""


_transport: Transport | None = None
_watches: dict[str, set[Watch]] = {}
_guard = threading.Lock()


def set_transport(transport: Transport | None) -> None:
    global _transport
    _transport = transport


def poll_interval(without_notices: float | None = None) -> float:
    """Return the seconds until a row that somebody waits for is read again."""
    if _transport is not None and _transport.listening:
        return POLL_WITH_NOTICES
    return POLL if without_notices is None else without_notices


def topic_of(row: Any) -> str:
    """Return the topic of changes of a row."""
    return f"{row._meta.model_name}:{row.pk}"


def announce(topic: str) -> None:
    """Publish a notice once the current transaction is committed."""
    transaction.on_commit(partial(publish, topic))


def publish(topic: str) -> None:
    """Wake those who wait for `topic`, in this process and in others."""
    deliver(topic)
    if _transport is not None:
        _transport.publish(topic)


def deliver(topic: str) -> None:
    """Wake those of this process who wait for `topic`, or for its kind."""
    with _guard:
        found = [*_watches.get(topic, ()), *_watches.get(topic.partition(":")[0], ())]
    for watch in found:
        watch.wake()


def deliver_all() -> None:
    """Wake everybody of this process: notices may have been lost."""
    with _guard:
        found = {watch for watches in _watches.values() for watch in watches}
    for watch in found:
        watch.wake()


class Watch:
    """Wait of a thread for changes of topics, as a context manager.

    Enter it before the first read of the rows: a change after that read ends the next wait.
    """

    def __init__(self, *topics: str) -> None:
        self._topics = topics
        self._changed = threading.Event()

    def __enter__(self) -> Self:
        with _guard:
            for topic in self._topics:
                _watches.setdefault(topic, set()).add(self)
        if _transport is not None:
            _transport.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _guard:
            for topic in self._topics:
                watches = _watches[topic]
                watches.discard(self)
                if not watches:
                    del _watches[topic]

    def wake(self) -> None:
        self._changed.set()

    def wait(
        self, seconds: float | None = None, *, cancelled: Callable[[], bool] | None = None
    ) -> bool:
        """Wait for a change, for `seconds` at most, or until `cancelled`; True after a change.

        Args:
            seconds: until the row is to be read again in any case; `poll_interval()` by default.
        """
        end = time.monotonic() + (poll_interval() if seconds is None else seconds)
        step = CANCEL_CHECK if cancelled is not None else float("inf")
        while (left := end - time.monotonic()) > 0:
            if self._changed.wait(min(left, step)):
                break
            if cancelled is not None and cancelled():
                return False
        changed = self._changed.is_set()
        self._changed.clear()  # before the row is read: a later change ends the next wait
        return changed


class AsyncWatch(Watch):
    """The same for a coroutine; create it in the event loop."""

    def __init__(self, *topics: str) -> None:
        super().__init__(*topics)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._woken.set)

    async def changed(self, seconds: float | None = None) -> bool:
        """Wait for a change, for `seconds` at most; True after a change."""
        longest = poll_interval() if seconds is None else seconds
        try:
            await asyncio.wait_for(self._woken.wait(), max(longest, 0))
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._woken.clear()
