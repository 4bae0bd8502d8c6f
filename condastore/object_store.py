"""Health check of the blob store.

The client of an object store tries for minutes; this check answers in seconds.
"""

from __future__ import annotations

import threading

from django.conf import settings
from django.core.files.storage import storages

from condastore import startup_errors
from condastore.cli.errors import CommandError

#: A name that no blob has.
PROBE = "condastore-probe"
#: Seconds until the store counts as one that does not answer.
PATIENCE = 5.0
_asking: threading.Thread | None = None
_found: CommandError | None = None
_guard = threading.Lock()


def fault() -> CommandError | None:
    """Return the fault of an object store; None if it works, or for a folder."""
    global _asking
    if settings.BLOBS == "files":
        return None
    with _guard:
        if _asking is None or not _asking.is_alive():
            _asking = threading.Thread(target=_ask, name="object-store", daemon=True)
            _asking.start()
        asking = _asking
    asking.join(PATIENCE)
    if asking.is_alive():
        return startup_errors.of_object_store(TimeoutError("no answer"))
    return _found


def _ask() -> None:
    global _found
    try:
        probe()
    except Exception as error:
        _found = startup_errors.of_object_store(error)
    else:
        _found = None


def probe() -> None:
    """Ask the store for one name; raises what its client raises where that cannot be answered."""
    store = storages["default"]
    bucket = getattr(store, "bucket", None)
    client = getattr(getattr(bucket, "meta", None), "client", None)
    if bucket is not None and client is not None:  # S3: to ask for a name hides a missing bucket
        client.head_bucket(Bucket=bucket.name)
    else:
        store.exists(PROBE)
