"""Connections to /graphql that cost the machine as little as they may.

An HTTP client of the usual kind takes several milliseconds for a request, and the threads of two
hundred wait for each other: what they measure is themselves.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from urllib.parse import urlsplit


class Connection:
    """Sends one GraphQL request after the other."""

    def __init__(self, url: str, token: str) -> None:
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._head = (
            f"POST /graphql HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        )

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._writer.close()

    async def post(self, body: bytes) -> Any:
        """Return what is answered to the query in `body`."""
        await self._send(body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin1").lower()
        [length] = re.findall(r"\r\ncontent-length: (\d+)", head)
        return json.loads(await self._reader.readexactly(int(length)))

    async def follow(self, subscription: str, **variables: object) -> None:
        """Subscribe, and wait for the first answer; what follows is read and dropped."""
        body = {"query": subscription, "variables": variables}
        await self._send(json.dumps(body).encode(), "Accept: text/event-stream\r\n")
        await self._reader.readuntil(b"data:")
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while await self._reader.read(1 << 16):
            pass

    async def _send(self, body: bytes, more: str = "") -> None:
        head = f"{self._head}{more}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()
