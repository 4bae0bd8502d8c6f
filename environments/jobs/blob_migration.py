"""Copy all blobs from one store to another while both are in use.

Each blob is verified by its digest. Blobs that are there already are skipped, so a second run
copies what was added since, or what an interrupted first run did not reach.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from django.core.files import File
from django.core.files.storage import Storage

from environments.models import Blob
from environments.services import blobs

logger = structlog.get_logger(__name__)
BATCH = 500


@dataclass(slots=True, kw_only=True)
class Moved:
    """Progress in blobs and bytes."""

    total: int = 0
    total_size: int = 0
    copied: int = 0
    copied_size: int = 0
    present: int = 0
    present_size: int = 0
    #: Blobs whose bytes are missing or different; they are reported and not copied.
    damaged: int = 0


def copy_all(
    source: Storage,
    target: Storage,
    *,
    check: bool = False,
    told: Callable[[Moved], None] = lambda moved: None,
) -> Moved:
    """Copy every blob that `target` does not have; in constant memory, whatever their size.

    Args:
        check: read what is there already, instead of trusting its size.
        told: is called after each blob.
    """
    moved = Moved()
    for row in Blob.objects.values_list("size", flat=True).iterator():
        moved.total += 1
        moved.total_size += row
    for blob in _blobs():
        name = blobs.name_of(blob.sha256)
        if _is_there(target, name, blob, check=check):
            moved.present += 1
            moved.present_size += blob.size
        elif _copy(source, target, name, blob):
            moved.copied += 1
            moved.copied_size += blob.size
        elif Blob.objects.filter(pk=blob.pk).exists():  # else it was collected meanwhile
            moved.damaged += 1
            logger.error("damaged blob", sha256=blob.sha256, reason="not copied")
        told(moved)
    return moved


def _blobs() -> Iterator[Blob]:
    last = 0
    while page := list(Blob.objects.filter(pk__gt=last).order_by("pk")[:BATCH]):
        yield from page
        last = page[-1].pk


def _is_there(target: Storage, name: str, blob: Blob, *, check: bool) -> bool:
    if not target.exists(name) or target.size(name) != blob.size:
        return False
    if not check:
        return True
    digest = hashlib.sha256()
    for part in blobs.chunks_of(blob.sha256, target):
        digest.update(part)
    return digest.hexdigest() == blob.sha256


def _copy(source: Storage, target: Storage, name: str, blob: Blob) -> bool:
    """False where the source has other bytes than the digest says, or none."""
    folder = blobs.blobs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".moving-{secrets.token_hex(8)}"
    try:
        if why := blobs.copy(blob.sha256, path, source):
            logger.warning("not copied", sha256=blob.sha256, reason=why)
            return False
        _save(target, name, path)
    finally:
        path.unlink(missing_ok=True)
    return True


def _save(target: Storage, name: str, path: Path) -> None:
    if target.exists(name) and not isinstance(target, blobs.BlobFolder):
        target.delete(name)  # other bytes, or some of them
    with path.open("rb") as file:
        target.save(name, File(file, name=path.name))
