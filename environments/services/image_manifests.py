"""Container images of a build, and the manifest or image index that a tag refers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from condastore.errors import ArtifactFailedError, NotFoundError, PolicyError
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.images import (
    ARCHITECTURES,
    INDEX,
    MANIFEST,
    Compression,
    Descriptor,
    index_json,
)
from environments.models import Artifact, BaseImage, Blob, Build, ImageBlob, ImageIndex
from environments.models.base_images import base_name
from environments.services import blobs, image_builder, platforms
from environments.services.policies import refuse_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A blob of an image, and a build that gives access to it."""

    blob: Blob
    media_type: str
    build: Build | None  # set for manifests only


def images_of(build: Build, *, compression: Compression = "gzip") -> list[Artifact]:
    """Return one image for each platform; images that only lack documents are assembled now.

    Raises:
        NotFoundError: the lock has no platform that containers support.
    """
    assert build.lock is not None, "served builds have a lock"
    known = [one for one in build.lock.platforms if one in ARCHITECTURES]
    requested = [one for one in known if _has_base(build, one)] or known[:1]
    if not requested:
        raise NotFoundError(
            f"{build} has no image: its lock is only for {', '.join(build.lock.platforms)}.",
            hint=f"Containers support: {', '.join(ARCHITECTURES)}.",
        )
    refusals: list[PolicyError] = []
    image_builder = []
    for platform in requested:
        try:
            refuse_paths(build, platform)
        except PolicyError as error:  # the index of the other platforms leaves this one out
            refusals.append(error)
        else:
            image_builder.append(_image(build, platform, compression))
    if not image_builder:
        raise refusals[0]
    return image_builder


def _has_base(build: Build, platform: str) -> bool:
    """Return whether a base image for this platform is stored, can be built, or can be pulled."""
    name = base_name(build.environment.namespace)
    if name == BaseImage.OWN and platform == platforms.own_platform():
        return True
    return "/" in name or BaseImage.objects.current(name, platform) is not None


def _image(build: Build, platform: str, compression: Compression) -> Artifact:
    more = {"compression": compression}
    artifact = Artifact.wanted(build, ArtifactKind.IMAGE, platform, more=more)
    if artifact.state == ArtifactState.READY and not _is_intact(artifact):
        artifact.again()
    if artifact.state == ArtifactState.QUEUED:
        image_builder.assemble_if_complete(artifact)
    return artifact


def _is_intact(artifact: Artifact) -> bool:
    damaged = ImageBlob.objects.filter(artifact=artifact, blob__damaged_at__isnull=False)
    retained = artifact.blob is not None and blobs.is_intact(artifact.blob)
    return retained and not damaged.exists()


def manifest_of(build: Build, image_builder: Sequence[Artifact]) -> Content:
    """Return what a tag refers to: a manifest, or an index of the manifests of several platforms.

    Raises:
        ArtifactFailedError: an image could not be made.
    """
    for artifact in image_builder:
        if artifact.state == ArtifactState.FAILED:
            failure = artifact.failure or {}
            raise ArtifactFailedError(
                f"The image of {build} could not be made: {failure.get('message', '')}",
                hint=failure.get("hint") or None,
            )
    ready = {one.platform: one.blob for one in image_builder if one.blob is not None}
    assert len(ready) == len(image_builder), "the caller waits until all are READY"
    if len(ready) == 1:
        [blob] = ready.values()
        return Content(blob=blob, media_type=MANIFEST, build=build)
    assert build.lock is not None, "it has images"
    document = index_json(
        {
            platform: Descriptor(media_type=MANIFEST, sha256=blob.sha256, size=blob.size)
            for platform, blob in sorted(ready.items())
        },
        {"io.condastore.lock": f"sha256:{build.lock.digest}"},
    )
    blob = blobs.add_bytes(document, folder=blobs.blobs_folder())
    ImageIndex.objects.get_or_create(lock=build.lock, blob=blob)
    return Content(blob=blob, media_type=INDEX, build=build)
