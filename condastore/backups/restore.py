"""`condastore restore`: bring an installation back from a backup.

The bytes come first and the database last, by one rename or in one transaction: an installation
that was restored half has no database, `condastore up` refuses it, and the same command continues
where it stopped. Folders of environments are no part of a backup: the upkeep links them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings

from condastore.backups import databases
from condastore.backups.create import FIRST_SEEN, KEYS, SECRETS, Report
from condastore.backups.manifest import (
    BLOB_LIST,
    Manifest,
    alone,
    blob_path,
    copy_private,
    digest_of,
    fault,
    read_blob_list,
    sync_folder,
    write_private,
)
from condastore.cli.errors import CommandError, Status
from condastore.supervisor.startup import (
    UNFINISHED_RESTORE,
    database_file,
    only_one,
    prepare_folder,
)

BATCH = 500
#: What of the data folder goes aside when another installation takes its place.
REPLACED = (SECRETS, FIRST_SEEN, "envs", "prefixes", "recalled")


def restore(folder: Path, *, replace: bool, report: Report) -> Manifest:
    """Make the data folder and the database what they were at the backup.

    Args:
        replace: also where there is an installation: its files are moved aside.
    Raises:
        CommandError: the backup is not complete or damaged, or is of a newer version; there is an
            installation already, or it runs; there is too little space.
    """
    manifest = Manifest.read(folder)
    _require_known(manifest)
    if manifest.database != databases.kind():
        raise fault(
            f"The backup is of an installation on {manifest.database}, and this one is configured "
            f"for {databases.kind()}.",
            folder,
            hint="Set CONDASTORE_DATABASE_URL as it was there.",
        )
    data: Path = settings.DATA
    prepare_folder(data, restoring=True)
    with alone(folder), only_one(data):
        _require_whole(folder, manifest)
        marker = data / UNFINISHED_RESTORE
        going_on = _is_of(marker, manifest)
        if not going_on:
            occupied = _what_is_there(manifest)
            if occupied and not replace:
                raise fault(
                    f"There is an installation already: {occupied}.",
                    data,
                    hint="Name an empty data folder (CONDASTORE_DATA) and an empty database, or "
                    "replace it: `condastore restore --replace`.",
                    code="conflict",
                )
            _require_space(folder, manifest)
            mark = {"snapshot": manifest.snapshot, "from": str(folder), "replace": replace}
            write_private(marker, json.dumps(mark).encode())
            _move_aside(data, manifest, report)
        _restore_blobs(folder, manifest, report)
        snapshot = manifest.folder(folder)
        for part in (SECRETS, FIRST_SEEN):
            if (snapshot / part).is_dir():
                copy_private(snapshot / part, data / part)
        _restore_database(folder, manifest, replace=replace)
        _accept_data_folder()
        os.sync()
        marker.unlink()
        sync_folder(data)
        prepare_folder(data)
    for name in manifest.keys_from_settings:
        report(
            f"note: the key {name} was a setting, which is no part of the backup: set "
            f"CONDASTORE_{KEYS[name]} as it was."
        )
    return manifest


def _is_of(marker: Path, manifest: Manifest) -> bool:
    """Whether this backup's restore was begun before, and not finished."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found: dict[str, Any] = json.loads(marker.read_text())
        return bool(found.get("snapshot") == manifest.snapshot)
    return False


def _require_known(manifest: Manifest) -> None:
    """Refuse a backup with migrations that this version does not have."""
    from django.db.migrations.loader import MigrationLoader

    loader = MigrationLoader(None)
    replaced = {key for one in loader.disk_migrations.values() for key in one.replaces}
    known = set(loader.disk_migrations) | replaced
    ours = {application for application, _ in loader.disk_migrations}
    newer = [
        f"{application}.{name}"
        for application, names in manifest.migrations.items()
        for name in names
        if application in ours and (application, name) not in known
    ]
    if newer:
        raise CommandError(
            f"The backup was made by a newer version of condastore ({manifest.version}).",
            status=Status.INVALID,
            code="conflict",
            where=newer[0],
            hint=f"Install condastore {manifest.version} or newer, and restore again.",
        )


def _require_whole(folder: Path, manifest: Manifest) -> None:
    snapshot = manifest.folder(folder)
    for entry in manifest.files:
        path = snapshot / entry.path
        if not path.is_file() or digest_of(path) != entry.sha256:
            raise fault(
                f"The backup is damaged: {entry.path} is missing, or has other bytes.",
                snapshot,
                hint="Use another backup. `condastore backup --verify` lists everything wrong.",
                code="damaged",
            )


def _what_is_there(manifest: Manifest) -> str:
    """What of an installation is there already; "" if nothing is."""
    if manifest.database == databases.SQLITE:
        path = database_file()
        if path is not None and path.exists() and path.stat().st_size:
            return f"the database {path}"
    elif _tables():
        return "the database has tables"
    root = settings.DATA / "prefixes"
    if root.is_dir() and any(root.glob("*/*")):
        return f"environments in {root}"
    return ""


def _tables() -> list[str]:
    from django.db import DatabaseError, connection

    try:
        return connection.introspection.table_names()
    except DatabaseError as error:
        raise CommandError(
            f"The database cannot be used: {error}",
            status=Status.UNREACHABLE,
            code="unavailable",
            hint="Check CONDASTORE_DATABASE_URL, and that the database server runs.",
        ) from error
    finally:
        connection.close()


