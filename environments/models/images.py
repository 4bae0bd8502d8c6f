"""Layers of container images, made once for all images; the bases beneath; what refers to what."""

from __future__ import annotations

from typing import Any, Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from environments.domain.images import Compression
from environments.models.artifacts import Artifact, Blob
from environments.models.builds import Build
from environments.models.locks import LockRow


class Layer(models.Model):
    """The archive of a package or of several, by what it is made from."""

    #: sha256 of everything that the bytes depend on: `PackageLayer.key`.
    key = models.CharField(max_length=64, unique=True)
    label = models.TextField(help_text="The packages in it.")
    diff_id = models.CharField(max_length=64, help_text="sha256 of the archive itself.")
    size = models.BigIntegerField(help_text="Bytes, unpacked.")
    variables: Any = models.JSONField(default=dict, help_text="What its packages set.")
    gzip = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="+")
    zstd = models.ForeignKey(Blob, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.label[:80]

    def blob_in(self, compression: Compression) -> Blob | None:
        """The kept bytes in this compression, if they are there and whole."""
        blob = self.gzip if compression == "gzip" else self.zstd
        return blob if blob is not None and blob.damaged_at is None else None


class BaseImageQuerySet(models.QuerySet["BaseImage"]):
    def current(self, name: str, platform: str) -> BaseImage | None:
        """The newest that was loaded under this name."""
        return self.filter(name=name, platform=platform).order_by("-pk").first()


class BaseImage(models.Model):
    """What an image's own layers lie on, for one platform; another load is another row."""

    #: What the installation itself makes of the machine's libc and shell.
    OWN = "machine"

    name = models.CharField(max_length=300, help_text="Its reference, or what it was loaded as.")
    platform = models.CharField(max_length=32)
    digest = models.CharField(max_length=64, help_text="sha256 of its config.")
    config: Any = models.JSONField(default=dict)
    loaded_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = BaseImageQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        ordering = ["name", "platform", "-pk"]

    def __str__(self) -> str:
        return f"{self.name} ({self.platform})"


class BaseLayer(models.Model):
    base = models.ForeignKey(BaseImage, models.CASCADE, related_name="layers")
    position = models.PositiveIntegerField()
    diff_id = models.CharField(max_length=64)
    media_type = models.CharField(max_length=100)
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="+")

    class Meta:
        default_permissions = ()
        ordering = ["base", "position"]
        constraints = [models.UniqueConstraint(fields=["base", "position"], name="base_layer_once")]

    def __str__(self) -> str:
        return f"{self.base} layer {self.position}"


class ImageBlobQuerySet(models.QuerySet["ImageBlob"]):
    def of_builds(self, builds: models.QuerySet[Build]) -> Self:
        return self.filter(artifact__lock__in=builds.order_by().values("lock"))


class ImageBlob(models.Model):
    """A manifest, config or layer of an image: through it, bytes may be given away."""

    artifact = models.ForeignKey(Artifact, models.CASCADE, related_name="image_blobs")
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="+")
    media_type = models.CharField(max_length=100)
    #: Of a manifest that says something about the image, what it is: an SBOM, ...
    artifact_type = models.CharField(max_length=100, blank=True)

    objects = ImageBlobQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["artifact", "blob"], name="image_blob_once")]

    def __str__(self) -> str:
        return f"{self.blob} of {self.artifact_id}"


class ImageIndex(models.Model):
    """Images of one lock for several platforms, under one digest."""

    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="image_indexes")
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="+")

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["lock", "blob"], name="image_index_once")]

    def __str__(self) -> str:
        return f"{self.blob} of {self.lock}"


def base_name() -> str:
    """What the base of images is called here: a reference, a loaded name, or our own."""
    return settings.BASE_IMAGE or BaseImage.OWN


def image_options(build: Build, platform: str) -> dict[str, Any]:
    """What an image is made from beside its lock and variables."""
    base = BaseImage.objects.current(base_name(), platform)
    return {
        "specification": build.specification.digest,
        "base": base.digest if base else "",
        "compression": "gzip",
    }
