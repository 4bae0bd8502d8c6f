"""Which of Django's storages keeps the blobs: read from the settings."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import ImproperlyConfigured

#: setting: (backend, the module it needs, the extra that brings it, options that we choose)
STORES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "s3": (
        "storages.backends.s3.S3Storage",
        "boto3",
        "s3",
        # Signed URLs are valid for an hour; the same name is always the same bytes.
        {"querystring_auth": True, "querystring_expire": 3600, "default_acl": None},
    ),
    "gcs": (
        "storages.backends.gcloud.GoogleCloudStorage",
        "google.cloud",
        "gcs",
        {"querystring_auth": True, "expiration": 3600},
    ),
    "azure": (
        "storages.backends.azure_storage.AzureStorage",
        "azure",
        "azure",
        {"expiration_secs": 3600, "overwrite_files": True},
    ),
}


def blob_storage(kind: str, options: str) -> dict[str, Any]:
    """An entry of Django's STORAGES.

    Raises:
        ImproperlyConfigured: no such store, options that are no JSON object, a missing extra.
    """
    try:
        given = json.loads(options) if options else {}
    except ValueError as error:
        raise ImproperlyConfigured(f"CONDASTORE_BLOBS_OPTIONS is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise ImproperlyConfigured("CONDASTORE_BLOBS_OPTIONS must be a JSON object.")
    if kind == "files":
        return {"BACKEND": "environments.services.blobs.BlobFolder", "OPTIONS": given}
    if kind not in STORES:
        raise ImproperlyConfigured(
            f"CONDASTORE_BLOBS is {kind!r}; there are: files, {', '.join(STORES)}."
        )
    backend, module, extra, chosen = STORES[kind]
    if not _present(module):
        raise ImproperlyConfigured(
            f"CONDASTORE_BLOBS={kind} needs: pip install 'condastore-server[{extra}]'"
        )
    return {"BACKEND": backend, "OPTIONS": chosen | given}


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there either
        return False
