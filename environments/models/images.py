"""Layers and contents of container images."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Exists, OuterRef
from django.db.models.fields.json import KT
from django.utils import timezone

from environments.domain.artifacts import ArtifactKind
from environments.domain.images import Compression
from environments.models.artifacts import Artifact
from environments.models.base_images import BaseImage
from environments.models.blobs import Blob
from environments.models.builds import Build
from environments.models.locks import LockRow


class Layer(models.Model):
    """The layer archive of one or more packages, shared by all images."""

    #: sha256 of everything that the archive depends on; see `PackageLayer.key`.
    key = models.CharField(max_length=64, unique=True)
    label = models.TextField(help_text="Packages in the layer.")
    diff_id = models.CharField(
        "diff ID", max_length=64, help_text="sha256 of the uncompressed archive."
    )
    size = models.BigIntegerField(help_text="Uncompressed size in bytes.")
    variables: Any = models.JSONField(
        default=dict, help_text="Environment variables set by its packages."
    )
    gzip = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="+")
    zstd = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.label[:80]

    def blob_in(self, compression: Compression) -> Blob | None:
        """Return the blob in this compression, if it is stored and not damaged."""
        blob = self.gzip if compression == "gzip" else self.zstd
        return blob if blob is not None and blob.damaged_at is None else None


class ImageBlobQuerySet(models.QuerySet["ImageBlob"]):
    def of_builds(self, builds: models.QuerySet[Build]) -> Self:
        return self.filter(artifact__lock__in=builds.order_by().values("lock"))


class ImageBlob(models.Model):
    """A manifest, config or layer of an image; gives access to the blob."""

    artifact = models.ForeignKey(Artifact, models.CASCADE, related_name="image_blobs")
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="+")
    media_type = models.CharField(max_length=100)
    #: Artifact type of a manifest that refers to the image, such as an SBOM.
    artifact_type = models.CharField(max_length=100, blank=True)

    objects = ImageBlobQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["artifact", "blob"], name="image_blob_once")]

    def __str__(self) -> str:
        return f"{self.blob} of {self.artifact_id}"


class ImageIndex(models.Model):
    """Index of the images of one lock for several platforms."""

    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="image_indexes")
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="+")

    class Meta:
        verbose_name, verbose_name_plural = "image index", "image indexes"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["lock", "blob"], name="image_index_once")]

    def __str__(self) -> str:
        return f"{self.blob} of {self.lock}"


class ImageStatement(models.Model):
    """A signed statement of a build about its image, and the manifest that refers to it.

    It belongs to one build: other builds with the same lock have the same image and statements of
    their own.
    """

    build = models.ForeignKey(Build, models.CASCADE, related_name="image_statements")
    subject = models.CharField(max_length=64, help_text="sha256 of the image's manifest or index.")
    manifest = models.ForeignKey(Blob, models.PROTECT, related_name="+")
    envelope = models.ForeignKey(Blob, models.PROTECT, related_name="+")
    #: The empty config that the manifest refers to.
    empty = models.ForeignKey(Blob, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["build", "subject"], name="image_statement_once")
        ]

    def __str__(self) -> str:
        return f"what {self.build_id} says of sha256:{self.subject[:12]}"


def replaced_bases(before: datetime) -> models.QuerySet[BaseImage]:
    """Return base images loaded before `before` that are not current and have no image on them."""
    newer = BaseImage.objects.filter(
        name=OuterRef("name"), platform=OuterRef("platform"), pk__gt=OuterRef("pk")
    )
    images = Artifact.objects.order_by().filter(kind=ArtifactKind.IMAGE)
    on_it = images.annotate(on=KT("options__base")).filter(on=OuterRef("digest"))
    used = on_it.filter(platform=OuterRef("platform"))
    return BaseImage.objects.filter(Exists(newer), loaded_at__lt=before).exclude(Exists(used))
