"""Admission control of a web process: only a few requests run Python at the same time.

The threads of one process share one interpreter lock: the more of them run, the more they switch,
and all of them answer later. A request holds a turn from the end of its body to the start of its
answer, and releases it while it only waits: for a build, for an upload, for SQLite's write lock.
Requests of one kind queue in the order in which they came; the kinds take turns, so that a burst of
changes holds up neither those who read, nor many open subscriptions those who change something.

A wait that nobody announced (an LDAP server, a slow disk, a row lock) does not hold up the others
for long: a turn held for longer than PATIENCE no longer counts while somebody queues.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from enum import StrEnum
from itertools import cycle
from typing import Any

from condastore.row_changes import AsyncWatch, poll_interval

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Requests that run at once. Two, because a request leaves the interpreter free while its database
#: answers; more where that is a server: each statement waits until other processes have had their
#: share of the processors.
AT_ONCE, AT_ONCE_WITH_SERVER = 2, 4


class Kind(StrEnum):
    READ = "read"
    CHANGE = "change"
    WATCH = "watch"


#: Which kind is next where several are waiting, again and again.
SHARES = (Kind.READ, Kind.CHANGE, Kind.READ, Kind.CHANGE, Kind.WATCH)
#: Seconds after which a held turn no longer counts while other requests queue.
PATIENCE = 0.25


class Turn:
    """The turn of one request. Its methods run on the event loop."""

    __slots__ = ("_turns", "ended", "kind")

    def __init__(self, turns: Turns, kind: Kind = Kind.READ) -> None:
        self._turns = turns
        self.kind = kind
        self.ended = False

    @property
    def held(self) -> bool:
        return self in self._turns.held

    async def take(self) -> None:
        """Wait in the queue until this request may run."""
        if not self.ended:
            await self._turns.take(self)

    def resume(self) -> None:
        """Hold the turn again at once, beyond the limit if need be.

        For a thread that may hold a lock which those that run are waiting for.
        """
        if not self.ended:
            self._turns.hold(self)

    def give(self) -> None:
        self._turns.give(self)

    def end(self) -> None:
        self.ended = True
        self.give()

    def call(self, method: Callable[[], None]) -> None:
        """Run `give` or `resume` from a thread."""
        self._turns.loop.call_soon_threadsafe(method)


class Turns:
    """The turns of one event loop. Its methods run on that loop."""

    def __init__(self, limit: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.held: dict[Turn, float] = {}
        self._limit = limit
        self._queues: dict[Kind, deque[tuple[asyncio.Future[None], Turn]]] = {
            kind: deque() for kind in Kind
        }
        self._shares = cycle(SHARES)
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, turn: Turn) -> None:
        if turn in self.held:
            return
        if len(self.held) < self._limit and not self._queued:
            self.hold(turn)
            return
        admitted = self.loop.create_future()
        self._queues[turn.kind].append((admitted, turn))
        self._watch()
        try:
            await admitted
        except asyncio.CancelledError:
            self.give(turn)  # it may have been admitted in the same moment
            raise

    def hold(self, turn: Turn) -> None:
        self.held[turn] = self.loop.time()

    def give(self, turn: Turn) -> None:
        if self.held.pop(turn, None) is not None:
            self._admit()

    @property
    def _queued(self) -> bool:
        return any(self._queues.values())

    def _admit(self) -> None:
        while self._queued and len(self.held) < self._limit:
            queue = next(queue for kind in self._shares if (queue := self._queues[kind]))
            admitted, turn = queue.popleft()
            if not admitted.done():
                self.hold(turn)
                admitted.set_result(None)

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(PATIENCE, self._pass_over)

    def _pass_over(self) -> None:
        """Stop counting turns that are held for too long."""
        self._timer = None
        if not self._queued:
            return
        latest = self.loop.time() - PATIENCE
        for turn in [turn for turn, since in self.held.items() if since <= latest]:
            self.give(turn)
        if self._queued:
            self._watch()


_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_current: ContextVar[Turn | None] = ContextVar("condastore_turn", default=None)
_turns: Turns | None = None
_limit = AT_ONCE


def set_limit(requests: int) -> None:
    """Set how many requests of this process run at once, before the first of them."""
    global _limit
    _limit = requests


def _of_this_loop() -> Turns:
    global _turns
    if _turns is None or _turns.loop is not asyncio.get_running_loop():
        _turns = Turns(_limit)
    return _turns


async def admit(
    application: Callable[[Receive, Send], Awaitable[None]],
    receive: Receive,
    send: Send,
    *,
    method: str,
    admitted: Callable[[], None],
) -> None:
    """Run an HTTP request of `application` in a turn of its own.

    Args:
        method: of the request. A POST that names no mutation only reads: such are most of GraphQL.
        admitted: called when the request has its turn, before its body is passed on.
    """
    turn = Turn(_of_this_loop())
    begun = False

    async def received() -> Message:
        nonlocal begun
        message = await receive()
        if method not in _READING and (method != "POST" or b"mutation" in message.get("body", b"")):
            turn.kind = Kind.CHANGE
        if not begun and not message.get("more_body", False):
            begun = True
            await turn.take()
            admitted()
        return message

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            turn.end()  # the rest is written as fast as the client reads
        await send(message)

    before = _current.set(turn)
    try:
        await application(received, sent)
    finally:
        turn.end()
        _current.reset(before)


@asynccontextmanager
async def running(kind: Kind) -> AsyncIterator[None]:
    """Hold a turn for work outside of a request's own, such as a subscription's query."""
    turn = _current.get()
    if turn is not None and turn.held:
        yield
        return
    turn = Turn(_of_this_loop(), kind)
    await turn.take()
    try:
        yield
    finally:
        turn.end()


@asynccontextmanager
async def released() -> AsyncIterator[None]:
    """Release the turn of this request for a wait in a coroutine, then queue for it again."""
    turn = _current.get()
    if turn is None:
        yield
        return
    turn.give()
    try:
        yield
    finally:
        await turn.take()


async def pause(watch: AsyncWatch, *, until: float) -> None:
    """Wait until rows are to be read again, with the turn released.

    Args:
        until: a value of `time.monotonic()` after which the caller waits no more.
    """
    async with released():
        await watch.changed(min(poll_interval(), until - time.monotonic()))


@contextmanager
def waiting() -> Iterator[None]:
    """Release the turn of this request for a wait in a thread."""
    turn = _current.get()
    if turn is None or not turn.held:
        yield
        return
    turn.call(turn.give)
    try:
        yield
    finally:
        turn.call(turn.resume)
