"""Database polling that all streams of one event loop share: subscriptions and live pages.

A hundred subscriptions that each read the database a few times a second would keep a web process
busy with nothing. Here one statement reads the states of all rows that are followed, and wakes only
the subscriptions whose row has changed. It is sent after a notice, and from time to time
(`row_changes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import structlog
from asgiref.sync import sync_to_async
from django.db import close_old_connections

from condastore.http import request_turns
from condastore.row_changes import AsyncWatch, poll_interval

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")
logger = structlog.get_logger(__name__)
#: Seconds between two reads of the database, at least: many notices come together.
SHORTEST = 0.25


async def read_in_thread(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `read` in a thread of the pool, which has no connection afterwards."""

    def run() -> T:
        try:
            return read(*args, **kwargs)
        finally:
            close_old_connections()

    async with request_turns.running(request_turns.Kind.WATCH):
        return await sync_to_async(run, thread_sensitive=False)()


@dataclass(eq=False, frozen=True, slots=True)
class _Waiter(Generic[K]):
    key: K
    state: object
    woken: asyncio.Future[None]


class Poll(Generic[K]):
    """Wait for changes of rows; `read` returns the states of those with these keys.

    Args:
        topics: notices of changes, by kind.
    """

    def __init__(
        self, read: Callable[[Collection[K]], Mapping[K, object]], *, topics: Collection[str] = ()
    ) -> None:
        self._read, self._topics = read, topics
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPoll[K]] = (
            WeakKeyDictionary()
        )

    async def changed(self, key: K, state: object, *, timeout: float) -> bool:
        """Wait until the state of `key` differs from `state`; False after `timeout` seconds.

        True as well where the database cannot be read: the caller meets the error itself.
        """
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops[loop] = _LoopPoll(self._read, self._topics)
        return await self._loops[loop].wait(key, state, timeout)


class _LoopPoll(Generic[K]):
    def __init__(
        self, read: Callable[[Collection[K]], Mapping[K, object]], topics: Collection[str]
    ) -> None:
        self._read, self._topics = read, topics
        self._waiters: set[_Waiter[K]] = set()
        self._task: asyncio.Task[None] | None = None
        self._watch: AsyncWatch | None = None

    async def wait(self, key: K, state: object, timeout: float) -> bool:
        waiter = _Waiter(key, state, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        if self._task is None or self._task.done():
            # A context of its own: it serves others than the request that happens to start it.
            self._task = asyncio.create_task(self._run(), context=Context())
        elif self._watch is not None:
            self._watch.wake()  # the row may have changed since the waiter has read it
        try:
            await asyncio.wait_for(waiter.woken, timeout)
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._waiters.discard(waiter)

    async def _run(self) -> None:
        """Read and wake until nobody has waited for one interval."""
        with AsyncWatch(*self._topics) as watch:
            self._watch = watch
            while await self._next(watch):
                await self._wake_changed()

    async def _next(self, watch: AsyncWatch) -> bool:
        """Wait until the rows are to be read again; False if nobody waits for them."""
        shortest = min(SHORTEST, poll_interval())
        await asyncio.sleep(shortest)
        await watch.changed(poll_interval() - shortest)
        return bool(self._waiters)

    async def _wake_changed(self) -> None:
        waiters = list(self._waiters)
        try:
            states = await read_in_thread(self._read, {waiter.key for waiter in waiters})
        except Exception as error:
            logger.debug("polling failed", error=str(error))
            states = {}
        for waiter in waiters:
            if not waiter.woken.done() and (
                waiter.key not in states or states[waiter.key] != waiter.state
            ):
                waiter.woken.set_result(None)
