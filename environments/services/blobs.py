"""Bytes that are kept by digest: in a folder, or in an object store through django-storages.

The row comes after the bytes and goes before them: what a row names can be served.
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
#: SQLite takes a limited number of variables in one statement.
BATCH = 500


class BlobFolder(FileSystemStorage):
    """Files that appear whole, by a rename, and are never written again.

    Below the data folder, unless `location` says where.
    """

    @property
    def base_location(self) -> str:
        return str(self._location or Path(settings.DATA) / "blobs")  # type: ignore[attr-defined]

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
        """Take a finished file of the same file system: no byte is copied."""
        final = self._place(name)
        with path.open("rb") as file:
            if durable:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o444)
        path.rename(final)

    def _place(self, name: str) -> Path:
        """The path of `name`, in a folder that is there.

        The blobs folder alone says who reads the files: a web server's umask must not keep nginx
        from those below it.
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
        return name  # a digest's bytes are the same ones


def storage() -> Storage:
    return storages["default"]


def name_of(sha256: str) -> str:
    return f"sha256/{sha256[:2]}/{sha256}"


def keep(path: Path, sha256: str = "") -> Blob:
    """Keep the bytes of the file at `path`, which is gone afterwards.

    Args:
        sha256: of the file, where whoever wrote it knows.
    Raises:
        DiskSpaceError, UnavailableError: the store does not take them; the file stays.
    """
    if not sha256:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if found := _again(sha256):
        path.unlink()
        return found
    put(path, sha256)
    kept = {"size": size, "used_at": timezone.now(), "damaged_at": None, "removing_at": None}
    return Blob.objects.update_or_create(sha256=sha256, defaults=kept)[0]


def put(path: Path, sha256: str, *, durable: bool = True) -> None:
    """Bring a file into the store, where no row tells of it yet; it is gone afterwards.

    Raises:
        DiskSpaceError, UnavailableError: the store does not take it; the file stays.
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
            raise DiskSpaceError("The disk is full: the file could not be kept.") from error
        raise UnavailableError(f"The blob store does not take the file: {error}") from error
    except Exception as error:  # each object store has errors of its own
        logger.warning("blob store failed", error=repr(error))
        raise UnavailableError("The blob store does not take the file.") from error


def keep_bytes(content: bytes, *, folder: Path) -> Blob:
    """Keep a small document; `folder` is where it is written first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".blob-{secrets.token_hex(8)}"
    try:
        path.write_bytes(content)
        return keep(path)
    finally:
        path.unlink(missing_ok=True)


def _again(sha256: str) -> Blob | None:
    """The row, told that it is wanted again, if these bytes are kept already.

    Also of damaged ones: who keeps the bytes anew must not lose them to the collection meanwhile.
    """
    rows = Blob.objects.filter(sha256=sha256)
    marked = rows.exclude(removing_at=None).exists()
    rows.update(used_at=timezone.now(), removing_at=None)
    found = rows.filter(damaged_at=None).first()
    if found is not None and marked and not storage().exists(name_of(sha256)):
        return None  # who removes it was stopped half-way
    return found


def fresh() -> timedelta:
    """The last use is written no more often; well below the time that it protects the bytes."""
    grace: timedelta = settings.COLLECTION_GRACE
    return min(timedelta(minutes=10), grace / 4)


def want(rows: QuerySet[Blob]) -> None:
    """Say that these are needed: none of those that are there now is collected soon.

    Who then finds a row may count on its bytes: whoever removes one holds the row until the end.
    """
    now = timezone.now()
    stale = Q(used_at__lt=now - fresh()) | Q(removing_at__isnull=False)
    # In one order, so that two who want the same do not wait for each other.
    keys = rows.filter(stale).order_by("pk").select_for_update().values_list("pk", flat=True)
    with transaction.atomic():
        found = list(keys)
        for start in range(0, len(found), BATCH):
            batch = Blob.objects.filter(pk__in=found[start : start + BATCH])
            batch.update(used_at=now, removing_at=None)


def stored_at(name: str) -> datetime:
    """When the bytes of this name came into the store. FileNotFoundError: they are not there."""
    store = storage()
    # A file that was moved here keeps the time of its last write.
    moment: datetime = (
        store.get_created_time(name)
        if isinstance(store, BlobFolder)
        else store.get_modified_time(name)
    )
    return moment


def remove(blob: Blob) -> None:
    """Take the bytes away: at once out of reach; call it while the row is locked."""
    store, name = storage(), name_of(blob.sha256)
    if isinstance(store, BlobFolder):
        path = Path(store.path(name))
        with contextlib.suppress(OSError):  # another file system
            linking.to_trash(path, Path(settings.DATA) / "trash")
        path.unlink(missing_ok=True)
    else:
        store.delete(name)


