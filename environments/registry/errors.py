"""Errors of the container registry (OCI distribution 1.1)."""

from __future__ import annotations

from functools import wraps
from http import HTTPStatus
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt

from accounts.sign_in import TooManyAttemptsError
from condastore.errors import (
    AccessDeniedError,
    ArtifactFailedError,
    ChannelNotAllowedError,
    InvalidInputError,
    NotFoundError,
    NotSignedInError,
    PolicyError,
    QuotaError,
    StoreError,
    UnavailableError,
)
from environments.operations import audit

logger = structlog.get_logger(__name__)
API_VERSION = ("Docker-Distribution-API-Version", "registry/2.0")
SECONDS_LATER = "10"


class UnknownError(NotFoundError):
    """Not found; `kind` is NAME_UNKNOWN, MANIFEST_UNKNOWN or BLOB_UNKNOWN."""

    def __init__(self, message: str, *, kind: str = "NAME_UNKNOWN") -> None:
        super().__init__(message)
        self.kind = kind


class InvalidDigestError(InvalidInputError):
    """The digest is invalid."""


class UnderWayError(UnavailableError):
    """The image is still being built."""

    code = "under-way"


class ScopeError(NotSignedInError):
    """The token is for another repository."""

    code = "insufficient-scope"


class ChallengeError(NotSignedInError):
    """Authentication required; the response names the token service for `scope`."""

    def __init__(
        self, message: str, *, hint: str | None = None, scope: str = "", insufficient: bool = False
    ) -> None:
        super().__init__(message, hint=hint)
        self.scope, self.insufficient = scope, insufficient


_KINDS: tuple[tuple[type[StoreError], HTTPStatus, str], ...] = (
    (NotSignedInError, HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED"),
    (TooManyAttemptsError, HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
    (PolicyError, HTTPStatus.FORBIDDEN, "DENIED"),
    (ChannelNotAllowedError, HTTPStatus.FORBIDDEN, "DENIED"),
    (QuotaError, HTTPStatus.FORBIDDEN, "DENIED"),
    (AccessDeniedError, HTTPStatus.FORBIDDEN, "DENIED"),
    (NotFoundError, HTTPStatus.NOT_FOUND, "NAME_UNKNOWN"),
    (ArtifactFailedError, HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN"),
    (InvalidDigestError, HTTPStatus.BAD_REQUEST, "DIGEST_INVALID"),
    (InvalidInputError, HTTPStatus.BAD_REQUEST, "UNSUPPORTED"),
    # The only status after which clients retry on their own.
    (UnavailableError, HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
)


def refusal(
    status: HTTPStatus, code: str, message: str, detail: dict[str, Any] | None = None
) -> JsonResponse:
    error = {"code": code, "message": message, "detail": detail or {}}
    answer = JsonResponse({"errors": [error]}, status=status)
    answer[API_VERSION[0]] = API_VERSION[1]
    answer["Cache-Control"] = "no-store"
    return answer


def _challenge(request: HttpRequest, scope: str, *, insufficient: bool = False) -> str:
    """Return the `WWW-Authenticate` header, which names the token service."""
    location = reverse("registry-token")
    address = settings.PUBLIC_URL.rstrip("/") + location if settings.PUBLIC_URL else ""
    parts = {
        "realm": address or request.build_absolute_uri(location),
        "service": request.get_host(),
        **({"scope": scope} if scope else {}),
        **({"error": "insufficient_scope"} if insufficient else {}),
    }
    return "Bearer " + ",".join(f'{name}="{value}"' for name, value in parts.items())


def answer_to(request: HttpRequest, error: StoreError) -> JsonResponse:
    found = ((status, code) for kind, status, code in _KINDS if isinstance(error, kind))
    status, code = next(found, (HTTPStatus.UNPROCESSABLE_ENTITY, "UNSUPPORTED"))
    if isinstance(error, UnknownError):
        code = error.kind
    message = f"{error.message} {error.hint}".strip()
    answer = refusal(status, code, message, dict(error.details))
    if isinstance(error, ChallengeError):
        answer["WWW-Authenticate"] = _challenge(
            request, error.scope, insufficient=error.insufficient
        )
    if isinstance(error, UnavailableError):
        answer["Retry-After"] = SECONDS_LATER
    return answer


def in_its_words(view: Any) -> Any:
    """Decorator of registry views: cookies are ignored, errors have the specified form."""

    @csrf_exempt  # cookies are ignored, so CSRF does not apply
    @wraps(view)
    async def answered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            answer: HttpResponseBase = await view(request, *args, **kwargs)
        except StoreError as error:
            await sync_to_async(audit.refused_request)(request, error)
            return answer_to(request, error)
        except Exception:
            logger.exception("registry failed", path=request.path)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            return refusal(status, "UNKNOWN", "Internal error.")
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            message = f"The range is outside the blob ({answer['Content-Range']})."
            reported = refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message)
            reported["Content-Range"] = answer["Content-Range"]
            return reported
        answer[API_VERSION[0]] = API_VERSION[1]
        return answer

    return answered
