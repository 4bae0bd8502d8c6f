"""HTTP client of the server: GraphQL, its subscriptions, and REST downloads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from condastore import __version__
from condastore.cli import config, queries
from condastore.cli._private import skip_command_line_of_httpx
from condastore.cli.errors import CommandError, Status, operation_error, status_of

if TYPE_CHECKING:
    import httpx

#: Of a connection to the server, in seconds.
CONNECT_TIMEOUT, READ_TIMEOUT, IMPATIENT_TIMEOUT = 5.0, 90.0, 1.0
#: The server says something on a subscription each 15 s; silence of this length is a cut.
STREAM_TIMEOUT = 25.0
#: How often a request is sent again to a server that is busy, and the longest pause before that.
BUSY_ATTEMPTS, LONGEST_PAUSE = 3, 15.0
PAGE = 100
Json = dict[str, Any]


class UnreachableError(CommandError):
    """No answer from the server, or one that is not of condastore."""

    def __init__(self, message: str, *, url: str) -> None:
        hint = f"Is {url} right, and is the server running? Another one: `condastore login URL`."
        if config.is_local(url):
            hint = "Start one with `condastore up`, or sign in to another: `condastore login URL`."
        super().__init__(message, status=Status.UNREACHABLE, code="unreachable", hint=hint)


class Nodes(list[Json]):
    """Nodes of a connection; `total` counts those beyond the limit too."""

    total: int = 0


class StreamCutError(Exception):
    """A subscription ended before its end."""


def _httpx() -> ModuleType:
    """httpx, imported when it is first needed: it takes longer than all the rest."""
    skip_command_line_of_httpx()
    import httpx

    return httpx


class Api:
    """One server, as one person."""

    def __init__(self, server: config.Server, *, impatient: bool = False) -> None:
        """`impatient`: for shell completion, which gives up at the first delay."""
        self.server, self._impatient = server, impatient

    @cached_property
    def _http(self) -> httpx.Client:
        library = _httpx()
        headers = {"User-Agent": f"condastore/{__version__}"}
        if self.server.token:
            headers["Authorization"] = f"Bearer {self.server.token}"
        client: httpx.Client = library.Client(
            base_url=self.server.url,
            headers=headers,
            timeout=library.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
            if not self._impatient
            else library.Timeout(IMPATIENT_TIMEOUT),
            # Redirects are not followed, so plain http stays plain; reading the certificates
            # would take longer than the request.
            verify=not self.server.url.startswith("http:"),
        )
        return client

    @contextmanager
    def _translated(self) -> Iterator[None]:
        httpx = _httpx()
        try:
            yield
        except httpx.ConnectError as error:
            message = f"{self.server.url} cannot be reached: {_reason(error)}."
            raise UnreachableError(message, url=self.server.url) from error
        except httpx.TimeoutException as error:
            raise UnreachableError(
                f"{self.server.url} does not answer in time.", url=self.server.url
            ) from error
        except httpx.TransportError as error:
            message = f"The connection to {self.server.url} broke: {_reason(error)}."
            raise UnreachableError(message, url=self.server.url) from error

    def _repeat(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """For what may be asked twice: try again where the connection, not the server, said no."""
        httpx = _httpx()
        if self._impatient:
            return send()
        for pause in (0.1, 0.4):
            try:
                return self._until_available(send)
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                time.sleep(pause)
        return self._until_available(send)

    def _until_available(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send again where a busy server says when (503 with Retry-After)."""
        for _ in range(BUSY_ATTEMPTS):
            response = send()
            after = response.headers.get("Retry-After", "")
            if response.status_code != 503 or not after.isdecimal():
                return response
            time.sleep(min(float(after), LONGEST_PAUSE))
        return send()

    # --- GraphQL -----------------------------------------------------------------------------

    def ask(self, document: str, /, **variables: Any) -> Json:
        """The data of a query."""
        return self._graphql(document, variables, repeat=True)

    def change(self, document: str, /, *, repeat: bool = False, **variables: Any) -> Json:
        """What a mutation made. `repeat`: sending it twice is harmless.

        Raises:
            CommandError: the server answered with an OperationError.
        """
        data = self._graphql(document, variables, repeat=repeat)
        payload: Json = next(iter(data.values()))
        if payload.pop("__typename") == "OperationError":
            if payload["code"] == "not-found" and not self.server.token:
                raise not_signed_in(self.server.url)
            raise operation_error(payload)
        return payload

    def every(self, document: str, *way: str, limit: int = 0, **variables: Any) -> Nodes:
        """Return the nodes of a connection, from all of its pages.

        Args:
            way: the fields that lead to the connection.
            limit: maximum number of nodes; 0 for all.
        Raises:
            CommandError: nobody is signed in, and nothing is public.
        """
        nodes = Nodes()
        after: str | None = None
        while True:
            wanted = min(PAGE, limit - len(nodes)) if limit else PAGE
            found: Any = self.ask(document, first=wanted, after=after, **variables)
            for field in way:
                found = found[field]
                if found is None:
                    return nodes
            if not found["edges"] and not nodes and not self.server.token:
                raise not_signed_in(self.server.url)
            nodes += [edge["node"] for edge in found["edges"]]
            nodes.total = found.get("totalCount") or len(nodes)
            after = found["pageInfo"]["endCursor"]
            if not found["pageInfo"]["hasNextPage"] or (limit and len(nodes) >= limit):
                return nodes

    def _graphql(self, document: str, variables: Mapping[str, Any], *, repeat: bool) -> Json:
        body = {"query": document, "variables": variables}

        def send() -> httpx.Response:
            return self._http.post("/graphql", json=body)

        with self._translated():
            response = self._repeat(send) if repeat else send()
        answer = self._json(response)
        if errors := answer.get("errors"):
            error = graphql_error(errors)
            if error.code == "not-found" and not self.server.token:
                raise not_signed_in(self.server.url)
            raise error
        self._require_ours("data" in answer, response)
        data: Json = answer["data"]
        return data

    def subscribe(self, document: str, **variables: Any) -> Iterator[Json]:
        """The data of each event, until the subscription completes.

        Raises:
            StreamCutError: it ended otherwise, or the server does not stream.
        """
        httpx = _httpx()
        body = {"query": document, "variables": variables}
        headers = {"Accept": "text/event-stream"}
        timeout = httpx.Timeout(STREAM_TIMEOUT, connect=CONNECT_TIMEOUT)
        request = self._http.build_request(
            "POST", "/graphql", json=body, headers=headers, timeout=timeout
        )
        try:
            response = self._http.send(request, stream=True)
            try:
                kind = response.headers.get("Content-Type", "")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    raise StreamCutError(f"no stream: {response.status_code} {kind}")
                yield from _events(response.iter_lines())
            finally:
                response.close()
        except httpx.TransportError as error:
            raise StreamCutError(_reason(error)) from error

    # --- REST --------------------------------------------------------------------------------

    def download(self, path: str, **parameters: str) -> bytes:
        """A file of `/api`."""
        with self._translated():
            response = self._repeat(lambda: self._http.get(path, params=parameters))
        if response.is_error:
            self._json(response)
        self._require_ours(response.status_code == 200, response)
        return response.content

    def stream(self, path: str, **parameters: str) -> Iterator[bytes]:
        """A file of `/api`, a part at a time: it may be large."""
        with (
            self._translated(),
            self._http.stream("GET", path, params=parameters) as response,
        ):
            if response.is_error:
                response.read()
                self._json(response)
            self._require_ours(response.status_code == 200, response)
            yield from response.iter_bytes()

    def awaited(self, path: str, **parameters: str) -> Json | None:
        """How far the making of a file is; None where it is there."""
        headers = {"Prefer": "respond-async", "Range": "bytes=0-0"}
        with (
            self._translated(),
            self._http.stream("GET", path, params=parameters, headers=headers) as response,
        ):
            if response.is_error or response.status_code == 202:
                response.read()
                return self._json(response)
            return None

    def etag(self, path: str, **parameters: str) -> str:
        """What names the bytes of a file of `/api`, as the server itself says it."""
        with self._translated():
            response = self._repeat(lambda: self._http.head(path, params=parameters))
        return str(response.headers.get("ETag", "")) if response.is_success else ""

    @contextmanager
    def reading(
        self, path: str, *, headers: Mapping[str, str], **parameters: str
    ) -> Iterator[tuple[str, httpx.Response]]:
        """The ETag of a file of `/api`, and an answer whose body is still to be read.

        Where the server sends on to the store that has the file, that one's answer.
        """
        httpx = _httpx()
        with (
            self._translated(),
            self._http.stream("GET", path, params=parameters, headers=headers) as response,
        ):
            etag = response.headers.get("ETag", "")
            if response.status_code == 307:
                location = str(response.url.join(response.headers["Location"]))
                response.read()
                # No token goes there: the address itself is the permission.
                with httpx.stream(
                    "GET",
                    location,
                    headers={name: v for name, v in headers.items() if name != "If-Range"},
                    timeout=httpx.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
                ) as stored:
                    self._require_ours(stored.status_code in {200, 206, 416}, stored)
                    yield etag, stored
                return
            if response.is_error and response.status_code != 416:
                response.read()
                self._json(response)
            self._require_ours(response.status_code in {200, 206, 416}, response)
            yield etag, response

    def upload(self, path: str, content: Iterator[bytes], *, size: int, sha256: str) -> Json:
        """Send a file of `size` bytes, part by part, and what the server says of it."""
        headers = {
            "Content-Length": str(size),
            "Content-Type": "application/octet-stream",
            "X-Checksum-Sha256": sha256,
        }
        with self._translated():
            response = self._http.put(path, content=content, headers=headers)
        answer = self._json(response)
        self._require_ours("sha256" in answer, response)
        return answer

    def note_use(self, build: str) -> None:
        """Tell that somebody works with `NAMESPACE/ENV:NUMBER`."""
        name, _, number = build.rpartition(":")
        self._http.post(f"/api/envs/{name}/{number}/use", timeout=CONNECT_TIMEOUT)

    def sign_in(self, username: str, password: str, name: str) -> str:
        """A new token, for a password."""
        body = {"username": username, "password": password, "name": name}
        with self._translated():
            response = self._http.post("/api/token", json=body)
        answer = self._json(response)
        self._require_ours("token" in answer, response)
        return str(answer["token"])

    def prefers_browser(self) -> bool:
        """Return whether the server prefers sign-in with the browser; False if it does not say."""
        with self._translated():
            response = self._repeat(lambda: self._http.get("/api/sign-in"))
        try:
            return bool(response.is_success and response.json()["preferred"] == "browser")
        except (ValueError, KeyError, TypeError):
            return False

    def start_device(self, name: str) -> Json:
        """A sign-in that a person approves in the browser: its codes, and where to go."""
        with self._translated():
            response = self._http.post("/api/device", json={"name": name})
        answer = self._json(response)
        self._require_ours("device_code" in answer, response)
        return answer

    def collect_device(self, started: Json) -> str:
        """Wait for the approval; the new token.

        Raises:
            CommandError: it was denied, or nobody approved in time.
        """
        pause = float(started.get("interval", 5))
        until = time.monotonic() + float(started.get("expires_in", 600))
        while time.monotonic() < until:
            time.sleep(pause)
            with self._translated():
                response = self._repeat(
                    lambda: self._http.post(
                        "/api/device/token", json={"device_code": started["device_code"]}
                    )
                )
            if response.status_code != 400:
                answer = self._json(response)
                self._require_ours("token" in answer, response)
                return str(answer["token"])
            why = response.json().get("error")
            if why == "slow_down":
                pause += 5
            elif why == "access_denied":
                raise CommandError(
                    "The sign-in was denied in the browser.",
                    status=Status.REFUSED,
                    code="access-denied",
                )
            elif why != "authorization_pending":
                break
        raise CommandError(
            "Nobody approved the sign-in in time.",
            status=Status.REFUSED,
            code="not-signed-in",
            hint="Try again: `condastore login`.",
        )

    def _json(self, response: httpx.Response) -> Json:
        """The body of an answer; CommandError for a problem+json."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._not_ours(response)
        if "data" in body or "errors" in body or response.is_success:
            return body
        code = str(body.get("code") or _CODES.get(response.status_code, "error"))
        if code == "not-found" and not self.server.token and _needs_role(response):
            raise not_signed_in(self.server.url)
        message = body.get("detail") or body.get("title")
        raise operation_error(
            body | {"code": code, "message": message or f"HTTP status {response.status_code}."}
        )

    def _require_ours(self, ours: bool, response: httpx.Response) -> None:
        if not ours:
            raise self._not_ours(response)

    def _not_ours(self, response: httpx.Response) -> CommandError:
        """For an answer that is not one of condastore's."""
        status, url = response.status_code, self.server.url
        if status in {502, 503, 504}:
            text = f"{url} is not ready: HTTP status {status}."
        elif response.is_redirect:
            text = f"{url} points to {response.headers.get('Location', 'elsewhere')}."
        elif status in _CODES:
            code = _CODES[status]
            return CommandError(
                f"{url} answered {status} {response.reason_phrase}.",
                status=status_of(code),
                code=code,
            )
        else:
            text = f"{url} does not answer like a condastore server."
        return UnreachableError(text, url=url)

    # --- who -----------------------------------------------------------------------------------

    @cached_property
    def username(self) -> str:
        """Whose token this is.

        Raises:
            CommandError: nobody is signed in.
        """
        if self.server.username:
            return self.server.username
        me = self.ask(queries.USERNAME)["me"]
        if me is None:
            raise not_signed_in(self.server.url)
        return str(me["username"])


