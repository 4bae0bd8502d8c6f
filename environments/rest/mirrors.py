"""Mirrors for conda, mamba, pixi, rattler: `/channel/mirror/<name>[@<day>]`.

The first request waits while a worker builds the view, as clients give up at the first error; if it
takes longer, the answer is 503 with Retry-After, which they respect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

import zstandard
from asgiref.sync import sync_to_async
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotModified,
    StreamingHttpResponse,
)
from django.utils.cache import patch_vary_headers
from django.utils.http import http_date, parse_etags
from django.views.decorators.http import require_safe

from condastore.errors import DownloadError, NotFoundError, UnavailableError
from condastore.http import request_turns
from condastore.http.file_responses import PART
from condastore.row_changes import AsyncWatch
from environments.models import Blob
from environments.operations import mirrors as operations
from environments.operations.mirrors import OpenedView, Package
from environments.operations.served_channels import CONTENT_TYPES, REPODATA, SHARDS, ZSTD
from environments.rest.blobs import Served, answer
from environments.rest.lookup import actor_of
from environments.services import blobs, mirrors

Found = TypeVar("Found", OpenedView, Package)

#: Seconds that a request waits for a worker or a package: below the timeouts of clients and
#: proxies for the first byte.
WAIT = 40.0
_PACKAGES = (".conda", ".tar.bz2")
#: Header with the time of the last contact if the upstream does not answer (RFC 9110 date).
STALE = "X-Stale-Since"


@require_safe
async def of_mirror(
    request: HttpRequest, mirror: str, subdir: str, name: str, day: str = ""
) -> HttpResponseBase:
    actor = actor_of(request)
    if name.endswith(_PACKAGES):
        return await _package(
            request,
            partial(
                operations.open_package,
                actor=actor,
                name=mirror,
                subdir=subdir,
                file_name=name,
                moment=day,
            ),
        )
    known = name in CONTENT_TYPES or name.startswith("shards/")
    opened = await _opened(
        partial(operations.open_view, actor=actor, name=mirror, subdir=subdir, moment=day)
    )
    if not known:
        raise NotFoundError(f"{opened.mirror} has no file {subdir}/{name}.")
    response = await _document(request, opened, name)
    if opened.stale_since is not None:
        response[STALE] = http_date(opened.stale_since.timestamp())
    return response


async def _opened(find: Callable[[], Found | None]) -> Found:
    """Poll `find` until it returns something.

    Raises:
        UnavailableError: it takes longer than clients wait.
    """
    until = time.monotonic() + WAIT
    with AsyncWatch("mirrorindex", "mirrorview") as watch:
        while (found := await sync_to_async(find)()) is None:
            if time.monotonic() > until:
                raise UnavailableError(
                    "The index of the mirror is being created for the first time or for new rules.",
                    hint="Try again in a while.",
                )
            await request_turns.pause(watch, until=until)
    return found


# --- what is listed -------------------------------------------------------------------------------


async def _document(request: HttpRequest, opened: OpenedView, name: str) -> HttpResponseBase:
    view = opened.view
    if name.startswith("shards/"):
        digest = name.removeprefix("shards/").removesuffix(".msgpack.zst")
        content = await sync_to_async(operations.shard)(opened, digest)
        response: HttpResponseBase = HttpResponse(content, content_type=CONTENT_TYPES[SHARDS])
        return _told(response, f'"{digest}"')
    blob = {REPODATA: view.repodata, ZSTD: view.repodata, SHARDS: view.shard_index}[name]
    assert blob is not None, "called for finished views only"
    if name != REPODATA:
        return await answer(request, Served(blob=blob, content_type=CONTENT_TYPES[name]))
    # Stored compressed only: uncompressed it has hundreds of megabytes in large channels.
    etag = f'"plain:{blob.sha256}"'
    known = {
        tag.removeprefix("W/") for tag in parse_etags(request.headers.get("If-None-Match", ""))
    }
    if "*" in known or etag in known:
        response = HttpResponseNotModified()
    elif request.method == "HEAD":
        response = HttpResponse(content_type=CONTENT_TYPES[REPODATA])
    else:
        response = StreamingHttpResponse(_unpacked(blob), content_type=CONTENT_TYPES[REPODATA])
    return _told(response, etag)


def _told(response: HttpResponseBase, etag: str) -> HttpResponseBase:
    response["ETag"] = etag
    response["Cache-Control"] = "private, no-cache"
    patch_vary_headers(response, ("Authorization", "Cookie"))
    return response


async def _unpacked(blob: Blob) -> AsyncIterator[bytes]:
    """Decompress in chunks, at the speed of the client."""
    unpack = zstandard.ZstdDecompressor().decompressobj()
    for start in range(0, blob.size, PART // 8):
        packed = await sync_to_async(blobs.read)(blob, start, PART // 8)
        yield await asyncio.to_thread(unpack.decompress, packed)


# --- packages -------------------------------------------------------------------------------------


async def _package(request: HttpRequest, find: Callable[[], Package | None]) -> HttpResponseBase:
    package = await _opened(find)
    blob = package.blob
    if blob is None:
        credentials = await sync_to_async(mirrors.credential_source)(package.opened.mirror)
        coming = mirrors.start_fetch(package.download, credentials)
        try:
            async with request_turns.released():
                path = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(coming)), WAIT)
        except DownloadError as error:
            if error.details.get("gone"):
                raise NotFoundError(error.message) from error  # another attempt would fail, too
            raise
        except TimeoutError:
            raise UnavailableError(
                f"{package.file_name} is still being fetched.", hint="Try again in a while."
            ) from None
        blob = await sync_to_async(operations.store_fetched)(package, path)
    return await answer(request, Served(blob=blob, content_type="application/octet-stream"))
