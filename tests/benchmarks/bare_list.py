"""The least that a list costs on the same server: the values of its rows, read by the ORM, as JSON.

`python -m tests.benchmarks.bare_list DESCRIPTOR` serves it on an open socket, at any path.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import django
import orjson
import uvicorn
from asgiref.sync import sync_to_async

from condastore.web import COLLECT


def rows() -> bytes:
    from environments.models import Environment

    found = Environment.objects.filter(deleted_at=None).order_by("namespace__name", "name")
    values = found.values(
        *("id", "name", "updated_at", "namespace__name"),
        *("current__id", "current__number", "current__state", "current__finished_at"),
    )
    return orjson.dumps({"data": {"environments": list(values[:100])}})


async def application(scope: Any, receive: Any, send: Any) -> None:
    from condastore.http import request_turns
    from condastore.http.request_threads import KeptThread

    async def respond(receive: Any, send: Any) -> None:
        await receive()
        body = await sync_to_async(rows)()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async with KeptThread() as thread:
        await request_turns.admit(respond, receive, send, method="GET", admitted=thread.begin)


def main() -> None:
    import gc

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    django.setup()
    from condastore.http.request_threads import keep_connections

    keep_connections()
    gc.set_threshold(*COLLECT)
    config = uvicorn.Config(application, log_config=None, lifespan="off")
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