def connect(*, impatient: bool = False) -> Api:
    """Return the server of the environment's variables, or of the last sign-in."""
    return Api(config.current(), impatient=impatient)


def not_signed_in(url: str) -> CommandError:
    return CommandError(
        f"You are not signed in to {url}.",
        status=Status.REFUSED,
        code="not-signed-in",
        hint=f"Sign in: `condastore login {url}`, or set {config.TOKEN_VARIABLE}.",
    )


def _needs_role(response: httpx.Response) -> bool:
    """Return True for a file of an environment or a hosted channel."""
    return str(response.request.url.path).startswith(("/api/envs/", "/channel/"))


_CODES = {400: "bad-request", 401: "not-signed-in", 403: "access-denied", 404: "not-found"}


def graphql_error(errors: list[Json]) -> CommandError:
    """From the `errors` of an answer, which are for mistakes that no payload has a place for."""
    first = errors[0]
    extensions = first.get("extensions") or {}
    code = str(extensions.get("code") or "error")
    error = operation_error({**extensions, "code": code, "message": first.get("message")})
    if error.code == "error" and "Cannot query field" in error.message:
        error.hint = f"The server has another version than this client ({__version__})."
    if len(errors) > 1 and os.environ.get("CONDASTORE_DEBUG"):
        error.details = errors
    return error


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


def _events(lines: Iterator[str]) -> Iterator[Json]:
    """Server-sent events, as the protocol graphql-sse uses them: `next`s, then `complete`."""
    event, data = "", ""
    for line in lines:
        if line:
            field, _, value = line.partition(":")
            if field == "event":
                event = value.strip()
            elif field == "data":
                data += value.removeprefix(" ")
            continue
        if event == "complete":
            return
        if event == "next":
            answer = json.loads(data)
            if answer.get("errors"):
                raise graphql_error(answer["errors"])
            yield answer["data"]
        event, data = "", ""
    raise StreamCutError("it ended without `complete`")
