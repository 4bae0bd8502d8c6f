"""An event loop in its own thread, for calls from other threads."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from condastore.errors import TimeLimitError
from environments.domain.progress import Cancelled, never, obey

Answer = TypeVar("Answer")
POLL_SECONDS = 0.1  # between two checks of `cancelled`


class EventLoopThread:
    """An event loop in a daemon thread, started at first use and again after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_pid = 0

    def run(
        self,
        work: Coroutine[Any, Any, Answer],
        *,
        cancelled: Cancelled = never,
        deadline: float | None = None,  # of time.monotonic()
    ) -> Answer:
        """Run `work` in the network thread; stop waiting at `deadline` or when `cancelled`.

        Work that rattler started in its own threads may continue for a moment.

        Raises:
            LeaseLostError: `cancelled` returned True.
            TimeLimitError: `deadline` passed.
        """
        future: Future[Answer] = asyncio.run_coroutine_threadsafe(work, self._event_loop())
        while True:
            try:
                return future.result(timeout=POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    raise  # raised by the work itself
            try:
                obey(cancelled)
            except BaseException:
                future.cancel()
                raise
            if deadline is not None and time.monotonic() > deadline:
                future.cancel()
                raise TimeLimitError("The channels did not respond within the time limit.")

    def close(self) -> None:
        """Stop the thread; the next call starts it again."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._loop_pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._loop_pid != os.getpid():  # a fork has no threads
                self._loop = asyncio.new_event_loop()
                self._loop_pid = os.getpid()
                threading.Thread(target=_serve, args=(self._loop,), daemon=True).start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
