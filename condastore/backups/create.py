"""`condastore backup`: copy the installation while it runs, and check a copy.

The database comes first: what is kept after that is no part of it, and bytes are never changed. So
the copy is consistent whatever the installation does meanwhile. Blobs that are in the folder
already are not copied again, so a second backup, or one that was stopped, copies the rest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings

from condastore import __version__
from condastore.backups import databases
from condastore.backups.manifest import (
    BLOB_LIST,
    LOCK,
    MANIFEST,
    PARTIAL,
    SNAPSHOTS,
    Manifest,
    alone,
    blob_path,
    copy_private,
    create_private,
    digest_of,
    entries_of,
    fault,
    read_blob_list,
    sync_folder,
    written_to,
)
from condastore.cli.errors import CommandError, Status

SECRETS, FIRST_SEEN = "secrets", "first-seen"
#: Files of the folder `secrets`, which settings may stand in for.
KEYS = {
    "secret_key": "SECRET_KEY",
    "audit_key": "AUDIT_KEY",
    "encryption_key": "ENCRYPTION_KEY",
    "registry_key": "REGISTRY_KEY",
    "signing_key.pem": "SIGNING_KEY",
}
Report = Callable[[str], None]
#: Seconds between two lines about progress.
PAUSE = 5.0


@dataclass(slots=True, kw_only=True)
class Copied:
    """Blobs, and their bytes."""

    number: int = 0
    size: int = 0
    present: int = 0
    absent: list[str] = field(default_factory=list)


def back_up(folder: Path, *, blobs: bool, link: bool, report: Report) -> Manifest:
    """Make `folder` a complete backup of the installation as it is now.

    Args:
        blobs: copy the bytes of an object store too; those of a folder always are.
        link: hard links to the blobs of the data folder instead of copies.
    Raises:
        CommandError: the folder is not fit for it, there is too little space, or a part failed.
    """
    from environments.services import blobs as store

    _require_fit(folder)
    with written_to(folder):
        create_private(folder)
    with written_to(folder), alone(folder):
        create_private(folder / SNAPSHOTS)
        for left in (folder / SNAPSHOTS).glob(f"*{PARTIAL}"):
            report(f"The backup {left.stem} was not finished; its blobs are used.")
            shutil.rmtree(left)
        now = datetime.now(UTC)
        name = f"{now:%Y%m%dT%H%M%S.%f}Z"
        partial = folder / SNAPSHOTS / f"{name}{PARTIAL}"
        create_private(partial)
        _require_space(folder, databases.size_bytes(), "the database")
        with databases.copied(partial) as rows:
            migrations: dict[str, list[str]] = {}
            for application, migration in rows(databases.MIGRATIONS):
                migrations.setdefault(application, []).append(migration)
            with os.fdopen(
                os.open(partial / BLOB_LIST, os.O_WRONLY | os.O_CREAT, 0o600), "w"
            ) as lines:
                lines.writelines(f"{sha256} {size}\n" for sha256, size in rows(databases.BLOBS))
        report(f"The database is copied as of {now:%Y-%m-%d %H:%M:%S} UTC.")
        for part in (SECRETS, FIRST_SEEN):
            if (settings.DATA / part).is_dir():
                copy_private(settings.DATA / part, partial / part)
        in_folder = isinstance(store.storage(), store.BlobFolder)
        copies = blobs or in_folder
        requested = partial / BLOB_LIST
        if copies:
            done = _copy_blobs(folder, requested, link=link and in_folder, report=report)
        else:
            done = _look_at_blobs(requested, report=report)
        os.sync()
        partial.rename(folder / SNAPSHOTS / name)
        sync_folder(folder / SNAPSHOTS)
        manifest = Manifest(
            snapshot=name,
            version=__version__,
            created_at=now.isoformat(),
            database=databases.kind(),
            migrations=migrations,
            files=entries_of(folder / SNAPSHOTS / name),
            store="files" if in_folder else type(store.storage()).__name__,
            blobs_copied=copies,
            blobs=done.number + done.present,
            blob_bytes=done.size,
            absent=tuple(done.absent),
            keys_from_settings=tuple(
                name
                for name, setting in KEYS.items()
                if {f"CONDASTORE_{setting}", f"CONDASTORE_{setting}_FILE"} & set(os.environ)
            ),
        )
        manifest.write(folder)
        _prune(folder, manifest)
    return manifest


def _require_fit(folder: Path) -> None:
    """Refuse folders of the installation itself, and those that hold something else."""
    data = settings.DATA.resolve()
    location = folder.resolve()
    if location == data or data in location.parents or location in data.parents:
        raise fault(
            "A backup cannot lie in the data folder, nor hold it.",
            folder,
            hint="Name a folder on another disk.",
        )
    try:
        content = {path.name for path in folder.iterdir()} - {LOCK} if folder.exists() else set()
    except OSError as error:
        raise fault(f"The folder cannot be read: {error.strerror}.", folder) from error
    if content and not content & {MANIFEST, SNAPSHOTS}:
        raise fault(
            "The folder holds something that is no backup.",
            folder,
            hint="Name an empty folder, a new one, or that of an earlier backup.",
        )


def _require_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CommandError(
            f"There is no room for {what}: {needed:,} bytes are needed, {free:,} are free.",
            status=Status.INVALID,
            code="disk-full",
            where=str(folder),
            hint="Name a folder on a larger disk, or free some space.",
        )


def _is_copied(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _copy_blobs(folder: Path, wanted: Path, *, link: bool, report: Report) -> Copied:
    missing = [
        (sha256, size)
        for sha256, size in read_blob_list(wanted)
        if not _is_copied(blob_path(folder, sha256), size)
    ]
    total = sum(1 for _ in read_blob_list(wanted))
    if not link:
        _require_space(folder, sum(size for _, size in missing), "the blobs")
    done = Copied(present=total - len(missing))
    said = time.monotonic()
    for sha256, size in missing:
        path = blob_path(folder, sha256)
        create_private(path.parent)
        if why := _copy_blob(sha256, path, link=link):
            _note_absent(done, sha256, why, report)
            continue
        done.number, done.size = done.number + 1, done.size + size
        if time.monotonic() - said > PAUSE:
            said = time.monotonic()
            report(f"{done.number:,} of {len(missing):,} blobs, {done.size:,} bytes.")
    report(f"{done.number:,} blobs copied ({done.size:,} bytes), {done.present:,} were there.")
    for partial in (folder / "blobs").glob(".*"):
        partial.unlink(missing_ok=True)
    return done


def _copy_blob(sha256: str, path: Path, *, link: bool) -> str:
    """Copy one blob and verify its digest; return its fault, or ""."""
    from environments.services import blobs

    partial = path.parents[2] / f".{sha256}.partial"
    partial.unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # of another size
    if link:
        source = Path(blobs.storage().path(blobs.name_of(sha256)))
        with contextlib.suppress(OSError):  # another file system
            if source.exists() and digest_of(source) == sha256:
                os.link(source, path)
                return ""
    if why := blobs.copy(sha256, partial):
        return why
    partial.chmod(0o400)
    partial.rename(path)
    return ""


def _look_at_blobs(wanted: Path, *, report: Report) -> Copied:
    """See that the object store has each blob, by its size."""
    from environments.services import blobs

    done = Copied()
    store = blobs.storage()
    for sha256, size in read_blob_list(wanted):
        name = blobs.name_of(sha256)
        if store.exists(name) and store.size(name) == size:
            done.present += 1
        else:
            _note_absent(done, sha256, "the object store does not have its bytes", report)
    report(f"{done.present:,} blobs are in the object store; their bytes are not copied.")
    return done


def _note_absent(done: Copied, sha256: str, why: str, report: Report) -> None:
    """Note a blob without its bytes, unless it was collected meanwhile, when nothing needs it."""
    from environments.models import Blob

    done.absent.append(sha256)
    if Blob.objects.filter(sha256=sha256, damaged_at=None).exists():
        report(f"warning: blob {sha256[:12]} is not in the backup: {why}.")


def _prune(folder: Path, manifest: Manifest) -> None:
    """Remove former snapshots, and blobs that this one does not name."""
    for path in (folder / SNAPSHOTS).iterdir():
        if path.name != manifest.snapshot:
            shutil.rmtree(path)
    needed = {sha256 for sha256, _ in read_blob_list(manifest.folder(folder) / BLOB_LIST)}
    for path in (folder / "blobs").glob("sha256/*/*"):
        if path.name not in needed:
            path.unlink()


def verify(folder: Path, *, report: Report) -> list[str]:
    """Read a whole backup again and compare every digest; returns what is wrong, if anything.

    Needs neither the installation nor its settings, unless the blobs are in an object store.
    """
    manifest = Manifest.read(folder)
    faults = []
    snapshot = manifest.folder(folder)
    for entry in manifest.files:
        path = snapshot / entry.path
        if not path.is_file():
            faults.append(f"{entry.path} is missing.")
        elif digest_of(path) != entry.sha256:
            faults.append(f"{entry.path} has other bytes than were backed up.")
    if (snapshot / BLOB_LIST).is_file():
        faults += _faults_of_blobs(folder, manifest, report)
    return faults


def _faults_of_blobs(folder: Path, manifest: Manifest, report: Report) -> Iterable[str]:
    absent = set(manifest.absent)
    requested = manifest.folder(folder) / BLOB_LIST
    if not manifest.blobs_copied:
        here = _look_at_blobs(requested, report=report)
        return [
            f"blob {sha256} is not in the object store."
            for sha256 in here.absent
            if sha256 not in absent
        ]
    found = []
    for sha256, _ in read_blob_list(requested):
        path = blob_path(folder, sha256)
        if sha256 in absent:
            continue
        if not path.is_file():
            found.append(f"blob {sha256} is missing.")
        elif digest_of(path) != sha256:
            found.append(f"blob {sha256} has other bytes than were backed up.")
    return found
