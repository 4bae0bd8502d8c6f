"""Middleware: request ids and logs, protective headers, errors as responses."""

from __future__ import annotations

import json.decoder
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import structlog
from allauth.core.exceptions import ImmediateHttpResponse, ReauthenticationRequired
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import (
    Http404,
    HttpRequest,
    HttpResponseBase,
    HttpResponseNotAllowed,
)
from django.http.multipartparser import MultiPartParserError

from condastore.errors import (
    InvalidInputError,
    StoreError,
)
from condastore.http.error_responses import (
    FOR_PROGRAMS,
    Limit,
    answer_to,
    method_not_allowed,
    prefers_html,
    problem,
    too_large,
)
from condastore.metrics import REQUESTS
from condastore.outages import unavailable
from environments.operations import audit

logger = structlog.get_logger(__name__)
REQUEST_ID = "X-Request-ID"
_GIVEN_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")
#: What Django itself answers with 400, 403 or 404, and allauth's middleware by a redirect.
DJANGOS = (
    *(Http404, PermissionDenied, SuspiciousOperation, BadRequest, MultiPartParserError),
    *(ImmediateHttpResponse, ReauthenticationRequired),
)


#: What a browser may do with an answer for programs, should somebody open it as a page: nothing.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'; sandbox"


def _protect(request: HttpRequest, response: HttpResponseBase) -> None:
    """Keep responses out of caches, and uploaded files from acting as pages of this site."""
    if not request.path.startswith(settings.STATIC_URL):
        response.headers.setdefault("Cache-Control", "private, no-store")
    kind = response.headers.get("Content-Type", "")
    if request.path.startswith(FOR_PROGRAMS) and not kind.startswith("text/html"):
        response.headers["Content-Security-Policy"] = _NO_PAGE
        response.headers["X-Content-Type-Options"] = "nosniff"


def _drop_false_length(request: HttpRequest, response: HttpResponseBase) -> None:
    """Remove a Content-Length that clients would apply to the response to GET (RFC 9110, 8.6).

    Django counts the body of every response, which a HEAD view may have omitted.
    """
    without_body = response.status_code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    left_out = request.method == "HEAD" and response.headers.get("Content-Length") == "0"
    if without_body or left_out:
        response.headers.pop("Content-Length", None)


class _Both:
    """Base of middleware for synchronous and asynchronous chains."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.asynchronous = bool(iscoroutinefunction(get_response))
        if self.asynchronous:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        return self.answer_later(request) if self.asynchronous else self.answer(request)

    def answer(self, request: HttpRequest) -> HttpResponseBase:
        raise NotImplementedError

    async def answer_later(self, request: HttpRequest) -> HttpResponseBase:
        raise NotImplementedError


class RequestContext(_Both):
    """Give the request an id for its log records and its response, and measure its duration."""

    def answer(self, request: HttpRequest) -> HttpResponseBase:
        started, number = self._begin(request)
        response: HttpResponseBase = self.get_response(request)
        return self._end(request, response, started, number)

    async def answer_later(self, request: HttpRequest) -> HttpResponseBase:
        started, number = self._begin(request)
        response: HttpResponseBase = await self.get_response(request)
        return self._end(request, response, started, number)

    def _begin(self, request: HttpRequest) -> tuple[float, str]:
        given = request.headers.get(REQUEST_ID, "")
        number = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=number)
        return time.perf_counter(), number

    def _end(
        self, request: HttpRequest, response: HttpResponseBase, started: float, number: str
    ) -> HttpResponseBase:
        response[REQUEST_ID] = number
        _protect(request, response)
        _drop_false_length(request, response)
        match = request.resolver_match
        # Route names only: clients choose paths freely, and each would be a label.
        route = (match.view_name or match.route) if match else "none"
        method = request.method if request.method in _METHODS else "OTHER"
        seconds = time.perf_counter() - started
        REQUESTS.labels(method, route, str(response.status_code)).observe(seconds)
        logger.debug(
            "request",
            method=request.method,
            path=request.path,
            status=response.status_code,
            seconds=round(seconds, 4),
        )
        return response


_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})


class StoreErrors:
    """Refuse bodies that are too large, and turn errors into responses.

    Synchronous and innermost, so that all middleware of a request runs in one thread; an
    asynchronous one would switch threads for each of them.
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        limit = _limit(request)
        if _too_large(request, limit):
            return answer_to(request, too_large(limit))
        response = self.get_response(request)
        if isinstance(response, HttpResponseNotAllowed) and not prefers_html(request):
            return problem(method_not_allowed(request, response.headers["Allow"].split(", ")))
        return response

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        if isinstance(exception, StoreError):
            audit.refused_request(request, exception)
            return answer_to(request, exception)
        if isinstance(exception, RequestDataTooBig):
            return answer_to(request, too_large())
        if isinstance(exception, RecursionError) and _while_parsing(exception):
            return answer_to(request, InvalidInputError("The request is nested too deeply."))
        if isinstance(exception, OverflowError) and "too large to convert" in str(exception):
            # A form compares submitted numbers of any size with database keys.
            return answer_to(request, InvalidInputError("A number in the request is too large."))
        if isinstance(exception, DJANGOS):
            return None  # answered by the handlers of 400, 403 and 404, or by allauth
        if (away := unavailable(exception)) is not None:
            logger.warning("database unreachable", error=str(exception))
            return answer_to(request, away)
        if not prefers_html(request) and not settings.DEBUG:
            from environments.graphql.errors import unexpected

            return problem(unexpected(exception, doing=request.path))
        return None  # Django logs it and renders the error page


def _while_parsing(error: RecursionError) -> bool:
    """Whether the JSON of the request caused it; forms of libraries parse JSON, too."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename == json.decoder.__file__


def _limit(request: HttpRequest) -> Limit:
    if request.method == "PUT" and request.path_info.startswith("/channel/hosted/"):
        return Limit(setting="MAX_UPLOAD_BYTES")
    return Limit(setting="MAX_REQUEST_BYTES")


def _too_large(request: HttpRequest, limit: Limit) -> bool:
    length = request.headers.get("Content-Length") or "0"
    return not length.isdecimal() or int(length) > limit.size
