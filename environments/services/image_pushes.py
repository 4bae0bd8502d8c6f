"""Send images to other registries: missing blobs first, then manifests, then the tag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from django.conf import settings

from environments.domain.images import INDEX, MANIFEST
from environments.engine.images.remote import Reference, Repository
from environments.engine.network.addresses import Guard, guard, parse_networks
from environments.models import Artifact, Blob, Build, ImageBlob
from environments.services import blobs
from environments.services.image_manifests import Content

#: Seconds between two checks while a blob is sent.
CHECK_SECONDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """Number and bytes of the blobs that were sent, and number of those already present."""

    sent: int
    sent_bytes: int
    already_present: int


def never_stop() -> None:
    """Check of a push that holds no lease."""


def send_image(
    top: Content,
    images: Sequence[Artifact],
    repository: Repository,
    *,
    check: Callable[[], None] = never_stop,
) -> PushResult:
    """Send the blobs that the registry is missing, then the manifests, and the tag last.

    Args:
        top: manifest or image index that gets the tag of `repository.reference`.
        images: READY images that `top` refers to.
        check: called before each blob and manifest; raises to stop the push.
    Raises:
        AccessDeniedError, UnavailableError: the registry's answer.
    """
    sent = sent_bytes = already_present = 0
    for artifact in images:
        parts = ImageBlob.objects.filter(artifact=artifact, artifact_type="")
        for part in parts.exclude(media_type=MANIFEST).select_related("blob"):
            check()
            blob = part.blob
            if repository.push_blob(blob.sha256, blob.size, partial(_parts, blob, check)):
                sent, sent_bytes = sent + 1, sent_bytes + blob.size
            else:
                already_present += 1
        if artifact.blob is not None and top.media_type == INDEX:
            document = b"".join(blobs.chunks(artifact.blob))
            repository.push_manifest(f"sha256:{artifact.blob.sha256}", document, MANIFEST)
    check()
    document = b"".join(blobs.chunks(top.blob))
    repository.push_manifest(repository.reference.tag, document, top.media_type)
    return PushResult(sent=sent, sent_bytes=sent_bytes, already_present=already_present)


def _parts(blob: Blob, check: Callable[[], None]) -> Iterator[bytes]:
    last_check = time.monotonic()
    for part in blobs.chunks(blob):
        if time.monotonic() - last_check > CHECK_SECONDS:
            check()
            last_check = time.monotonic()
        yield part


def push_guard() -> Guard:
    """Return the addresses that pushes may reach."""
    return guard().allowing(parse_networks(settings.PUSH_PRIVATE_NETWORKS))


def target_of(target: str, build: Build) -> Reference:
    """Return the reference that a rule's `target` template gives for a build."""
    return Reference.parse(expand_target(target, str(build.environment.name), build.number))


def expand_target(target: str, environment: str, build: int) -> str:
    """Fill in `{environment}` and `{build}`; other braces are left as they are."""
    return target.replace("{environment}", environment).replace("{build}", str(build))
