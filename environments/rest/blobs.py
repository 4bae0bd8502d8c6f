"""Delivery of blobs: by nginx, by redirect to the object store, or streamed."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotModified,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.utils.cache import patch_vary_headers
from django.utils.http import content_disposition_header, parse_etags

from condastore.http.file_responses import PART, FileRange
from condastore.http.request_threads import release
from environments.models import Blob
from environments.operations import artifacts
from environments.services import blobs

_RANGE = re.compile(r"bytes=(\d*)-(\d*)\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A blob with its file name and content type."""

    blob: Blob
    content_type: str
    file_name: str = ""  # none: inline, not an attachment
    headers: tuple[tuple[str, str], ...] = ()
    #: Blobs never change, but access is checked on every request.
    cache_control: str = "private, no-cache"

    @property
    def etag(self) -> str:
        return f'"sha256:{self.blob.sha256}"'


async def answer(request: HttpRequest, served: Served) -> HttpResponseBase:
    """Serve the whole blob, a range (206), not modified (304), or a redirect (307)."""
    known = parse_etags(request.headers.get("If-None-Match", ""))
    if "*" in known or served.etag in {tag.removeprefix("W/") for tag in known}:
        return _told(HttpResponseNotModified(), served)
    await sync_to_async(artifacts.used)(served.blob)
    path = blobs.local_path(served.blob)
    if path is None and settings.BLOBS_SIGNED_URLS and request.method == "GET":
        # HEAD is answered here: a signed URL is valid for one method.
        url = await sync_to_async(blobs.signed_url)(
            served.blob, file_name=served.file_name, content_type=served.content_type
        )
        return _told(HttpResponseRedirect(url, status=307, preserve_request=True), served)
    if path is not None and settings.ACCEL_REDIRECT and request.method == "GET":
        response: HttpResponseBase = HttpResponse(content_type=served.content_type)
        response["X-Accel-Redirect"] = (
            settings.ACCEL_REDIRECT.rstrip("/") + "/" + blobs.name_of(served.blob.sha256)
        )
        return _told(response, served)
    return await _streamed(request, served, path)


def begins(response: HttpResponseBase) -> bool:
    """Whether it starts a download: not a resumed range, not 304."""
    if response.status_code == 206:
        return response["Content-Range"].startswith("bytes 0-")
    return response.status_code in (200, 307)


async def _streamed(request: HttpRequest, served: Served, path: Path | None) -> HttpResponseBase:
    size = served.blob.size
    try:
        requested = _range(request, served)
    except ValueError:
        message = f"The range is outside the file, which has {size} bytes."
        fault = {"title": "Requested Range Not Satisfiable", "status": 416, "detail": message}
        response: HttpResponseBase = JsonResponse(
            fault, status=416, content_type="application/problem+json"
        )
        response["Content-Range"] = f"bytes */{size}"
        return _told(response, served)
    first, last = requested or (0, size - 1)
    status = 206 if requested else 200
    if request.method == "HEAD":
        response = HttpResponse(content_type=served.content_type, status=status)
    elif path:
        kind = served.content_type
        response = FileRange(request, path, first, last, content_type=kind, status=status)
    else:
        parts = _store_parts(served.blob, first, last)
        response = StreamingHttpResponse(parts, content_type=served.content_type, status=status)
    response["Content-Length"] = str(last - first + 1)
    if requested:
        response["Content-Range"] = f"bytes {first}-{last}/{size}"
    return _told(response, served)


def _told(response: HttpResponseBase, served: Served) -> HttpResponseBase:
    response["ETag"] = served.etag
    response["Accept-Ranges"] = "bytes"
    response["Cache-Control"] = served.cache_control
    patch_vary_headers(response, ("Authorization", "Cookie"))
    if served.file_name:
        response["Content-Disposition"] = (
            content_disposition_header(True, served.file_name) or "attachment"
        )
    for name, value in served.headers:
        response[name] = value
    return response


def _range(request: HttpRequest, served: Served) -> tuple[int, int] | None:
    """Return the first and last requested byte; None for the whole file.

    Several ranges are ignored and the whole is served, which is valid. Only GET has ranges
    (RFC 9110, 14.2).

    Raises:
        ValueError: the range is outside the file.
    """
    size = served.blob.size
    if request.method != "GET":
        return None
    if (validator := request.headers.get("If-Range")) and validator != served.etag:
        return None
    found = _RANGE.match(request.headers.get("Range", ""))
    if found is None or found[1] == found[2] == "":
        return None
    if len(found[1]) > 18 or len(found[2]) > 18:
        raise ValueError("beyond every file")
    if not found[1]:  # the last n bytes
        length = min(int(found[2]), size)
        first, last = size - length, size - 1
    else:
        first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
        if found[2] and int(found[2]) < first:
            return None  # invalid ranges are ignored
    if first > last:
        raise ValueError("beyond the end")
    return first, last


async def _store_parts(blob: Blob, first: int, last: int) -> AsyncIterator[bytes]:
    url = await sync_to_async(blobs.signed_url)(blob)
    await release()
    headers = {"Range": f"bytes={first}-{last}"}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("GET", url, headers=headers) as found,
    ):
        found.raise_for_status()
        async for part in found.aiter_raw(PART):
            yield part