def _require_space(folder: Path, manifest: Manifest) -> None:
    from environments.services import blobs

    needed = sum(entry.size for entry in manifest.files)
    if manifest.blobs_copied and isinstance(blobs.storage(), blobs.BlobFolder):
        listed = read_blob_list(manifest.folder(folder) / BLOB_LIST)
        needed += sum(size for sha256, size in listed if not _has(sha256, size))
    free = shutil.disk_usage(settings.DATA).free
    if free < needed:
        raise fault(
            f"There is no room for the backup: {needed:,} bytes are needed, {free:,} are free.",
            settings.DATA,
            hint="Free some space, or name a data folder on a larger disk (CONDASTORE_DATA).",
            code="disk-full",
        )


def _move_aside(data: Path, manifest: Manifest, report: Report) -> None:
    """Move what was there out of the way; nothing is removed."""
    _remove_new_keys(data / SECRETS)
    aside = data / f"before-restore-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    database = database_file() if manifest.database == databases.SQLITE else None
    found = [data / name for name in REPLACED if (data / name).is_dir()]
    if database is not None:
        found += [
            path
            for ending in ("", "-wal", "-shm", "-journal")
            if (path := database.with_name(database.name + ending)).exists()
        ]
    for path in found:
        if path.is_dir() and not any(path.rglob("*")):
            path.rmdir()
        elif path.is_file() and not path.stat().st_size:
            path.unlink()
        else:
            aside.mkdir(mode=0o700, exist_ok=True)
            shutil.move(path, aside / path.name)
    prepare_folder(data, restoring=True)
    if aside.exists():
        report(f"What was there is in {aside}; remove it when you do not need it any more.")


def _remove_new_keys(folder: Path) -> None:
    """Remove keys that this very process created, as each process does where there are none."""
    started = psutil.Process().create_time()
    for path in folder.glob("*"):
        # The clock of the start has a resolution of 10 ms.
        if path.name in KEYS and path.stat().st_ctime >= started - 0.02:
            path.unlink()


# --- blobs ----------------------------------------------------------------------------------------


def _has(sha256: str, size: int) -> bool:
    from environments.services import blobs

    store, name = blobs.storage(), blobs.name_of(sha256)
    return bool(store.exists(name) and store.size(name) == size)


def _restore_blobs(folder: Path, manifest: Manifest, report: Report) -> None:
    """Bring the bytes into the configured store, each checked by its digest."""
    from environments.services import blobs

    if not manifest.blobs_copied:
        report("The bytes of the object store are no part of the backup.")
        return
    done = 0
    work = blobs.blobs_folder()
    work.mkdir(parents=True, exist_ok=True)
    for sha256, size in _wanted(folder, manifest):
        if _has(sha256, size):
            continue
        partial = work / f".restore-{sha256}"
        try:
            shutil.copyfile(blob_path(folder, sha256), partial)
            if digest_of(partial) != sha256:
                raise fault(
                    f"The backup is damaged: blob {sha256} has other bytes.",
                    blob_path(folder, sha256),
                    hint="Use another backup, or remove this file: the package is then fetched "
                    "from its channel where that has it.",
                    code="damaged",
                )
            if (store := blobs.storage()).exists(name := blobs.name_of(sha256)):
                store.delete(name)
            blobs.put(partial, sha256, durable=False)
        except FileNotFoundError:
            report(f"warning: blob {sha256[:12]} is missing in the backup.")
        finally:
            partial.unlink(missing_ok=True)
        done += 1
        if done % BATCH == 0:
            report(f"{done:,} blobs restored.")
    report(f"{done:,} blobs restored.")


def _wanted(folder: Path, manifest: Manifest) -> Iterator[tuple[str, int]]:
    absent = set(manifest.absent)
    for sha256, size in read_blob_list(manifest.folder(folder) / BLOB_LIST):
        if sha256 not in absent:
            yield sha256, size


def _lost(folder: Path, manifest: Manifest) -> list[str]:
    """Digests of rows whose bytes are not in the store after all was restored."""
    listed = read_blob_list(manifest.folder(folder) / BLOB_LIST)
    return [sha256 for sha256, size in listed if not _has(sha256, size)]


# --- the database ---------------------------------------------------------------------------------


def _restore_database(folder: Path, manifest: Manifest, *, replace: bool) -> None:
    source = manifest.folder(folder) / databases.NAMES[manifest.database]
    lost = _lost(folder, manifest)
    now = datetime.now(UTC).isoformat(sep=" ")
    if manifest.database == databases.POSTGRESQL:
        databases.load_postgresql(source, replace=replace or bool(_tables()))
        _mark_lost_in_server(lost)
        return
    path = database_file()
    assert path is not None, "the database is a file"
    partial = path.with_name(f".{path.name}.restore")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    shutil.copyfile(source, partial)
    with contextlib.closing(sqlite3.connect(partial)) as copy, copy:
        copy.executemany(
            "UPDATE environments_blob SET damaged_at = ? WHERE sha256 = ?",
            [(now, sha256) for sha256 in lost],
        )
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)


def _accept_data_folder() -> None:
    """Record this data folder: the database names the one that was backed up."""
    from django.db import Error, connection

    from environments.services import data_folder_marker

    connection.close()  # it may be of the database that was replaced
    with contextlib.suppress(Error):  # a backup of a release without the table
        data_folder_marker.accept()
    connection.close()


def _mark_lost_in_server(lost: list[str]) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        for start in range(0, len(lost), BATCH):
            cursor.execute(
                "UPDATE environments_blob SET damaged_at = now() WHERE sha256 = ANY(%s)",
                [lost[start : start + BATCH]],
            )
    connection.close()
