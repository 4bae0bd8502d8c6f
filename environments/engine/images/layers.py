"""How does one package become a layer of a container image, without the others?

Its files are those that file systems have for the same prefix, straight from the package cache: no
prefix is linked, and no other package is asked. So the layer is a function of the package, of the
prefix, and of the Python whose folders a `noarch: python` package is put into.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from environments.domain.artifacts import STANDARD_PREFIX
from environments.domain.images import Compression, PackageLayer
from environments.domain.progress import Cancelled, never
from environments.engine.artifacts.tree import package_parts
from environments.engine.images.archives import LayerFile, write_layer
from environments.engine.packages.cache import CachedPackage
from environments.engine.pypi.install import CachedWheel

_ROOT = STANDARD_PREFIX.lstrip("/")


def make_layer(
    layer: PackageLayer,
    to: Path,
    *,
    packages: Sequence[CachedPackage],
    wheels: Sequence[CachedWheel],
    platform: str,
    compression: Compression,
    work: Path,
    cancelled: Cancelled = never,
) -> LayerFile:
    """Write the layer of `packages` and `wheels`, which are those of `layer`, to `to`.

    Args:
        work: a folder for wheels, on the file system of the cache.
    Raises:
        LinkError: a package cannot be linked; each fault is named.
    """
    parts = package_parts(
        packages,
        wheels,
        python=layer.python,
        platform=platform,
        prefix=STANDARD_PREFIX,
        work=work,
        cancelled=cancelled,
    )
    entries = (
        entry._replace(path=f"{_ROOT}/{entry.path}") for part in parts for entry in part.entries
    )
    return write_layer(entries, to, compression=compression, cancelled=cancelled)
