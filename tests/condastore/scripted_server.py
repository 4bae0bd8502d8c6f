"""An HTTP server that answers each GraphQL operation as a test says: for answers that a healthy
server never gives (cut streams, strange pages, refusals), and to see what the client sends."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_OPERATION = re.compile(r"\b(?:query|mutation|subscription)\s+(\w+)")
Answer = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Of a subscription; `cut`: the connection breaks after them."""

    data: list[dict[str, Any]]
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer that is not GraphQL's."""

    status: int
    body: str
    kind: str = "text/html"
    retry_after: int | None = None


@dataclass(slots=True)
class Asked:
    operation: str
    variables: dict[str, Any]
    token: str


@dataclass(slots=True)
class ScriptedServer:
    url: str
    answers: Mapping[str, Answer]
    asked: list[Asked] = field(default_factory=list)

    def asked_for(self, operation: str) -> list[Asked]:
        return [one for one in self.asked if one.operation == operation]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        script: ScriptedServer = self.server.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/graphql":
            found = _OPERATION.search(body["query"])
            assert found is not None
            operation, variables = found[1], body["variables"]
        else:
            operation, variables = self.path, body
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        script.asked.append(Asked(operation, variables, token))
        answer = script.answers[operation](variables)
        match answer:
            case Events():
                self._stream(answer)
            case Page():
                self._send(answer.status, answer.body.encode(), answer.kind, answer.retry_after)
            case None:
                self.close_connection = True  # it breaks without an answer
            case _:
                self._send(200, json.dumps(answer).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str, retry_after: int | None = None) -> None:
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Events) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b": ping\r\n\r\n")
        for data in events.data:
            text = json.dumps({"data": data})
            self.wfile.write(f"event: next\r\ndata: {text}\r\n\r\n".encode())
        if not events.cut:
            self.wfile.write(b"event: complete\r\ndata: \r\n\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is named there
        pass


@contextmanager
def answering(answers: Mapping[str, Answer]) -> Iterator[ScriptedServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    script = ScriptedServer(f"http://127.0.0.1:{server.server_address[1]}", answers)
    server.script = script  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
