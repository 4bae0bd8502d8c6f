"""File modes of the data folder: closed to other local users, but for `envs/` and `prefixes/`.

    <data>/           0711  others pass through it, and list nothing
      db.sqlite3...   0600  every file of the data folder itself
      cache/ run/ ... 0700  everything of the service; a closed folder closes all below it
      blobs/          0700, or 0750 with the group of CONDASTORE_BLOBS_GROUP
      envs/ prefixes/ 0711  the folders in them have the modes of their namespaces

Files of packages are readable by everybody (0644, 0755) whatever the umask: prefixes share their
inodes with the cache. Folders alone decide who reaches them.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Folders that only the service reads.
PRIVATE = ("cache", "first-seen", "recalled", "run", "secrets", "trash")
VALKEY, BLOBS = "valkey", "blobs"
#: Folders that users of environments pass through.
TRAVERSED = ("envs", "prefixes")
DATABASE = "db.sqlite3"
#: umask of processes that write nothing for others; of those that make prefixes.
PRIVATE_UMASK, SHARED_UMASK = 0o077, 0o022
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """Something of the data folder that other local users reach, and why it stays so."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def close(
    data: Path, *, database: Path | None = None, blobs_group: int | None = None
) -> list[OpenFile]:
    """Create the folders of the data folder and give everything its mode.

    Looks at the top of the data folder only, so that it may run at every start.

    Args:
        database: the SQLite file, which may lie elsewhere; None for a server.
        blobs_group: numeric id of the group that reads `blobs/`.

    Returns:
        What could not be closed.

    Raises:
        OSError: the data folder cannot be created.
    """
    if not data.is_dir():
        data.parent.mkdir(parents=True, exist_ok=True)
        _create_passage(data)
    for name in (*PRIVATE, BLOBS):
        with contextlib.suppress(FileExistsError):
            (data / name).mkdir(mode=0o700)
    for name in TRAVERSED:
        _create_passage(data / name)
    if database is not None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.suppress(OSError):  # folders that are still open are reported below
        mode = stat.S_IMODE(data.stat().st_mode)
        if mode & stat.S_IWOTH:
            data.chmod(mode & ~stat.S_IWOTH)
    for path, mode, group in _modes(data, database, blobs_group):
        with contextlib.suppress(OSError):
            _set_mode(path, mode, group)
    return list(still_open(data, database=database, blobs_group=blobs_group))


def _create_passage(path: Path) -> None:
    """Create a folder that others pass through, whatever the umask."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o711)
        path.chmod(0o711)


def still_open(
    data: Path, *, database: Path | None = None, blobs_group: int | None = None
) -> Iterator[OpenFile]:
    """Find what other local users reach although nobody but the service should."""
    try:
        status = data.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if status.st_mode & stat.S_IWOTH:
        yield OpenFile(path=data, reason="can be written by everybody")
    for path, mode, group in _modes(data, database, blobs_group):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if status.st_uid not in (os.geteuid(), data.stat().st_uid, 0):
            yield OpenFile(path=path, reason="belongs to another account")
        elif stat.S_IMODE(status.st_mode) & _OTHERS & ~mode or (
            group is not None and status.st_gid != group
        ):
            yield OpenFile(path=path, reason="is open to other accounts")


def group_id(name: str) -> int | None:
    """The numeric id of a Unix group, which may be written as a number; None if there is none."""
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _modes(
    data: Path, database: Path | None, blobs_group: int | None
) -> Iterator[tuple[Path, int, int | None]]:
    """(path, mode, group) of everything at the top of the data folder, and of the database."""
    for name in (*PRIVATE, VALKEY):
        yield data / name, 0o700, None
    yield data / BLOBS, 0o700 if blobs_group is None else 0o750, blobs_group
    for name in TRAVERSED:
        yield data / name, 0o755, None  # at most: see environments/services/folder_access.py
    if database is not None and database.parent != data:
        for ending in ("", "-wal", "-shm", "-journal"):
            yield database.with_name(database.name + ending), 0o700, None
    with contextlib.suppress(OSError), os.scandir(data) as entries:
        for entry in entries:
            # The database with its journals, and copies that somebody made of it.
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path), 0o700, None


def _set_mode(path: Path, most: int, group: int | None) -> None:
    """Take from `path` the rights beyond `most`; give it to `group`, which may do what it says."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(status.st_mode)
    if group is not None and status.st_gid != group:
        path.chmod(mode & most & ~_OTHERS)
        os.chown(path, -1, group)
    requested = mode & most | (most & stat.S_IRWXG if group is not None else 0)
    if requested != mode:
        path.chmod(requested)
