"""Content-addressed blob store: in a folder, or in an object store through django-storages.

The row is written after the bytes and deleted before them, so the bytes of each row exist.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import structlog
from django.conf import settings
from django.core.files import File
from django.core.files.storage import FileSystemStorage, Storage, storages
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from condastore.errors import DamagedError, DiskSpaceError, UnavailableError
from environments.engine.prefix import linking
from environments.models import Blob
from environments.services import data_folder_marker

logger = structlog.get_logger(__name__)
CHUNK = 1 << 20  # bytes
#: SQLite limits the number of variables in one statement.
BATCH = 500
MISSING = "its bytes are missing"


class BlobFolder(FileSystemStorage):
    """Files that appear complete, by a rename, and are never rewritten.

    The folder is `blobs` in the data folder, unless `location` is given.
    """

    def __init__(self, location: str | Path | None = None, **options: Any) -> None:
        super().__init__(location, **options)
        self.folder = location

    @property
    def base_location(self) -> str:
        return str(self.folder or Path(settings.DATA) / "blobs")

    @property
    def location(self) -> str:
        return str(Path(self.base_location).absolute())

    def _save(self, name: str, content: Any) -> str:
        final = self._place(name)
        temporary = final.with_name(f".{final.name}-{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                shutil.copyfileobj(content, file, CHUNK)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o444)
            temporary.rename(final)
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def adopt(self, path: Path, name: str, *, durable: bool = True) -> None:
        """Move a finished file of the same file system into the store without copying."""
        final = self._place(name)
        with path.open("rb") as file:
            if durable:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o444)
        path.rename(final)

    def _place(self, name: str) -> Path:
        """Return the path of `name`, and create its folder.

        Permissions are those of the blobs folder: a web server's umask must not keep nginx from
        reading the folders below it.
        """
        final = Path(self.path(name))
        Path(self.location).mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in reversed(final.relative_to(self.location).parents[:-1]):
            path = Path(self.location, folder)
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                path.chmod(0o755)
        return final

    def get_available_name(self, name: str, max_length: int | None = None) -> str:
        return name  # names are digests: a file of this name has the same bytes


def storage() -> Storage:
    return storages["default"]


def name_of(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


def add(path: Path, sha256: str = "") -> Blob:
    """Store the file at `path`, which is moved away.

    Args:
        sha256: digest of the file, if the caller has computed it.
    Raises:
        DiskSpaceError, UnavailableError: the store did not accept the file, which stays in place.
    """
    if not sha256:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if found := _touch_existing(sha256):
        path.unlink()
        return found
    put(path, sha256)
    retained = {"size": size, "used_at": timezone.now(), "damaged_at": None, "removing_at": None}
    return Blob.objects.update_or_create(sha256=sha256, defaults=retained)[0]


def put(path: Path, sha256: str, *, durable: bool = True) -> None:
    """Move a file into the store without a row.

    Raises:
        DiskSpaceError, UnavailableError: the store did not accept the file, which stays in place.
    """
    store, name = storage(), name_of(sha256)
    if isinstance(store, BlobFolder) and data_folder_marker.has_vanished():
        raise UnavailableError("The data folder of the installation is not mounted.")
    try:
        if isinstance(store, BlobFolder) and _same_file_system(path, Path(store.location)):
            store.adopt(path, name, durable=durable)
        else:
            with path.open("rb") as file:
                store.save(name, File(file, name=path.name))
            path.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError("The disk is full; the file was not stored.") from error
        raise UnavailableError(f"The blob store did not accept the file: {error}") from error
    except Exception as error:  # each object store raises exceptions of its own
        logger.warning("blob store failed", error=repr(error))
        raise UnavailableError("The blob store did not accept the file.") from error


def add_bytes(content: bytes, *, folder: Path) -> Blob:
    """Store a small document; it is written to `folder` first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".blob-{secrets.token_hex(8)}"
    try:
        path.write_bytes(content)
        return add(path)
    finally:
        path.unlink(missing_ok=True)


