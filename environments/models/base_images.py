"""Base images of container images, and which one an image is built on."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone

from environments.models.blobs import Blob
from environments.models.builds import Build
from environments.models.namespaces import Namespace


class BaseImageQuerySet(models.QuerySet["BaseImage"]):
    def current(self, name: str, platform: str) -> BaseImage | None:
        """Return the newest image loaded under this name."""
        return self.filter(name=name, platform=platform).order_by("-pk").first()

    def of_digest(self, digest: str, platform: str) -> BaseImage | None:
        """Return the first with this digest; another row may have the same config in other
        layers."""
        return self.filter(digest=digest, platform=platform).order_by("pk").first()


class BaseImage(models.Model):
    """Base of container images for one platform; each load creates a new row."""

    #: Name of the base image that the installation builds from the machine's libc and shell.
    OWN = "machine"

    name = models.CharField(max_length=300, help_text="Reference, or name it was loaded as.")
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
    diff_id = models.CharField("diff ID", max_length=64)
    media_type = models.CharField(max_length=100)
    blob = models.ForeignKey(Blob, models.PROTECT, related_name="+")

    class Meta:
        default_permissions = ()
        ordering = ["base", "position"]
        constraints = [models.UniqueConstraint(fields=["base", "position"], name="base_layer_once")]

    def __str__(self) -> str:
        return f"{self.base} layer {self.position}"


def base_name(namespace: Namespace) -> str:
    """Return the name of the namespace's base image: a reference, a loaded name or the default."""
    return namespace.base_image or settings.BASE_IMAGE or BaseImage.OWN


def image_options(build: Build, platform: str) -> dict[str, Any]:
    """Return the inputs of an image besides its lock and variables."""
    name = base_name(build.environment.namespace)
    base = BaseImage.objects.current(name, platform)
    # A base image that is not stored yet is identified by its name.
    known = {"base": base.digest} if base else {"base": "", "base_name": name}
    return {"specification": build.specification.digest, **known, "compression": "gzip"}
