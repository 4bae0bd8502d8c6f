"""REST views: files and logs of a build, audit export, the current user."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from itertools import islice

from asgiref.sync import sync_to_async
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotModified,
    JsonResponse,
    QueryDict,
    StreamingHttpResponse,
)
from django.utils.cache import patch_vary_headers
from django.utils.http import content_disposition_header, parse_etags
from django.views.decorators.http import require_POST, require_safe

from condastore.errors import InvalidInputError
from condastore.http import request_turns
from environments.models import Build
from environments.operations import audit, downloads, provenance, served_folders, usage
from environments.operations.artifacts import KIND_OF
from environments.operations.served_builds import served_build
from environments.rest import artifacts
from environments.rest.lookup import actor_of, build_of
from environments.services import signing

#: Log lines per query.
LINES = 20_000
#: Audit events per query.
EVENTS = 1_000


@require_safe
async def download(
    request: HttpRequest, namespace: str, environment: str, reference: str, name: str
) -> HttpResponseBase:
    """Serve a file of a build: a rendered lock, or an artifact."""
    location = (namespace, environment, reference, name)
    if name == downloads.PROVENANCE:
        return await sync_to_async(_provenance)(request, *location)
    if name in downloads.FORMS or name not in KIND_OF:
        return await sync_to_async(_lock_file)(request, *location)
    return await artifacts.download(request, *location)


def _lock_file(
    request: HttpRequest, namespace: str, environment: str, reference: str, name: str
) -> HttpResponse:
    """Serve a lock as a file; it is rendered only if the client does not have it."""
    actor, platform = actor_of(request), request.GET.get("platform", "")
    build = served_build(actor, namespace, environment, reference)
    if build is not None:
        file = downloads.served_file(build=build, name=name, platform=platform)
    else:
        build = build_of(request, namespace, environment, reference)
        file = downloads.lock_file(actor=actor, build=build, name=name, platform=platform)
    known = parse_etags(request.headers.get("If-None-Match", ""))
    if "*" in known or file.etag in {tag.removeprefix("W/") for tag in known}:
        return _kept(HttpResponseNotModified(), file.etag)
    kind = f"{file.form.content_type}; charset=utf-8"
    response = HttpResponse(file.text(), content_type=kind)
    if request.method == "GET":
        audit.downloaded(actor, build, name)
    response["Content-Disposition"] = content_disposition_header(True, file.file_name) or ""
    return _kept(response, file.etag)


def _provenance(
    request: HttpRequest, namespace: str, environment: str, reference: str, name: str
) -> HttpResponse:
    """Serve the current artifact; the ETag is the digest."""
    build = build_of(request, namespace, environment, reference)
    text = provenance.provenance(actor=actor_of(request), build=build)
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    known = parse_etags(request.headers.get("If-None-Match", ""))
    if "*" in known or etag in {tag.removeprefix("W/") for tag in known}:
        return _kept(HttpResponseNotModified(), etag)
    if request.method == "GET":
        audit.downloaded(actor_of(request), build, name)
    response = HttpResponse(text, content_type="application/vnd.dsse.envelope.v1+json")
    saved = f"{namespace}-{environment}-{build.number}-{name}"
    response["Content-Disposition"] = content_disposition_header(True, saved) or ""
    return _kept(response, etag)


@require_safe
def signing_key(request: HttpRequest) -> HttpResponse:
    """Serve the public key that verifies statements of this installation."""
    return HttpResponse(signing.public_key(), content_type="application/x-pem-file")


def _kept(response: HttpResponse, etag: str) -> HttpResponse:
    """Mark a response as cacheable with revalidation: access and `current` change."""
    response["ETag"] = etag
    response["Cache-Control"] = "private, no-cache"
    patch_vary_headers(response, ("Authorization", "Cookie"))
    return response


@require_safe
def folders(request: HttpRequest, namespace: str) -> HttpResponse:
    """Serve the current folders of a namespace, which node agents poll."""
    answer = JsonResponse(served_folders.folders(actor=actor_of(request), namespace=namespace))
    etag = f'"{hashlib.sha256(answer.content).hexdigest()[:32]}"'
    known = parse_etags(request.headers.get("If-None-Match", ""))
    if etag in {tag.removeprefix("W/") for tag in known}:
        return _kept(HttpResponseNotModified(), etag)
    return _kept(answer, etag)


@require_POST
def use(request: HttpRequest, namespace: str, environment: str, reference: str) -> HttpResponse:
    """Record that `condastore run` uses the build."""
    build = build_of(request, namespace, environment, reference)
    usage.note_use(actor=actor_of(request), build=build)
    return HttpResponse(status=204)


@require_safe
async def log(
    request: HttpRequest, namespace: str, environment: str, reference: str
) -> HttpResponseBase:
    """Serve the log so far as text."""

    def find() -> Build:
        build = build_of(request, namespace, environment, reference)
        return downloads.readable_log(actor=actor_of(request), build=build)

    build = await sync_to_async(find)()
    if request.method == "GET":
        await sync_to_async(audit.downloaded)(actor_of(request), build, downloads.LOG)
    kind = "text/plain; charset=utf-8"
    response: HttpResponseBase = (
        StreamingHttpResponse(_lines(build), content_type=kind)
        if request.method == "GET"
        else HttpResponse(content_type=kind)
    )
    response["Cache-Control"] = "private, no-store"
    patch_vary_headers(response, ("Authorization", "Cookie"))
    return response


async def _lines(build: Build) -> AsyncIterator[bytes]:
    start = 0
    while True:
        async with request_turns.running(request_turns.Kind.READ):
            lines = await sync_to_async(build.log_from)(start, limit=LINES)
        if lines:
            yield ("\n".join(lines) + "\n").encode()
        if len(lines) < LINES:
            return
        start += len(lines)


@require_safe
async def audit_log(request: HttpRequest) -> HttpResponseBase:
    """Stream the readable audit events as JSON lines, oldest first."""
    actor, filters = actor_of(request), _filters(request.GET)
    kind = "application/x-ndjson; charset=utf-8"
    if request.method == "HEAD":
        return HttpResponse(content_type=kind)
    lines = await sync_to_async(audit.export)(actor=actor, filters=filters)
    response = StreamingHttpResponse(_parts(lines), content_type=kind)
    response["Content-Disposition"] = content_disposition_header(True, "audit.jsonl") or ""
    response["Cache-Control"] = "private, no-store"
    return response


def _filters(given: QueryDict) -> audit.Filters:
    known = {"actor", "action", "target", "namespace", "since", "until", "refused"}
    if unknown := sorted(set(given) - known):
        raise InvalidInputError(
            f"{unknown[0]!r} is not a filter.",
            where=unknown[0],
            hint=f"Filters: {', '.join(sorted(known))}.",
        )
    refused = given.get("refused", "")
    if refused not in ("", "true", "false"):
        raise InvalidInputError("refused must be true or false.", where="refused")
    return audit.Filters(
        actor=given.get("actor", ""),
        action=given.get("action", ""),
        target=given.get("target", ""),
        namespace=given.get("namespace", ""),
        since=_moment(given, "since"),
        until=_moment(given, "until"),
        refused={"true": True, "false": False}.get(refused),
    )


def _moment(given: QueryDict, name: str) -> datetime | None:
    if not (text := given.get(name, "")):
        return None
    return audit.parse_moment(text, where=name)


async def _parts(lines: Iterator[str]) -> AsyncIterator[bytes]:
    def part() -> bytes:
        return "".join(islice(lines, EVENTS)).encode()

    while True:
        async with request_turns.running(request_turns.Kind.READ):
            some = await sync_to_async(part)()
        if not some:
            return
        yield some


@require_safe
def whoami(request: HttpRequest) -> JsonResponse:
    actor = actor_of(request)
    token = actor.token
    return JsonResponse(
        {
            "signed_in": actor.signed_in,
            "username": actor.name if actor.signed_in else None,
            "is_superuser": actor.is_superuser,
            "token": token
            and {
                "name": token.name,
                "role": token.role or None,
                "namespaces": token.namespaces,
                "expires_at": token.expires_at.isoformat(),
            },
        }
    )
