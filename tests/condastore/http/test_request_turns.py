"""Admission of requests: how many run at once, and that none waits for another that only waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from condastore.http import request_turns
from condastore.http.request_turns import AT_ONCE, Message, Receive, Send
from condastore.row_changes import AsyncWatch

View = Callable[[], Awaitable[None]]


class Requests:
    """Sends requests to views, and counts how many run at once."""

    def __init__(self) -> None:
        self.running = self.most = self.answered = 0

    async def send(
        self, view: View, *, body: asyncio.Event | None = None, method: str = "GET"
    ) -> None:
        async def receive() -> Message:
            if body is not None:
                await body.wait()
            return {"type": "http.request", "body": b""}

        async def send(_: Message) -> None:
            return None

        async def application(receive: Receive, send: Send) -> None:
            await receive()
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await view()
            finally:
                self.running -= 1
            await send({"type": "http.response.start"})
            self.answered += 1

        await request_turns.admit(application, receive, send, method=method, admitted=lambda: None)

    async def in_thread(self) -> None:
        await asyncio.to_thread(threading.Event().wait, 0.002)


def test_no_more_than_the_limit_run_at_once_and_all_are_answered() -> None:
    requests = Requests()

    async def main() -> None:
        await asyncio.gather(*(requests.send(requests.in_thread) for _ in range(40)))

    asyncio.run(main())
    assert requests.most == AT_ONCE
    assert requests.answered == 40


def test_the_limit_of_a_process_can_be_another() -> None:
    requests = Requests()

    async def main() -> None:
        await asyncio.gather(*(requests.send(requests.in_thread) for _ in range(40)))

    request_turns.set_limit(request_turns.AT_ONCE_WITH_SERVER)
    try:
        asyncio.run(main())
    finally:
        request_turns.set_limit(AT_ONCE)
    assert requests.most == request_turns.AT_ONCE_WITH_SERVER > AT_ONCE


def test_requests_run_in_the_order_in_which_they_came() -> None:
    requests, order = Requests(), []

    async def main() -> None:
        def view(number: int) -> View:
            async def run() -> None:
                order.append(number)
                await asyncio.sleep(0)

            return run

        await asyncio.gather(*(requests.send(view(number)) for number in range(20)))

    asyncio.run(main())
    assert order == list(range(20))


def test_requests_that_pause_hold_up_nobody() -> None:
    requests = Requests()

    async def main() -> None:
        ready = asyncio.Event()

        async def pause() -> None:
            with AsyncWatch("artifact:1") as watch:
                while not ready.is_set():
                    await request_turns.pause(watch, until=time.monotonic() + 0.01)

        paused = [asyncio.create_task(requests.send(pause)) for _ in range(10)]
        while requests.running < 10:
            await asyncio.sleep(0)
        await requests.send(requests.in_thread)
        assert requests.answered == 1
        ready.set()
        await asyncio.gather(*paused)

    asyncio.run(main())


def test_a_body_that_is_slow_to_come_holds_up_nobody() -> None:
    requests = Requests()

    async def main() -> None:
        body = asyncio.Event()
        slow = [asyncio.create_task(requests.send(requests.in_thread, body=body)) for _ in range(9)]
        await requests.send(requests.in_thread)
        assert requests.answered == 1
        body.set()
        await asyncio.gather(*slow)

    asyncio.run(main())
    assert requests.answered == 10


def test_threads_that_wait_for_a_lock_hold_up_nobody_who_could_release_it() -> None:
    requests = Requests()
    lock = threading.Lock()

    async def main() -> None:
        def hold() -> None:
            with request_turns.waiting():
                lock.acquire()

        async def view() -> None:
            await asyncio.to_thread(hold)
            async with request_turns.released():  # the lock is held without a turn
                await asyncio.sleep(0)
            lock.release()

        await asyncio.gather(*(requests.send(view) for _ in range(12)))

    asyncio.run(main())
    assert requests.answered == 12


def test_requests_that_are_stuck_without_a_word_are_passed_over() -> None:
    requests, stuck = Requests(), threading.Event()

    async def main() -> None:
        async def wait() -> None:
            await asyncio.to_thread(stuck.wait)

        held = [asyncio.create_task(requests.send(wait)) for _ in range(4)]
        while requests.running < AT_ONCE:
            await asyncio.sleep(0)
        await requests.send(requests.in_thread)
        assert requests.answered == 1
        stuck.set()
        await asyncio.gather(*held)

    asyncio.run(main())


def test_a_client_that_goes_away_in_the_queue_leaves_no_turn_behind() -> None:
    requests, ready = Requests(), threading.Event()

    async def main() -> None:
        async def wait() -> None:
            await asyncio.to_thread(ready.wait)

        held = [asyncio.create_task(requests.send(wait)) for _ in range(AT_ONCE)]
        while requests.running < AT_ONCE:
            await asyncio.sleep(0)
        gone = [asyncio.create_task(requests.send(requests.in_thread)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        ready.set()
        await asyncio.gather(*held)
        await asyncio.gather(*(requests.send(requests.in_thread) for _ in range(5)))

    asyncio.run(main())
    assert requests.answered == AT_ONCE + 5


def test_a_burst_of_changes_does_not_hold_up_those_who_read() -> None:
    requests, order = Requests(), []

    async def main() -> None:
        def view(kind: str) -> View:
            async def run() -> None:
                order.append(kind)
                await asyncio.sleep(0)

            return run

        changes = [requests.send(view("change"), method="DELETE") for _ in range(50)]
        reads = [requests.send(view("read")) for _ in range(5)]
        await asyncio.gather(*changes, *reads)

    asyncio.run(main())
    assert len(order) == 55
    assert "read" not in order[20:]