def _touch_existing(sha256: str) -> Blob | None:
    """Return the row of an intact blob that is already stored, and mark it as used.

    A damaged blob is marked too: its replacement must not be collected in the meantime.
    """
    rows = Blob.objects.filter(sha256=sha256)
    marked = rows.exclude(removing_at=None).exists()
    rows.update(used_at=timezone.now(), removing_at=None)
    found = rows.filter(damaged_at=None).first()
    if found is not None and marked and not storage().exists(name_of(sha256)):
        return None  # the collector was stopped between deleting the bytes and the row
    return found


def touch_interval() -> timedelta:
    """Return how often the last use is recorded at most; well below the grace period."""
    grace: timedelta = settings.COLLECTION_GRACE
    return min(timedelta(minutes=10), grace / 4)


def mark_used(rows: QuerySet[Blob]) -> None:
    """Mark blobs as used, which protects them from garbage collection for the grace period.

    A row that is found afterwards has its bytes: the collector locks a row until it is deleted.
    """
    now = timezone.now()
    stale = Q(used_at__lt=now - touch_interval()) | Q(removing_at__isnull=False)
    # Lock in one order, so that two callers with the same rows cannot deadlock.
    keys = rows.filter(stale).order_by("pk").select_for_update().values_list("pk", flat=True)
    with transaction.atomic():
        found = list(keys)
        for start in range(0, len(found), BATCH):
            batch = Blob.objects.filter(pk__in=found[start : start + BATCH])
            batch.update(used_at=now, removing_at=None)


def stored_at(name: str) -> datetime:
    """Return when the bytes were stored. FileNotFoundError: they are not in the store."""
    store = storage()
    # A moved file keeps its modification time, so use the creation time.
    moment: datetime = (
        store.get_created_time(name)
        if isinstance(store, BlobFolder)
        else store.get_modified_time(name)
    )
    return moment


def remove(blob: Blob) -> None:
    """Delete the bytes, out of reach at once. Call it while the row is locked."""
    store, name = storage(), name_of(blob.sha256)
    if isinstance(store, BlobFolder):
        path = Path(store.path(name))
        with contextlib.suppress(OSError):  # another file system
            linking.move_to_trash(path, Path(settings.DATA) / "trash")
        path.unlink(missing_ok=True)
    else:
        store.delete(name)


