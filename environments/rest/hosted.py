"""Hosted channels: `/channel/hosted/<name>/...` for conda's clients, and uploads by PUT."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.views.decorators.http import require_http_methods

from condastore.errors import (
    DiskSpaceError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    UnavailableError,
)
from environments.models import HostedPackage
from environments.operations import hosted_channels
from environments.operations.hosted_channels import ReadableChannel, Uploaded
from environments.rest.blobs import Served, answer
from environments.rest.channels import PACKAGES, told
from environments.rest.lookup import actor_of
from environments.rest.upload_streaming import parts_of
from environments.services import blobs
from environments.services import hosted_channels as hosting

_SHA256 = re.compile(r"[0-9a-f]{64}")


@require_http_methods(["GET", "HEAD", "PUT"])
async def file(request: HttpRequest, channel: str, name: str, subdir: str = "") -> HttpResponseBase:
    """Serve or upload a file of a channel. Without a subdir, that of the package is used."""
    if request.method == "PUT":
        return await _upload(request, channel, subdir, name)

    def find() -> ReadableChannel:
        actor = actor_of(request)
        found = hosted_channels.find_channel(actor, channel)
        return hosted_channels.read_channel(actor=actor, channel=found)

    readable = await sync_to_async(find)()
    if not subdir:
        raise NotFoundError(f"{readable.channel} has no file {name}.")
    if not name.endswith(PACKAGES):
        return told(request, await sync_to_async(readable.document)(subdir, name))
    package = await sync_to_async(readable.package)(subdir, name)
    if package.blob.damaged_at is not None:
        raise UnavailableError(
            f"The bytes of {package} are damaged.",
            hint="Contact the administrators, who can restore it from a backup.",
        )
    return await answer(request, Served(blob=package.blob, content_type="application/octet-stream"))


# --- uploads ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Received:
    sha256: str
    md5: str


async def _upload(request: HttpRequest, channel: str, subdir: str, name: str) -> HttpResponseBase:
    actor = actor_of(request)
    requested, length = _announced(request)

    def find() -> Any:
        found = hosted_channels.find_channel(actor, channel)
        hosted_channels.may_upload(actor=actor, channel=found, file_name=name, size=length)
        if not connection.in_atomic_block:
            connection.close()  # an upload may take long: release the database connection
        return found

    found = await sync_to_async(find)()
    path = uploads_folder() / f"{secrets.token_hex(16)}.upload"
    try:
        received = await _received(request, path)
        if requested and requested != received.sha256:
            raise InvalidInputError(
                f"The uploaded file has the sha256 {received.sha256}, expected was {requested}.",
                where="Content-Digest",
                hint="Upload it again: it was damaged, or the digest belongs to another file.",
            )
        done = await sync_to_async(hosted_channels.upload)(
            actor=actor,
            channel=found,
            subdir=subdir,
            file_name=name,
            path=path,
            sha256=received.sha256,
            md5=received.md5,
        )
    finally:
        path.unlink(missing_ok=True)
    return JsonResponse(_told(done), status=201 if done.created else 200)


def uploads_folder() -> Path:
    """Return a folder on the file system of the blobs, so that a rename stores the upload."""
    folder = blobs.blobs_folder().with_name("uploads")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _told(done: Uploaded) -> dict[str, Any]:
    package: HostedPackage = done.package
    return {
        "channel": package.channel.name,
        "subdir": package.subdir,
        "file_name": package.file_name,
        "name": package.name,
        "version": package.version,
        "build": package.build,
        "sha256": package.sha256,
        "size": package.size,
        "url": f"{hosting.url_of(package.channel)}/{package.subdir}/{package.file_name}",
        "created": done.created,
        "warnings": list(done.warnings),
    }


async def _received(request: HttpRequest, path: Path) -> _Received:
    """Stream the body to `path`."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    most, size = settings.MAX_UPLOAD_BYTES, 0

    def write(part: bytes) -> None:
        sha256.update(part)
        md5.update(part)
        out.write(part)

    try:
        with path.open("xb") as out:
            async for part in parts_of(request):
                size += len(part)
                if size > most:
                    raise LimitError(
                        f"The upload is larger than {most:,} bytes.",
                        hint="An administrator can raise CONDASTORE_MAX_UPLOAD_BYTES.",
                        details={"limit": most},
                    )
                await asyncio.to_thread(write, part)
    except OSError as error:
        raise DiskSpaceError(f"The upload could not be stored: {error.strerror}.") from error
    return _Received(sha256=sha256.hexdigest(), md5=md5.hexdigest())


def _announced(request: HttpRequest) -> tuple[str, int]:
    """Return the sha256 in the headers, or "", and the length of the body, or 0.

    Raises:
        InvalidInputError: a header is not supported.
    """
    headers = request.headers
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InvalidInputError(
            "Content-Encoding is not supported.",
            where="Content-Encoding",
            hint="Send the package without content encoding.",
        )
    if "Content-Range" in headers:
        raise InvalidInputError(
            "Content-Range is not supported.",
            where="Content-Range",
            hint="Remove the header and upload the whole package.",
        )
    if request.content_type == "multipart/form-data":
        raise InvalidInputError(
            "The body must not be a form.",
            where="Content-Type",
            hint="Send the bytes of the package: `curl --upload-file`.",
        )
    length = headers.get("Content-Length", "")
    found = {
        value
        for header, read in _DIGESTS.items()
        if header in headers and (value := read(headers[header]))
    }
    if len(found) > 1:
        raise InvalidInputError(
            "The headers contain two different digests.", where="Content-Digest"
        )
    return "".join(found), int(length) if length.isdecimal() else 0


def _hexadecimal(text: str) -> str:
    value = text.strip().lower().removeprefix("sha256:")
    if _SHA256.fullmatch(value) is None:
        raise InvalidInputError("It is not a sha256.", where="X-Checksum-Sha256")
    return value


def _content_digest(text: str) -> str:
    """Parse RFC 9530 `sha-256=:BASE64:`; other algorithms are ignored."""
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        if name.lower() != "sha-256":
            continue
        try:
            digest = base64.b64decode(value.strip().strip(":"), validate=True).hex()
        except (binascii.Error, ValueError):
            digest = ""
        if _SHA256.fullmatch(digest) is None:
            raise InvalidInputError("It is not a sha-256.", where="Content-Digest")
        return digest
    return ""


_DIGESTS: dict[str, Callable[[str], str]] = {
    "X-Checksum-Sha256": _hexadecimal,
    "Content-Digest": _content_digest,
    "Repr-Digest": _content_digest,
}
