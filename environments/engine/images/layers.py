"""Layers of container images, each made of one package on its own.

The files are those of file system artifacts with the same prefix, directly from the package cache:
no prefix is linked, and no other package is read. So a layer depends only on the package, the
prefix, and the Python into whose folders a `noarch: python` package is installed.
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
        work: folder for wheels, on the file system of the cache.
    Raises:
        LinkError: a package cannot be linked; reports all faults.
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
