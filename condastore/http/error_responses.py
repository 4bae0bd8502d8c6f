"""Error responses: HTTP status of each error, problem+json for programs, pages for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import (
    DisallowedHost,
)
from django.http import (
    HttpRequest,
    HttpResponse,
    JsonResponse,
)
from django.shortcuts import render

from accounts.sign_in import TooManyAttemptsError
from condastore.errors import (
    AccessDeniedError,
    ChannelNotAllowedError,
    ConflictError,
    InvalidInputError,
    LeaseLostError,
    LimitError,
    MethodNotAllowedError,
    NotFoundError,
    NotSignedInError,
    PolicyError,
    RequestError,
    StoreError,
    TransitionError,
    UnavailableError,
    UnexpectedError,
    UnsupportedMediaTypeError,
)
from condastore.outages import RETRY_AFTER, migration_hint, unavailable
from environments.operations import audit

logger = structlog.get_logger(__name__)

#: The first kind that fits says the status.
STATUSES: tuple[tuple[type[StoreError], HTTPStatus], ...] = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (NotSignedInError, HTTPStatus.UNAUTHORIZED),
    (TooManyAttemptsError, HTTPStatus.TOO_MANY_REQUESTS),
    (AccessDeniedError, HTTPStatus.FORBIDDEN),
    (PolicyError, HTTPStatus.FORBIDDEN),
    (ChannelNotAllowedError, HTTPStatus.FORBIDDEN),
    (ConflictError, HTTPStatus.CONFLICT),
    (TransitionError, HTTPStatus.CONFLICT),
    (LeaseLostError, HTTPStatus.CONFLICT),
    (LimitError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (MethodNotAllowedError, HTTPStatus.METHOD_NOT_ALLOWED),
    (UnsupportedMediaTypeError, HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    (InvalidInputError, HTTPStatus.BAD_REQUEST),
    (RequestError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (UnexpectedError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
)


#: Paths for programs: their errors are problem+json, whatever the Accept header is.
FOR_PROGRAMS = (
    "/api/",
    "/v2/",
    "/channel/",
    "/scim/",
    "/graphql",
    "/healthz",
    "/readyz",
    "/metrics",
)


def status_of(error: StoreError) -> HTTPStatus:
    """Return the HTTP status of an error; the first matching class of `STATUSES` decides."""
    return next(
        (status for kind, status in STATUSES if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )


def prefers_html(request: HttpRequest) -> bool:
    """Whether the caller is a browser that requests a page."""
    return not request.path.startswith(FOR_PROGRAMS) and request.accepts("text/html")


def problem(error: StoreError, *, status: HTTPStatus | None = None) -> JsonResponse:
    """Return problem+json (RFC 9457) with the code of the error."""
    status = status or status_of(error)
    body = {
        "title": status.phrase,
        "status": int(status),
        "code": error.code,
        "detail": error.message,
        "where": error.where,
        "hint": error.hint,
        "details": dict(error.details),
    }
    answer = JsonResponse(body, status=status, content_type="application/problem+json")
    if status == HTTPStatus.UNAUTHORIZED:
        answer["WWW-Authenticate"] = 'Bearer realm="condastore"'
    if isinstance(error, MethodNotAllowedError):
        answer["Allow"] = ", ".join(error.details["allowed"])
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        answer["Retry-After"] = str(RETRY_AFTER)
    return answer


def answer_to(request: HttpRequest, error: StoreError) -> HttpResponse:
    """Return the error as a page for browsers, else as problem+json."""
    if not prefers_html(request):
        return problem(error)
    if isinstance(error, NotFoundError) and _may_sign_in(request):
        return redirect_to_login(request.get_full_path())
    status = status_of(error)
    return render(request, "error.html", {"error": error, "status": status}, status=status)


def _may_sign_in(request: HttpRequest) -> bool:
    """Whether a signed-out person requests a page that may be visible after the sign-in."""
    user = getattr(request, "user", None)
    return (
        request.method in {"GET", "HEAD"}
        and "text/html" in request.headers.get("Accept", "")
        and user is not None
        and not user.is_authenticated
    )


def refusal(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Refuse a request that fails the CSRF check (settings.CSRF_FAILURE_VIEW)."""
    error = AccessDeniedError(
        f"The request does not prove that it comes from this site's own pages: {reason}",
        hint=f"Send the cookie {settings.CSRF_COOKIE_NAME} and its value as X-CSRFToken; "
        "or use an API token, which needs neither.",
    )
    audit.refused_request(request, error)
    return answer_to(request, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Maximum size of a request body, and its setting."""

    setting: str

    @property
    def size(self) -> int:
        return int(getattr(settings, self.setting))


def too_large(limit: Limit | None = None) -> LimitError:
    limit = limit or Limit(setting="MAX_REQUEST_BYTES")
    return LimitError(
        f"The request is larger than {limit.size:,} bytes.",
        hint=f"Send less; an administrator may raise CONDASTORE_{limit.setting}.",
        details={"limit": limit.size},
    )


def method_not_allowed(request: HttpRequest, allowed: Sequence[str]) -> MethodNotAllowedError:
    return MethodNotAllowedError(
        f"This address does not answer {request.method}.",
        hint=f"Send {' or '.join(allowed)}.",
        details={"allowed": list(allowed)},
    )


def page_not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return answer_to(request, NotFoundError("There is nothing at this address."))


def page_refused(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    error = AccessDeniedError("You may not see this page.")
    audit.refused_request(request, error)
    return answer_to(request, error)


def page_bad(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    if isinstance(exception, DisallowedHost):
        error = InvalidInputError(
            "This server does not answer to the host name of the request.",
            where="Host",
            hint="Use its own address; an administrator adds names to CONDASTORE_ALLOWED_HOSTS.",
        )
        return answer_to(request, error)
    return answer_to(request, InvalidInputError("The request cannot be read."))


def page_failed(request: HttpRequest) -> HttpResponse:
    number = structlog.contextvars.get_contextvars().get("request", "")
    cause = sys.exception()
    away = (
        unavailable(cause) if cause else None
    )  # raised in a middleware, or while a session is read
    error = away or UnexpectedError(
        "Something went wrong on our side.",
        hint=f"Try again; if it stays, tell the administrators the number {number}.",
    )
    if cause and (hint := migration_hint(cause)):
        logger.error("migrations were not run", hint=hint)
    try:
        return answer_to(request, error)
    except Exception:  # the cause of the error may break its page, too
        logger.exception("the error page failed")
        return HttpResponse(error.message, status=status_of(error))