def _same_file_system(path: Path, folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return path.stat().st_dev == folder.stat().st_dev


def local_path(blob: Blob) -> Path | None:
    """Return the path of the file, if the store is a folder of this machine."""
    store = storage()
    return Path(store.path(name_of(blob.sha256))) if isinstance(store, BlobFolder) else None


def signed_url(blob: Blob, *, file_name: str = "", content_type: str = "") -> str:
    """Return a URL at which the object store serves the bytes for an hour; "" if unsupported."""
    store: Any = storage()
    parameters = _response_headers(type(store).__name__, file_name, content_type)
    url: str = store.url(name_of(blob.sha256), parameters=parameters)
    return url


def _response_headers(backend: str, file_name: str, content_type: str) -> Mapping[str, str]:
    """Return the parameters that set file name and content type, as each backend names them."""
    disposition = f'attachment; filename="{file_name}"' if file_name else ""
    names = {
        "S3Storage": ("ResponseContentDisposition", "ResponseContentType"),
        "GoogleCloudStorage": ("response_disposition", "response_type"),
        "AzureStorage": ("content_disposition", "content_type"),
    }[backend]
    return {
        name: value for name, value in zip(names, (disposition, content_type), strict=True) if value
    }


def fetch(blob: Blob, to: Path) -> None:
    """Write the bytes to `to` and verify the digest.

    Raises:
        DamagedError: the bytes are missing or wrong; the row is marked as damaged.
        UnavailableError: the store does not respond.
    """
    if why := copy(blob.sha256, to):
        raise record_damage(blob, why)
    Blob.objects.filter(pk=blob.pk).update(checked_at=timezone.now())


def copy(sha256: str, to: Path, store: Storage | None = None) -> str:
    """Write the bytes of this digest to `to`, from the default store or from `store`.

    Returns:
        What is wrong with the bytes; "" if nothing.
    Raises:
        UnavailableError: the store does not respond.
    """
    digest = hashlib.sha256()
    try:
        with to.open("wb") as out:
            for part in chunks_of(sha256, store):
                digest.update(part)
                out.write(part)
    except FileNotFoundError:
        to.unlink(missing_ok=True)
        return MISSING
    except httpx.HTTPError as error:
        raise UnavailableError(f"The blob store does not respond: {error}") from error
    if digest.hexdigest() != sha256:
        to.unlink()
        return "its content does not match its digest"
    return ""


def chunks_of(sha256: str, source: Storage | None = None) -> Iterator[bytes]:
    store: Any = source or storage()
    if isinstance(store, BlobFolder):
        with Path(store.path(name_of(sha256))).open("rb") as file:
            while part := file.read(CHUNK):
                yield part
        return
    with httpx.stream("GET", store.url(name_of(sha256)), timeout=60) as answer:
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise FileNotFoundError(sha256)
        answer.raise_for_status()
        yield from answer.iter_raw(CHUNK)


def chunks(blob: Blob) -> Iterator[bytes]:
    """Yield all bytes, without verifying the digest.

    Raises:
        DamagedError: the bytes are missing; the row is marked as damaged.
        UnavailableError: the store does not respond.
    """
    try:
        yield from chunks_of(blob.sha256)
    except FileNotFoundError:
        raise record_damage(blob, MISSING) from None
    except httpx.HTTPError as error:
        raise UnavailableError(f"The blob store does not respond: {error}") from error


def read(blob: Blob, start: int, length: int) -> bytes:
    """Read `length` bytes from `start`, without verifying the digest.

    Raises:
        DamagedError: the bytes are missing; the row is marked as damaged.
        UnavailableError: the store does not respond.
    """
    path = local_path(blob)
    try:
        if path is not None:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        answer = httpx.get(signed_url(blob), headers=headers, timeout=60)
    except FileNotFoundError:
        raise record_damage(blob, MISSING) from None
    except httpx.HTTPError as error:
        raise UnavailableError(f"The blob store does not respond: {error}") from error
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise record_damage(blob, MISSING)
    if answer.status_code != httpx.codes.PARTIAL_CONTENT:
        raise UnavailableError(f"The blob store responds with status {answer.status_code}.")
    return answer.content


def has_intact(sha256: str) -> bool:
    """Return whether the store has the bytes, verified by their digest."""
    digest = hashlib.sha256()
    for part in chunks_of(sha256):
        digest.update(part)
    return digest.hexdigest() == sha256


def is_intact(blob: Blob) -> bool:
    """Return whether the bytes are intact as far as the row and the size of the file tell."""
    if blob.damaged_at is not None:
        return False
    path = local_path(blob)
    if path is not None and not (path.is_file() and path.stat().st_size == blob.size):
        record_damage(blob, MISSING)
        return False
    return True


def record_damage(blob: Blob, why: str) -> DamagedError:
    """Mark a blob as damaged, so that it is made or fetched again, and return the error.

    Raises:
        UnavailableError: the data folder is not mounted, so all bytes are missing.
    """
    require_mounted()
    logger.error("damaged blob", sha256=blob.sha256, reason=why)
    Blob.objects.filter(pk=blob.pk).update(damaged_at=timezone.now())
    return DamagedError(f"A stored file is damaged ({blob}): {why}.")


def require_mounted() -> None:
    """Refuse if the data folder is not mounted, before bytes are recorded as missing.

    Raises:
        UnavailableError: the folder is not the data folder of this installation.
    """
    if isinstance(storage(), BlobFolder) and (fault := data_folder_marker.fault()):
        logger.error("blob store not mounted", reason=fault)
        raise UnavailableError("The data folder of the installation is not mounted.")


def blobs_folder() -> Path:
    """Return the folder for files in preparation, on the file system of the data folder."""
    return Path(settings.DATA) / "cache" / "artifacts"
