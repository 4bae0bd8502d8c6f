"""Guard for outgoing requests, built from the settings of this installation."""

from __future__ import annotations

import functools
import itertools

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from condastore.errors import InvalidInputError
from environments.domain.names import canonical_channel
from environments.engine.network.addresses import Guard


def configured_guard() -> Guard:
    """Return a guard that allows public addresses and what an administrator has configured.

    These are CONDASTORE_ALLOWED_NETWORKS, and the servers of channels, indexes and base images
    named by other settings. A server is allowed only at its port.

    Raises:
        ImproperlyConfigured: a setting is not a valid network or server.
    """
    return _guard(
        allowed=tuple(settings.ALLOWED_NETWORKS),
        channels=tuple(settings.DEFAULT_CHANNELS),
        alias=settings.CHANNEL_ALIAS,
        urls=(*settings.ALLOWED_CHANNELS, *settings.PYPI_INDEX_URLS),
        images=(settings.BASE_IMAGE, *settings.BASE_IMAGES_ALLOWED),
        folders=tuple(settings.FILE_CHANNELS),
    )


@functools.lru_cache(maxsize=8)
def _guard(
    *,
    allowed: tuple[str, ...],
    channels: tuple[str, ...],
    alias: str,
    urls: tuple[str, ...],
    images: tuple[str, ...],
    folders: tuple[str, ...],
) -> Guard:
    named = [f"{alias}/", *urls, *_servers_of_images(images)]
    for text in channels:
        try:
            named.append(canonical_channel(text, alias=alias).url)
        except InvalidInputError:
            continue  # reported by each specification that needs it
    if relative := [folder for folder in folders if not folder.startswith("/")]:
        raise ImproperlyConfigured(
            f"CONDASTORE_FILE_CHANNELS names {relative[0]!r}, which is not an absolute path."
        )
    try:
        return Guard.from_settings(allowed=allowed, urls=named, folders=folders)
    except InvalidInputError as error:
        raise ImproperlyConfigured(f"CONDASTORE_ALLOWED_NETWORKS: {error} {error.hint}") from error


def _servers_of_images(images: tuple[str, ...]) -> list[str]:
    """Return the registries of image references, including patterns as `registry.example.org/*`."""
    found = []
    for text in itertools.filterfalse(lambda text: "/" not in text, images):
        scheme = "http" if text.startswith("http://") else "https"
        host = text.removeprefix("http://").partition("/")[0]
        host = "registry-1.docker.io" if host == "docker.io" else host
        found.append(f"{scheme}://{host}/")
    return found
