"""Transports of GraphQL: HTTP with server-sent events, WebSockets, and the GraphiQL page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from json import JSONDecodeError
from types import SimpleNamespace
from typing import Any

import orjson
import structlog
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from cross_web import AsyncHTTPRequestAdapter, HTTPException
from django.conf import settings
from django.db import close_old_connections, connections
from django.http import HttpRequest, HttpResponse
from django.http.cookie import parse_cookie
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.django.views import AsyncGraphQLView, TemporalHttpResponse
from strawberry.exceptions import ConnectionRejectionError, MissingQueryError
from strawberry.http import GraphQLRequestData
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType
from strawberry.types.unset import UNSET, UnsetType

from accounts.access import ANONYMOUS, Actor
from accounts.authentication import (
    CHECK_INTERVAL,
    TokenInvalidError,
    actor_with_session,
    actor_with_token,
    address_of,
    renewed,
    secret_in,
)
from condastore.errors import (
    AccessDeniedError,
    InvalidInputError,
    LimitError,
    MethodNotAllowedError,
    NotSignedInError,
    StoreError,
    UnsupportedMediaTypeError,
)
from condastore.outages import RETRY_AFTER
from environments.domain.json_text import json_object
from environments.graphql.errors import refused_by_outage

logger = structlog.get_logger(__name__)
_BY_POST = frozenset({OperationType.QUERY, OperationType.MUTATION})


class ForgeryCheck(CsrfViewMiddleware):
    """Gives the reason instead of a page."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def forged(request: HttpRequest) -> str:
    """Why a request with a session may come from another site; "" where it cannot.

    Without a session there is nothing that a browser would send along by itself.
    """
    actor: Actor = request.actor  # type: ignore[attr-defined]
    if actor.token is not None or not actor.signed_in:
        return ""
    reason = ForgeryCheck(lambda _: HttpResponse()).process_view(request, _no_view, (), {})
    return str(reason or "")


def _no_view(request: HttpRequest) -> HttpResponse:
    raise AssertionError("only its attributes are looked at")


class NeedsLoopError(Exception):
    """The operation may wait, and so runs on the event loop."""


