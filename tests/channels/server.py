"""Serve folders over HTTP, to this machine only, well or with faults.

::

    with serving(channel) as server:
        server.faults.add(Fault("linux-64/*.conda", cut_after=1000, times=1))
        ...  # server.url
        assert server.requests.count("linux-64/large-data-*") == 2

Without faults, a file has an ETag and a Last-Modified date, answers 304 to clients that have it,
and supports ranges (Range, If-Range). A folder with an ``index.html`` is a page; one that has an
``index.v1.json``, too, serves that to clients of the Python package index's JSON.
"""

from __future__ import annotations

import base64
import email.utils
import hmac
import mimetypes
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

LOOPBACK = "127.0.0.1"
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with the requests for some paths.

    `pattern` is compared as in a shell with the path without its leading slash, where `*` takes
    in slashes too. Several faults may hold for a path: the oldest that is not used up counts.
    """

    pattern: str
    #: How many requests it spoils; all of them if None.
    times: int | None = None
    #: Answer with this status and no file.
    status: int | None = None
    #: Seconds, said to the client in a Retry-After header beside `status`.
    retry_after: int | None = None
    #: Where a `status` of 301 to 308 sends the client.
    location: str = ""
    #: Close the connection after that many bytes of the body, though more were promised.
    cut_after: int | None = None
    #: Change one byte in the middle of the file.
    wrong_bytes: bool = False
    #: Wait for this many seconds, after `hang_after` bytes of the body.
    hang: float = 0
    #: Bytes; if 0, the waiting is done before the answer begins.
    hang_after: int = 0
    #: Send no faster than this.
    bytes_per_second: int | None = None


_NO_FAULT = Fault("")


class Faults:
    """The faults of a server; they may be changed while it serves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, list[int]]] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append((fault, [0]))

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, path: str) -> Fault:
        """The fault of one request for `path`, which is thereby used once more."""
        with self._lock:
            for fault, used in self._faults:
                if (fault.times is None or used[0] < fault.times) and (
                    fnmatchcase(path, fault.pattern)
                ):
                    used[0] += 1
                    return fault
        return _NO_FAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, and the status that it was answered with."""

    method: str
    path: str  # without the leading slash and a token
    status: int
    headers: Mapping[str, str]  # names in lower case

    @property
    def range(self) -> str:
        """What part was asked for (`bytes=1000-`); empty for the whole."""
        return self.headers.get("range", "")


class Requests:
    """The requests that a server has answered, or is answering, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    def add(self, request: Request) -> None:
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def matching(self, pattern: str = "*", *, status: int | None = None) -> list[Request]:
        """Those whose path matches `pattern` as that of a fault does."""
        with self._lock:
            return [
                request
                for request in self._requests
                if fnmatchcase(request.path, pattern) and status in (None, request.status)
            ]

    def count(self, pattern: str = "*", *, status: int | None = None) -> int:
        return len(self.matching(pattern, status=status))

    def __iter__(self) -> Iterator[Request]:
        return iter(self.matching())

    def __len__(self) -> int:
        return self.count()


class ChannelServer(ThreadingHTTPServer):
    """A server of a folder, or of several, each below a name of its own.

    The server of the standard library keeps five connections waiting. A client of sharded repodata
    opens a hundred at once; those that are turned away try again after a second.
    """

    request_queue_size = 512

    def __init__(
        self,
        folders: Path | Mapping[str, Path],
        *,
        port: int = 0,
        basic: tuple[str, str] | None = None,
        token: str = "",
        bearer: str = "",
    ) -> None:
        self.folders = {"": folders} if isinstance(folders, Path) else dict(folders)
        self.basic, self.token, self.bearer = basic, token, bearer
        self.faults = Faults()
        self.requests = Requests()
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        super().__init__((LOOPBACK, port), _Handler)

    @property
    def url(self) -> str:
        """The root, with a slash at its end and without credentials."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def url_with_credentials(self) -> str:
        """The root, with the user and password or the token in it."""
        user = ":".join(urllib.parse.quote(part, safe="") for part in self.basic or ())
        host = f"{user}@{LOOPBACK}" if user else LOOPBACK
        token = f"t/{self.token}/" if self.token else ""
        return f"http://{host}:{self.server_port}/{token}"

    def find(self, path: str) -> Path | None:
        """The file or folder at a path; None where there is none, or it is not ours to give."""
        if any(part in ("..", "") for part in path.rstrip("/").split("/")) and path:
            return None
        first, _, rest = path.partition("/")
        for name, below in ((first, rest), ("", path)):
            if name in self.folders and (found := self.folders[name] / below).exists():
                return found
        return None

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client may go away at any time; that is none of the server's errors."""

    def server_close(self) -> None:
        """Break off what is going on, so that no thread or socket is left."""
        self.stopping.set()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        super().server_close()


