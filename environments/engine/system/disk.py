"""Disk usage: free space, sizes of folders, removal of trees, and hard link support."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from condastore.errors import DiskSpaceError, InvalidInputError
from environments.domain.progress import Cancelled, never, obey


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSize:
    """Size of a folder in bytes.

    `apparent` counts all files; `unique` those that no other folder shares; `share` divides each
    file's size among the folders that have it besides the cache.
    """

    files: int  # including links, without folders
    apparent: int
    unique: int
    share: int


def require_space(path: Path, needed: int, reserve: int = 0) -> None:
    """Raise DiskSpaceError unless `needed` bytes fit on the disk of `path` with `reserve` left.

    `path` need not exist.
    """
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free - needed < reserve:
        raise DiskSpaceError(
            f"{_megabytes(needed)} are needed and {_megabytes(reserve)} must stay free, "
            f"but only {_megabytes(free)} are free.",
            hint="Ask an administrator to free disk space, then try again.",
            details={"needed": needed, "reserve": reserve, "free": free},
        )


def tree_size(path: Path) -> TreeSize:
    """Return the size of `path` and everything below it; ignore files that vanish meanwhile.

    A file with several links, all inside `path`, counts once and as unique.
    """
    files = apparent = unique = alone = 0
    # (device, inode) -> [links seen here, size, link count]
    linked: dict[tuple[int, int], list[int]] = {}
    for entry in _walk(path):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        files += 1
        apparent += status.st_size
        if status.st_nlink == 1:
            unique += status.st_size
            alone += status.st_size
        else:
            seen = linked.setdefault(
                (status.st_dev, status.st_ino), [0, status.st_size, status.st_nlink]
            )
            seen[0] += 1
            if seen[0] == status.st_nlink:
                unique += status.st_size
    share = sum(
        size * here // max(here, (links - 1) if links > here else links)
        for here, size, links in linked.values()
    )
    return TreeSize(files=files, apparent=apparent, unique=unique, share=alone + share)


def remove_tree(path: Path, *, cancelled: Cancelled = never) -> None:
    """Remove `path`, including folders without write permission. Files are never made writable.

    What cannot be removed, because another process writes there, stays.
    """
    obey(cancelled)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    # Without recursion: an archive may nest a thousand folders.
    pending, folders = [os.fspath(path)], list[str]()
    while pending:
        obey(cancelled)
        folder = pending.pop()
        with contextlib.suppress(PermissionError, FileNotFoundError):
            os.chmod(folder, 0o700)  # noqa: PTH101  # folders are not shared, unlike files
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except FileNotFoundError:
            continue
        folders.append(folder)
        for entry in listed:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)  # noqa: PTH108  # avoid a Path for each of 10,000 files
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # not empty: something was added meanwhile
            os.rmdir(folder)  # noqa: PTH106


def require_same_file_system(cache: Path, prefixes: Path) -> None:
    """Raise InvalidInputError if files of `cache` cannot be hard-linked into `prefixes`."""
    name = f".link-test-{secrets.token_hex(4)}"  # two processes may test at the same time
    source, target = cache / name, prefixes / name
    try:
        source.touch()
        # Equal device numbers are not enough: links between bind mounts fail too.
        os.link(source, target)
    except OSError as error:
        raise InvalidInputError(
            f"Files of {cache} cannot be hard-linked into {prefixes}: {error.strerror}.",
            hint="Put the package cache and the prefixes on the same file system.",
        ) from error
    finally:
        for leftover in (source, target):
            leftover.unlink(missing_ok=True)


def _walk(path: Path) -> Iterator[os.DirEntry[str]]:
    folders = [os.fspath(path)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        yield entry
        except FileNotFoundError:
            continue


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