@method_decorator(csrf_exempt, name="dispatch")  # `forged` asks only those with a session
class GraphQLView(AsyncGraphQLView[Any, None]):
    """Runs an operation in one thread from end to end, unless it may wait for something else.

    Such are subscriptions and the few mutations whose resolvers are coroutines.
    """

    allow_queries_via_get = False
    #: Refuse what would have to wait with NeedsLoopError, before any of it has run.
    at_once = False

    async def dispatch(  # type: ignore[override]
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        if request.method == "POST" and (reason := forged(request)):
            raise AccessDeniedError(
                f"The request does not prove that it comes from this site's own pages: {reason}",
                hint=f"Send the cookie {settings.CSRF_COOKIE_NAME} and its value as X-CSRFToken; "
                "or use an API token, which needs neither.",
            )
        try:
            return await self.run(request=request)
        except HTTPException as error:
            raise _refused(error, request) from error

    async def execute_operation(  # type: ignore[override]
        self, *, request_data: GraphQLRequestData | list[GraphQLRequestData], **given: Any
    ) -> Any:
        if self.at_once and _may_wait(request_data, self.schema):
            raise NeedsLoopError
        return await super().execute_operation(request_data=request_data, **given)

    async def render_graphql_ide(self, request: HttpRequest) -> HttpResponse:
        return await sync_to_async(render)(request, "graphiql.html")

    async def execute_single(
        self,
        request: HttpRequest,
        request_adapter: AsyncHTTPRequestAdapter,
        sub_response: TemporalHttpResponse,
        context: Any,
        root_value: None,
        request_data: GraphQLRequestData,
    ) -> ExecutionResult:
        query = request_data.query or ""
        execute: Any
        if _may_wait(request_data, self.schema):
            execute = self.schema.execute
        elif self.at_once:
            execute = _now(self.schema.execute_sync)
        else:
            execute = sync_to_async(self.schema.execute_sync)
        try:
            result: ExecutionResult = await execute(
                query,
                variable_values=request_data.variables,
                context_value=context,
                operation_name=request_data.operation_name,
                operation_extensions=request_data.extensions,
                allowed_operation_types=_BY_POST if request.method == "POST" else (),
            )
        except CannotGetOperationTypeError as error:
            raise HTTPException(400, error.as_http_error_reason()) from error
        except InvalidOperationTypeError as error:
            raise _not_allowed(error.operation_type, request.method or "") from error
        except MissingQueryError as error:
            raise HTTPException(400, "No GraphQL query found in the request") from error
        if isinstance(result, ExecutionResult) and refused_by_outage(request, result):
            sub_response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
            sub_response["Retry-After"] = str(RETRY_AFTER)
        return result

    def decode_json(self, data: str | bytes) -> object:
        return json_object(data, hint='Send {"query": "...", "variables": {...}}.')

    def encode_json(self, data: object) -> str | bytes:
        try:
            return orjson.dumps(data)
        except orjson.JSONEncodeError:  # such as a number that 64 bits do not hold
            return super().encode_json(data)

    async def create_streaming_response(
        self,
        request: HttpRequest,
        stream: Callable[[], AsyncIterator[Any]],
        sub_response: TemporalHttpResponse,
        headers: Mapping[str, str],
    ) -> HttpResponseBase:
        await sync_to_async(connections.close_all)()
        release_thread()
        response = await super().create_streaming_response(request, stream, sub_response, headers)
        response["X-Accel-Buffering"] = "no"  # nginx would keep events back
        return response


@cache
def _words_of_waiting(schema: Any) -> Sequence[str]:
    """Return words of which one is in the text of every operation that may wait."""
    waiting = [field for field in schema.get_type_by_name("Mutation").fields if field.is_async]
    named = schema.config.name_converter.get_graphql_name
    return ("subscription", *(named(field) for field in waiting))


def _may_wait(data: GraphQLRequestData | list[GraphQLRequestData], schema: Any) -> bool:
    """True for several operations, for one that is streamed, or whose resolver is a coroutine."""
    if isinstance(data, list) or data.protocol != "http":
        return True
    query = data.query or ""
    return any(word in query for word in _words_of_waiting(schema))


def _now(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **given: Any) -> Any:
        return function(*args, **given)

    return call


def make_view(schema: Any) -> Callable[..., HttpResponseBase]:
    """Return the view of GraphQL over HTTP.

    It is synchronous: the thread of the request, in which its middleware runs, answers what
    cannot wait without going to the event loop and back.
    """
    options: dict[str, Any] = {
        "schema": schema,
        "subscription_protocols": ["graphql-transport-ws", "graphql-sse"],
    }
    asynchronous: Any = GraphQLView.as_view(**options)
    waiting: Callable[..., HttpResponseBase] = async_to_sync(asynchronous)
    at_once: Any = GraphQLView.as_view(**options, at_once=True)

    @csrf_exempt
    def view(request: HttpRequest, *args: Any, **given: Any) -> HttpResponseBase:
        if request.method == "POST":
            answering = at_once(request, *args, **given)
            try:
                answering.send(None)
            except StopIteration as done:
                answer: HttpResponseBase = done.value
                return answer
            except NeedsLoopError:
                pass
            else:
                answering.close()
                raise RuntimeError("an operation waits for the event loop")
        return waiting(request, *args, **given)

    found: Callable[..., HttpResponseBase] = view
    return found


def release_thread() -> None:
    """Give back the thread that is kept for this request: a subscription may last for hours.

    What still needs one gets a new one.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor = SyncToAsync.context_to_thread_executor.pop(context, None) if context else None
    if executor is not None:
        executor.shutdown(wait=False)


def _not_allowed(operation: OperationType, method: str) -> StoreError:
    """Why an operation is not run by a request of this method that wants one answer."""
    if operation == OperationType.SUBSCRIPTION:
        return InvalidInputError(
            "A subscription has many answers, and the request takes one.",
            where="request",
            hint="Send Accept: text/event-stream, or use a WebSocket (graphql-transport-ws).",
        )
    return MethodNotAllowedError(
        f"A {operation.value} is not run by {method}.",
        where="request",
        hint="Send it by POST, as JSON.",
        details={"allowed": ["POST"]},
    )


def _refused(error: HTTPException, request: HttpRequest) -> StoreError:
    message = f"{error.reason}.".replace("..", ".")
    if error.status_code == 413:
        return LimitError(error.reason)
    if error.status_code == 405:
        return MethodNotAllowedError(
            message, where="request", hint="Send POST.", details={"allowed": ["GET", "POST"]}
        )
    if request.content_type and error.reason == "Unsupported content type":
        return UnsupportedMediaTypeError(
            message, where="Content-Type", hint="Send JSON, with Content-Type: application/json."
        )
    return InvalidInputError(message, where="request")


# --- WebSockets --------------------------------------------------------------------------------


#: Status of a connection whose sign-in has ended, as clients of graphql-transport-ws know it.
SIGN_IN_ENDED = 4401
#: Seconds in which running subscriptions give the reason before the connection is closed.
_LAST_WORDS = 1.0
_SOCKET_REQUEST = "condastore.request"


@dataclass(eq=False)
class SocketRequest:
    """`info.context.request` of a WebSocket, with the current actor."""

    actor: Any = ANONYMOUS  # or a TokenInvalidError, until the first message was answered
    ended: NotSignedInError | None = None


async def _end_of_sign_in(asked: SocketRequest) -> str:
    """Wait until the connection's sign-in has ended; return the reason.

    It is checked whether anything is running or not: each message of an open connection may be a
    query or a mutation.
    """
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        actor = asked.actor
        if not isinstance(actor, Actor) or not actor.signed_in:
            continue
        try:
            asked.actor = await sync_to_async(_renewed, thread_sensitive=False)(actor)
        except NotSignedInError as error:
            asked.ended = error
            await asyncio.sleep(_LAST_WORDS)
            return error.message
        except Exception:  # such as a database that is away: the next check tells
            logger.warning("a sign-in could not be checked", exc_info=True)


def _renewed(actor: Actor) -> Actor:
    try:
        return renewed(actor)
    finally:
        close_old_connections()


def _until(ended: asyncio.Future[str], receive: Any) -> Any:
    """Return a `receive` to which the client has gone as soon as `ended` is done."""

    async def received() -> Any:
        message = asyncio.ensure_future(receive())
        await asyncio.wait({message, ended}, return_when=asyncio.FIRST_COMPLETED)
        if message.done():
            return message.result()
        message.cancel()
        return {"type": "websocket.disconnect", "code": SIGN_IN_ENDED}

    return received


def _checked_message(message: dict[str, Any]) -> dict[str, Any]:
    """Check the types of a client's message, which the protocol's handler takes for granted.

    Raises:
        InvalidInputError: one of them is another than graphql-transport-ws says.
    """
    kind, key = message.get("type"), message.get("id", "")
    if not isinstance(kind, str) or not isinstance(key, str):
        raise InvalidInputError("type and id must be strings.", where="request")
    if kind != "subscribe":
        return message
    payload = message.get("payload")
    if not isinstance(payload, dict) or not isinstance(payload.get("query"), str):
        raise InvalidInputError("payload must hold a query.", where="payload.query")
    for name, wanted in (("variables", dict), ("operationName", str), ("extensions", dict)):
        if not isinstance(payload.get(name), wanted | None):
            raise InvalidInputError(f"{name} has another type.", where=f"payload.{name}")
    return message


class GraphQLSocket(GraphQL[Any, None]):
    """graphql-transport-ws. The caller is identified by a session, a header, or the first message.

    A browser sends its cookies with whatever page opens the connection: from other origins it is
    refused.
    """

    def decode_json(self, data: str | bytes) -> object:
        try:
            return _checked_message(json_object(data))
        except InvalidInputError as error:  # the connection is closed, with status 4400
            raise JSONDecodeError(error.message, "", 0) from error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection, and close it soon after its sign-in has ended."""
        scope[_SOCKET_REQUEST] = asked = SocketRequest()
        ended = asyncio.ensure_future(_end_of_sign_in(asked))
        try:
            await super().__call__(scope, _until(ended, receive), send)
            if ended.done() and ended.result():
                close = {"type": "websocket.close", "code": SIGN_IN_ENDED}
                await send(close | {"reason": ended.result()})
        finally:
            ended.cancel()

    async def get_context(self, request: Any, response: Any) -> Any:
        actor = await sync_to_async(_of_handshake, thread_sensitive=False)(request)
        asked = request.scope[_SOCKET_REQUEST]
        asked.actor = actor
        return SimpleNamespace(request=asked, connection_params=None)

    async def on_ws_connect(self, context: Any) -> UnsetType | dict[str, object] | None:
        if isinstance(context.request.actor, TokenInvalidError):
            raise ConnectionRejectionError({"code": context.request.actor.code})
        given = context.connection_params
        header = given.get("Authorization") if isinstance(given, dict) else None
        if isinstance(header, str):
            try:
                context.request.actor = await sync_to_async(_of_header, thread_sensitive=False)(
                    header, context.request.actor.address
                )
            except TokenInvalidError as error:
                raise ConnectionRejectionError({"code": error.code}) from error
        return UNSET  # type: ignore[no-any-return]


def _of_handshake(socket: WebSocket) -> Actor | TokenInvalidError:
    address = socket.client.host if socket.client else ""
    address = address_of(address, ",".join(socket.headers.getlist("x-forwarded-for")))
    try:
        if header := socket.headers.get("authorization"):
            return _of_header(header, address)
        return _of_session(socket.headers.get("cookie", ""), address)
    except TokenInvalidError as error:
        return error
    finally:
        close_old_connections()


def _of_header(header: str, address: str) -> Actor:
    try:
        secret = secret_in(header)
        return actor_with_token(secret, address=address) if secret else ANONYMOUS
    finally:
        close_old_connections()


def _of_session(cookies: str, address: str) -> Actor:
    key = parse_cookie(cookies).get(settings.SESSION_COOKIE_NAME)
    if not key:
        return Actor(ANONYMOUS.user, address=address)
    return actor_with_session(key, address=address)


def make_socket(schema: Any) -> GraphQLSocket:
    return GraphQLSocket(
        schema,
        graphql_ide=None,
        subscription_protocols=[GRAPHQL_TRANSPORT_WS_PROTOCOL],
        allowed_origins=settings.CSRF_TRUSTED_ORIGINS,
    )
