"""The ASGI handler of Django, with one visit to the request's thread where Django makes five.

Django's own handler goes to the thread and back for the signal that a request has started, for the
middleware, for each synchronous view within it, and to close the answer. Each visit costs about as
much as a statement of the database, and more the more threads want the interpreter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.signals import request_finished, request_started
from django.http import FileResponse
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix

from condastore._private import set_sender

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Handler(ASGIHandler):
    """Runs middleware and views as one synchronous chain; asynchronous views on the event loop."""

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def handle(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        try:
            set_script_prefix(get_script_prefix(scope))
            exchange = _Exchange(self, scope, body)
            answering = asyncio.create_task(self._answer(exchange, send))
            leaving = asyncio.create_task(self.listen_for_disconnect(receive))
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:  # the request's own task may have been cancelled, too
                try:
                    for task in (leaving, answering):
                        if not task.done():
                            task.cancel()
                        with suppress(RequestAborted, asyncio.CancelledError):
                            await task
                finally:
                    if not exchange.closed:
                        await sync_to_async(exchange.close)()
        finally:
            body.close()

    async def _answer(self, exchange: _Exchange, send: Send) -> None:
        response = await sync_to_async(exchange.respond)()
        await self.send_response(response, send)


class _Exchange:
    """One request and its answer. Its methods run in the request's thread."""

    def __init__(self, handler: Handler, scope: MutableMapping[str, Any], body: Any) -> None:
        self._handler, self._scope, self._body = handler, scope, body
        self._response: HttpResponseBase | None = None
        self.closed = False

    def respond(self) -> HttpResponseBase:
        """Answer the request. A response in memory is closed at once and can still be sent."""
        handler = self._handler
        request_started.send(sender=type(handler), scope=self._scope)
        request, refusal = handler.create_request(self._scope, self._body)
        response: Any = refusal if request is None else handler.get_response(request)
        set_sender(response, type(handler))
        if isinstance(response, FileResponse):
            response.block_size = handler.chunk_size
        self._response = response
        if not response.streaming:
            self.close()
        answer: HttpResponseBase = response
        return answer

    def close(self) -> None:
        self.closed = True
        if self._response is not None:
            self._response.close()
        else:  # nobody is there any more who could be answered
            request_finished.send(sender=type(self._handler))
