"""ASGI middleware that streams uploads to the view after authentication.

Django reads the whole body of a request before it calls a view. For uploads it receives an empty
body, and the view reads the parts itself as they arrive.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest

from condastore.errors import InvalidInputError
from condastore.http import request_turns

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
_UPLOAD = re.compile(r"(?:/t/[^/]+)?/channel/hosted/")
_KEY = "condastore.body"
_PART = 1 << 18


class CutOffError(InvalidInputError):
    """The client disconnected during its upload."""

    code = "cut-off"
    hint = "Upload it again: nothing was stored."


class _Body:
    """Splits the ASGI messages of a request: the body for the view, the rest for Django."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._asked = False
        self._ended = asyncio.Event()
        self._goodbye: Message | None = None

    async def for_django(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._ended.wait()
        return self._goodbye or await self._receive()

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body at the client's speed, without occupying a request slot."""
        async with request_turns.released():
            async for part in self._parts():
                yield part

    async def _parts(self) -> AsyncIterator[bytes]:
        while not self._ended.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._goodbye = message
                self._ended.set()
                raise CutOffError("The upload was interrupted.")
            if not message.get("more_body", False):
                self._ended.set()
            yield message.get("body", b"")


def body_for(scope: MutableMapping[str, Any], receive: Receive) -> Receive:
    """Return the `receive` for Django: for uploads it reports disconnects only."""
    if scope["method"] != "PUT" or not _UPLOAD.match(scope["path"]):
        return receive
    scope[_KEY] = body = _Body(receive)
    return body.for_django


async def parts_of(request: HttpRequest) -> AsyncIterator[bytes]:
    """Yield the body of `request` in parts.

    Raises:
        CutOffError: the client disconnected before the end.
    """
    body: _Body | None = getattr(request, "scope", {}).get(_KEY)
    if body is not None:
        async for part in body.parts():
            yield part
        return
    while part := await sync_to_async(request.read)(_PART):
        yield part
