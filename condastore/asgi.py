"""The ASGI application: HTTP goes to Django, WebSockets on /graphql to the GraphQL schema."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")

import django

django.setup(set_prefix=False)  # first: what follows needs the apps

from django.conf import settings  # noqa: E402
from django.http.request import split_domain_port, validate_host  # noqa: E402

from condastore.cli.errors import CommandError  # noqa: E402
from condastore.http import request_turns  # noqa: E402
from condastore.http.file_responses import PART, FileHandler  # noqa: E402
from condastore.http.request_threads import KeptThread, keep_connections  # noqa: E402
from condastore.private_files import PRIVATE_UMASK  # noqa: E402
from condastore.schema import schema  # noqa: E402
from condastore.supervisor.startup import prepare_folder  # noqa: E402
from environments.graphql.views import make_socket  # noqa: E402
from environments.rest import upload_streaming  # noqa: E402

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
#: What watches the process must hear of it however many requests are waiting.
NEVER_QUEUED = frozenset({"/healthz", "/readyz", "/metrics"})
graphql_socket = make_socket(schema)
keep_connections()
django_application = FileHandler()
django_application.chunk_size = PART  # bytes that are sent at once: a quarter of the calls


async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        async with KeptThread() as thread:
            respond: Any = partial(django_application, scope)  # type: ignore[arg-type]
            if scope["path"] in NEVER_QUEUED:
                thread.begin()
                await respond(receive, send)
            else:
                receive = upload_streaming.body_for(scope, receive)
                method = scope["method"]
                await request_turns.admit(
                    respond, receive, send, method=method, admitted=thread.begin
                )
    elif scope["type"] == "websocket":
        if scope["path"].rstrip("/") == "/graphql" and _host_allowed(scope):
            await graphql_socket(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})
    elif scope["type"] == "lifespan":
        await _lifespan(receive, send)


def _host_allowed(scope: MutableMapping[str, Any]) -> bool:
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode(
        "latin1"
    )
    domain, _ = split_domain_port(host)
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            os.umask(PRIVATE_UMASK)
            try:
                prepare_folder(settings.DATA)
            except CommandError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
