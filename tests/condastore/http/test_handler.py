"""The ASGI handler: one visit to the request's thread, and each answer is closed once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

from condastore.http.handler import Handler

seen: list[str] = []


@sync_and_async_middleware
def noting(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        seen.append(f"middleware {threading.get_ident()}")
        return get_response(request)

    return middleware


def plain(request: HttpRequest) -> HttpResponse:
    seen.append(f"view {threading.get_ident()}")
    return HttpResponse(request.body.upper())


async def waits(request: HttpRequest) -> HttpResponse:
    seen.append(f"view {threading.get_ident()}")
    await asyncio.sleep(0)
    return HttpResponse(b"waited")


async def forever(request: HttpRequest) -> HttpResponse:
    try:
        seen.append("waiting")
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    return HttpResponse()


async def streams(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        try:
            for _ in range(1_000_000):
                yield b"part"
                await asyncio.sleep(0)
        finally:
            seen.append("stream closed")

    return StreamingHttpResponse(parts())


def breaks(request: HttpRequest) -> HttpResponse:
    raise OSError("broken")


urlpatterns = [
    path("plain", plain),
    path("waits", waits),
    path("forever", forever),
    path("streams", streams),
    path("breaks", breaks),
]


@pytest.fixture
def handler(settings: Any) -> Iterator[Handler]:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [f"{__name__}.noting"]
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False

    def started(**_: Any) -> None:
        seen.append("started")

    def finished(**_: Any) -> None:
        seen.append("finished")

    seen.clear()
    request_started.connect(started)
    request_finished.connect(finished)
    yield Handler()
    request_started.disconnect(started)
    request_finished.disconnect(finished)


def send(
    handler: Handler, address: str, body: bytes = b"", *, leave_after: int | None = None
) -> list[dict[str, Any]]:
    """The messages of the answer. `leave_after`: the client goes after so many of them."""

    async def exchange() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        gone = asyncio.Event()
        bodies = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            if leave_after == 0:
                await asyncio.sleep(0.2)  # the view is running by then
            else:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def answered(message: Any) -> None:
            sent.append(dict(message))
            if leave_after is not None and len(sent) >= leave_after:
                gone.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": address,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        async with ThreadSensitiveContext():
            await asyncio.wait_for(handler(scope, receive, answered), 60)
        return sent

    return asyncio.run(exchange())


def test_a_synchronous_view_runs_in_the_thread_of_its_middleware(handler: Handler) -> None:
    start, body = send(handler, "/plain", b"text")
    assert start["status"] == 200
    assert body["body"] == b"TEXT"
    started, middleware, view, finished = seen
    assert (started, finished) == ("started", "finished")
    assert middleware.split()[1] == view.split()[1] != str(threading.get_ident())


def test_an_asynchronous_view_runs_on_the_event_loop(handler: Handler) -> None:
    start, body = send(handler, "/waits")
    assert (start["status"], body["body"]) == (200, b"waited")
    assert seen[2] == f"view {threading.get_ident()}"
    assert seen[3:] == ["finished"]


def test_a_stream_is_finished_after_its_last_part(handler: Handler) -> None:
    sent = send(handler, "/streams", leave_after=5)
    assert [one["body"] for one in sent[1:3]] == [b"part", b"part"]
    assert seen[2:] == ["stream closed", "finished"]


def test_an_asynchronous_view_is_cancelled_when_its_client_leaves(handler: Handler) -> None:
    assert send(handler, "/forever", leave_after=0) == []
    assert seen[2:] == ["waiting", "cancelled", "finished"]


def test_an_asynchronous_view_is_cancelled_with_its_request(handler: Handler) -> None:
    async def exchange() -> list[str]:
        async def receive() -> dict[str, Any]:
            if "asked" in seen:
                await asyncio.sleep(600)
            seen.append("asked")
            return {"type": "http.request", "body": b"", "more_body": False}

        async def answered(message: Any) -> None:
            raise AssertionError("nothing is answered")

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/forever",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        async with ThreadSensitiveContext():
            requested = asyncio.create_task(handler(scope, receive, answered))
            while "waiting" not in seen:
                await asyncio.sleep(0.01)
            requested.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(requested, 60)
            return seen[-2:]  # before the loop ends, which cancels whatever still runs

    assert asyncio.run(exchange()) == ["cancelled", "finished"]


def test_a_view_that_breaks_is_answered_and_finished_too(handler: Handler) -> None:
    start, _ = send(handler, "/breaks")
    assert start["status"] == 500
    assert seen[2:] == ["finished"]


def test_an_address_that_leads_nowhere_is_answered_and_finished(handler: Handler) -> None:
    start, _ = send(handler, "/elsewhere")
    assert start["status"] == 404
    assert seen[2:] == ["finished"]
