"""Channels for conda, mamba, pixi, rattler: `/channel/<namespace>[/<environment>/<build>]`.

A client sends its token in a header, as a password, or in the path: `/t/<token>/channel/...`.
"""

from __future__ import annotations

from asgiref.sync import sync_to_async
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotModified,
    HttpResponseRedirect,
)
from django.utils.cache import patch_vary_headers
from django.utils.http import parse_etags
from django.views.decorators.http import require_safe

from environments.models import Blob, CondaRecord, PypiRecord
from environments.operations import served_channels
from environments.operations.namespaces import find_namespace
from environments.operations.served_channels import Document, ServedChannel
from environments.rest.blobs import Served, answer
from environments.rest.lookup import actor_of, build_of

PACKAGES = (".conda", ".tar.bz2")
#: Pseudo subdir of the wheels of a build.
_WHEELS = "wheels"


@require_safe
async def of_build(
    request: HttpRequest,
    namespace: str,
    environment: str,
    reference: str,
    subdir: str,
    name: str,
) -> HttpResponseBase:
    def find() -> ServedChannel:
        build = build_of(request, namespace, environment, reference)
        return served_channels.channel_of_build(actor=actor_of(request), build=build)

    return await _file(request, await sync_to_async(find)(), subdir, name)


@require_safe
async def of_namespace(
    request: HttpRequest, namespace: str, subdir: str, name: str
) -> HttpResponseBase:
    def find() -> ServedChannel:
        actor = actor_of(request)
        return served_channels.channel_of_namespace(
            actor=actor, namespace=find_namespace(actor, namespace)
        )

    return await _file(request, await sync_to_async(find)(), subdir, name)


async def _file(
    request: HttpRequest, channel: ServedChannel, subdir: str, name: str
) -> HttpResponseBase:
    if subdir == _WHEELS or name.endswith(PACKAGES):
        return await _package(request, channel, subdir, name)
    return told(request, await sync_to_async(channel.document)(subdir, name))


def told(request: HttpRequest, document: Document) -> HttpResponse:
    """Serve a document of a channel, or 304."""
    known = parse_etags(request.headers.get("If-None-Match", ""))
    response: HttpResponse
    if "*" in known or document.etag in {tag.removeprefix("W/") for tag in known}:
        response = HttpResponseNotModified()
    else:
        response = HttpResponse(document.content, content_type=document.content_type)
    response["ETag"] = document.etag
    # Contents and access change, so clients revalidate each time, at the cost of a 304.
    response["Cache-Control"] = "private, no-cache"
    patch_vary_headers(response, ("Authorization", "Cookie"))
    return response


async def _package(
    request: HttpRequest, channel: ServedChannel, subdir: str, name: str
) -> HttpResponseBase:
    def find() -> tuple[CondaRecord | PypiRecord, Blob | None]:
        record = channel.wheel(name) if subdir == _WHEELS else channel.package(subdir, name)
        return record, served_channels.stored_blob(record)

    record, blob = await sync_to_async(find)()
    if blob is None:
        # Not archived (the setting was off): redirect to its channel.
        return HttpResponseRedirect(record.url, status=307, preserve_request=True)
    return await answer(request, Served(blob=blob, content_type="application/octet-stream"))