@contextmanager
def serving(
    folders: Path | Mapping[str, Path],
    *,
    port: int = 0,
    basic: tuple[str, str] | None = None,
    token: str = "",
    bearer: str = "",
) -> Iterator[ChannelServer]:
    """Serve in a thread.

    Args:
        folders: one at the root, or several, each below its name.
        port: a free one if 0.
        basic: user and password that every request must carry.
        token: every path must be below `/t/<token>/`.
        bearer: every request must carry `Authorization: Bearer <bearer>`.
    """
    with ChannelServer(folders, port=port, basic=basic, token=token, bearer=bearer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    """A file, or the part of it from `start` up to, not including, `end`; in bytes."""

    path: Path
    start: int
    end: int
    size: int


class _Handler(BaseHTTPRequestHandler):
    # Connections are kept open between requests.
    protocol_version = "HTTP/1.1"
    # The head and the body are two writes, which must not wait for each other.
    disable_nagle_algorithm = True
    server: ChannelServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the parent's name
        """Say nothing: a solve makes hundreds of requests."""

    def _answer(self, *, with_body: bool) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        refused, path = self._refused(path)
        self.shown_path = path
        if refused:
            self._say(refused)
            return
        fault = self.server.faults.take(path)
        if fault.hang and not fault.hang_after:
            self.server.stopping.wait(fault.hang)
        if fault.status:
            self._say(HTTPStatus(fault.status), **_fault_headers(fault))
            return
        found = self.server.find(path)
        if found and found.is_dir():
            if path and not path.endswith("/"):
                self._say(HTTPStatus.MOVED_PERMANENTLY, Location=self.path + "/")
                return
            found = self._page(found)
        if found is None or not found.is_file():
            self._say(HTTPStatus.NOT_FOUND)
            return
        self._give(found, fault, with_body=with_body)

    def _refused(self, path: str) -> tuple[HTTPStatus | None, str]:
        """The status that turns a request away, if any, and its path without the token."""
        if self.server.token:
            start, _, rest = path.partition("/")
            if start != "t":
                return HTTPStatus.UNAUTHORIZED, path
            token, _, path = rest.partition("/")
            if not hmac.compare_digest(token.encode(), self.server.token.encode()):
                return HTTPStatus.FORBIDDEN, path
        requested = []
        if self.server.basic:
            pair = base64.b64encode(":".join(self.server.basic).encode()).decode()
            requested.append(f"Basic {pair}")
        if self.server.bearer:
            requested.append(f"Bearer {self.server.bearer}")
        if requested and self.headers.get("Authorization", "") not in requested:
            return HTTPStatus.UNAUTHORIZED, path
        return None, path

    def _page(self, folder: Path) -> Path | None:
        for name, requested in (("index.v1.json", SIMPLE_JSON), ("index.html", "")):
            if requested in self.headers.get("Accept", "") and (folder / name).is_file():
                return folder / name
        return None

    def _give(self, path: Path, fault: Fault, *, with_body: bool) -> None:
        status = path.stat()
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        headers = {
            "ETag": etag,
            "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
            "Vary": "Accept",
        }
        if self._has_it(etag, status.st_mtime):
            self._head(HTTPStatus.NOT_MODIFIED, headers)
            return
        part = self._part(etag, headers["Last-Modified"], status.st_size)
        if part is None:
            self._say(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                **{"Content-Range": f"bytes */{status.st_size}"},
            )
            return
        start, end = part
        headers["Content-Type"] = _content_type(path)
        headers["Content-Length"] = str(end - start)
        answer = HTTPStatus.OK
        if (start, end) != (0, status.st_size) or self._asks_for_part(etag, headers):
            answer = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{status.st_size}"
        self._head(answer, headers)
        if with_body:
            self._send(_Body(path=path, start=start, end=end, size=status.st_size), fault)

    def _has_it(self, etag: str, modified: float) -> bool:
        if known := self.headers.get("If-None-Match"):
            tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
            return bool(tags & {etag, "*"})
        since = email.utils.parsedate_tz(self.headers.get("If-Modified-Since", ""))
        return since is not None and int(modified) <= email.utils.mktime_tz(since)

    def _asks_for_part(self, etag: str, headers: Mapping[str, str]) -> bool:
        condition = self.headers.get("If-Range")
        if condition not in (None, etag, headers.get("Last-Modified")):
            return False
        return bool(_RANGE.fullmatch(self.headers.get("Range", "")))

    def _part(self, etag: str, modified: str, size: int) -> tuple[int, int] | None:
        """First byte and the one after the last; None where what is asked for is not there."""
        if not self._asks_for_part(etag, {"Last-Modified": modified}):
            return 0, size
        first, last = _RANGE.fullmatch(self.headers["Range"]).groups()  # type: ignore[union-attr]
        if first == "":
            start, end = max(0, size - int(last or 0)), size
        else:
            start, end = int(first), min(size, int(last) + 1 if last else size)
        return (start, end) if start < end else None

    def _send(self, body: _Body, fault: Fault) -> None:
        end = body.end
        if fault.cut_after is not None:
            end = min(end, body.start + fault.cut_after)
        pause_at = body.start + fault.hang_after if fault.hang and fault.hang_after else None
        started = time.monotonic()
        with body.path.open("rb") as stream:
            stream.seek(body.start)
            for position, content in _chunks(stream, body.start, end, pause_at, fault):
                if position == pause_at:
                    self.server.stopping.wait(fault.hang)
                if self.server.stopping.is_set():
                    break
                self.wfile.write(_spoiled(content, position, body.size, fault))
                if fault.bytes_per_second:
                    due = (position + len(content) - body.start) / fault.bytes_per_second
                    self.server.stopping.wait(max(0, due - (time.monotonic() - started)))
        if end < body.end:
            self.close_connection = True

    def _say(self, status: HTTPStatus, **headers: str) -> None:
        """An answer that is not a file."""
        text = f"{status.value} {status.phrase}\n".encode()
        if status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Basic realm="channel"'
        self._head(
            status, {"Content-Type": "text/plain", "Content-Length": str(len(text)), **headers}
        )
        if self.command != "HEAD":
            self.wfile.write(text)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        request = Request(
            method=self.command,
            path=self.shown_path,
            status=status.value,
            headers={name.lower(): value for name, value in self.headers.items()},
        )
        self.server.requests.add(request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


_RANGE = re.compile(r"bytes=(?=\d|-\d)(\d*)-(\d*)")


def _chunks(
    stream: BinaryIO, start: int, end: int, pause_at: int | None, fault: Fault
) -> Iterator[tuple[int, bytes]]:
    """(position, content) of the pieces; a new one begins where the server has to wait."""
    size = _CHUNK
    if fault.bytes_per_second:
        size = max(1, min(size, fault.bytes_per_second // 20))
    while start < end:
        requested = min(size, end - start)
        if pause_at is not None and start < pause_at < start + requested:
            requested = pause_at - start
        content = stream.read(requested)
        if not content:
            return
        yield start, content
        start += len(content)


def _spoiled(content: bytes, position: int, size: int, fault: Fault) -> bytes:
    middle = size // 2 - position
    if not fault.wrong_bytes or not 0 <= middle < len(content):
        return content
    changed = bytearray(content)
    changed[middle] ^= 0xFF
    return bytes(changed)


def _fault_headers(fault: Fault) -> dict[str, str]:
    headers = {}
    if fault.retry_after is not None:
        headers["Retry-After"] = str(fault.retry_after)
    if fault.location:
        headers["Location"] = fault.location
    return headers


def _content_type(path: Path) -> str:
    if path.name == "index.v1.json":
        return SIMPLE_JSON
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"