def _same_file_system(path: Path, folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return path.stat().st_dev == folder.stat().st_dev


def local_path(blob: Blob) -> Path | None:
    """Where the bytes are, if they are files of this machine."""
    store = storage()
    return Path(store.path(name_of(blob.sha256))) if isinstance(store, BlobFolder) else None


def signed_url(blob: Blob, *, file_name: str = "", content_type: str = "") -> str:
    """Where the object store itself gives the bytes to whoever has this URL, for an hour."""
    store: Any = storage()
    parameters = _as_told(type(store).__name__, file_name, content_type)
    url: str = store.url(name_of(blob.sha256), parameters=parameters)
    return url


def _as_told(backend: str, file_name: str, content_type: str) -> Mapping[str, str]:
    """What makes the store name the file and its type, in each store's words."""
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
    """Write the bytes to `to`, checked by their digest.

    Raises:
        DamagedError: the store has other bytes, or none; the row says so from now on.
        UnavailableError: the store does not answer.
    """
    if why := copy(blob.sha256, to):
        raise damaged(blob, why)
    Blob.objects.filter(pk=blob.pk).update(checked_at=timezone.now())


def copy(sha256: str, to: Path, store: Storage | None = None) -> str:
    """Write the bytes of this digest to `to`. What is wrong with them; "" where nothing is.

    From the store of this installation, unless another one is given.

    Raises:
        UnavailableError: the store does not answer.
    """
    digest = hashlib.sha256()
    try:
        with to.open("wb") as out:
            for part in parts(sha256, store):
                digest.update(part)
                out.write(part)
    except FileNotFoundError:
        to.unlink(missing_ok=True)
        return "its bytes are gone"
    except httpx.HTTPError as error:
        raise UnavailableError(f"The blob store does not answer: {error}") from error
    if digest.hexdigest() != sha256:
        to.unlink()
        return "its bytes are others"
    return ""


def parts(sha256: str, kept_in: Storage | None = None) -> Iterator[bytes]:
    store: Any = kept_in or storage()
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


def whole(blob: Blob) -> Iterator[bytes]:
    """All of its bytes, without a look at their digest.

    Raises:
        DamagedError: they are not there; the row says so from now on.
        UnavailableError: the store does not answer.
    """
    try:
        yield from parts(blob.sha256)
    except FileNotFoundError:
        raise damaged(blob, "its bytes are gone") from None
    except httpx.HTTPError as error:
        raise UnavailableError(f"The blob store does not answer: {error}") from error


def read(blob: Blob, start: int, length: int) -> bytes:
    """So many bytes of it from `start` on, without a look at its digest.

    Raises:
        DamagedError: they are not there; the row says so from now on.
        UnavailableError: the store does not answer.
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
        raise damaged(blob, "its bytes are gone") from None
    except httpx.HTTPError as error:
        raise UnavailableError(f"The blob store does not answer: {error}") from error
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise damaged(blob, "its bytes are gone")
    if answer.status_code != httpx.codes.PARTIAL_CONTENT:
        raise UnavailableError(f"The blob store answers with status {answer.status_code}.")
    return answer.content


def are_whole(sha256: str) -> bool:
    """Whether the store has just these bytes."""
    digest = hashlib.sha256()
    for part in parts(sha256):
        digest.update(part)
    return digest.hexdigest() == sha256


def is_whole(blob: Blob) -> bool:
    """Whether the bytes are there, as far as a look at the row and at a file's size tells."""
    if blob.damaged_at is not None:
        return False
    path = local_path(blob)
    if path is not None and not (path.is_file() and path.stat().st_size == blob.size):
        damaged(blob, "its bytes are gone")
        return False
    return True


def damaged(blob: Blob, why: str) -> DamagedError:
    """Note and report it: who asks next finds that it is to be made again.

    Raises:
        UnavailableError: all bytes are gone, as the data folder is not mounted.
    """
    require_mounted()
    logger.error("damaged blob", sha256=blob.sha256, reason=why)
    Blob.objects.filter(pk=blob.pk).update(damaged_at=timezone.now())
    return DamagedError(f"A kept file is damaged ({blob}): {why}.")


def require_mounted() -> None:
    """Before bytes are taken for lost: refuse where the whole data folder is not there.

    Raises:
        UnavailableError: it is not the installation's.
    """
    if isinstance(storage(), BlobFolder) and (fault := data_folder_marker.fault()):
        logger.error("blob store not mounted", reason=fault)
        raise UnavailableError("The data folder of the installation is not mounted.")


def blobs_folder() -> Path:
    """Where files are prepared before they are kept: on the file system of the data folder."""
    return Path(settings.DATA) / "cache" / "artifacts"
