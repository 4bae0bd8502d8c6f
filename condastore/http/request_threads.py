"""The threads in which requests run, and their database connections, kept from one to the next.

asgiref gives each request a thread of its own and ends it with the request: a connection would be
opened, and told its settings, once for each.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Self

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections

from condastore._private import set_connection_check
from condastore.http import request_turns

#: Threads that wait for a request; what comes beyond them gets one of its own.
KEPT = 8
#: PostgreSQL connections of one web process: a request has one while it runs, a subscription only
#: while it looks. A request that has waited `timeout` seconds for one fails with 503.
POOL = {"min_size": 0, "max_size": 32, "timeout": 5, "max_idle": 60}

#: Seconds that a request waits for SQLite's write lock before it is answered with 503.
WRITE_PATIENCE = 10


class KeptThread(ThreadSensitiveContext):
    """Run the synchronous parts of a request in one thread, which the next request may reuse."""

    _free: ClassVar[deque[Executor]] = deque()

    async def __aenter__(self) -> Self:
        await super().__aenter__()  # type: ignore[no-untyped-call]
        return self

    def begin(self) -> None:
        """Assign the thread. Before, while the request waits for its turn, it needs none."""
        if self.token is not None:
            executor: Any = self._free.pop() if self._free else ThreadPoolExecutor(max_workers=1)
            SyncToAsync.context_to_thread_executor[self] = executor

    async def __aexit__(self, *exception: Any) -> None:
        # A subscription has given its thread back (graphql.views.release_thread).
        executor = SyncToAsync.context_to_thread_executor.get(self)
        if executor is not None and len(self._free) < KEPT:
            del SyncToAsync.context_to_thread_executor[self]
            self._free.append(executor)
        await super().__aexit__(*exception)  # type: ignore[no-untyped-call]

    @classmethod
    def give_back(cls) -> None:
        """Let the next request have the thread of this one, which still sends its answer.

        What needs a thread later in this request gets another one.
        """
        context = SyncToAsync.thread_sensitive_context.get(None)
        executor = SyncToAsync.context_to_thread_executor.pop(context, None) if context else None
        if executor is None:
            return
        if len(cls._free) < KEPT:
            cls._free.append(executor)
        else:
            executor.shutdown(wait=False)


async def release() -> None:
    """Give back the thread and the connection of a request that only sends its answer now."""
    await sync_to_async(_close_obsolete)()
    KeptThread.give_back()


def _close_obsolete() -> None:
    """Close connections as at the end of a request, but for those of an open transaction."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def keep_connections() -> None:
    """Prepare a web process before its first request: keep connections open between requests.

    Of PostgreSQL in a pool, so that there are no more than it may hold, whichever thread asks.
    """
    database = connections.settings["default"]
    if database["ENGINE"].endswith("sqlite3"):
        database["CONN_MAX_AGE"] = None
        database.setdefault("OPTIONS", {})["timeout"] = WRITE_PATIENCE
    elif database["ENGINE"].endswith("postgresql"):
        request_turns.set_limit(request_turns.AT_ONCE_WITH_SERVER)
        database["CONN_MAX_AGE"] = 0
        database.setdefault("OPTIONS", {}).setdefault("pool", dict(POOL))
        pool: Any = connections["default"].pool  # type: ignore[attr-defined]  # PostgreSQL's
        set_connection_check(pool, partial(check_all, pool))


def check_all(pool: Any, connection: Any) -> None:
    """Check a connection before a request gets it; if it is broken, check all idle ones.

    After a restart of the server each is. The pool would find out one after the other, and wait
    longer after each: the first requests would fail with 503.
    """
    try:
        pool.check_connection(connection)
    except Exception:
        pool.check()
        raise
