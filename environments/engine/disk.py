"""Is there room, what does a folder cost, and can it be hard-linked into another?"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from environments.domain.errors import DiskSpaceError, InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSize:
    """`apparent`: bytes of all files; `unique`: of those that no other folder shares.

    `share`: each file's bytes, divided among the folders that hold it beside the cache.
    """

    files: int  # and links; folders are not counted
    apparent: int
    unique: int
    share: int


def require_space(path: Path, needed: int, reserve: int = 0) -> None:
    """Raise DiskSpaceError unless `needed` bytes fit beside `path` and leave `reserve` free.

    `path` need not exist yet.
    """
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free - needed < reserve:
        raise DiskSpaceError(
            f"{_megabytes(needed)} are needed and {_megabytes(reserve)} must stay free, "
            f"but only {_megabytes(free)} are.",
            details={"needed": needed, "reserve": reserve, "free": free},
        )


def tree_size(path: Path) -> TreeSize:
    """What `path` and everything below it take. Files that vanish meanwhile are not counted.

    A file that is linked several times inside `path` only is unique to it, and counted once.
    """
    files = apparent = unique = alone = 0
    # (device, inode): [links seen here, size, links in all]
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


def require_same_file_system(cache: Path, prefixes: Path) -> None:
    """Raise InvalidInputError where files of `cache` cannot be hard-linked into `prefixes`."""
    name = f".link-test-{secrets.token_hex(4)}"  # two processes may look at the same time
    source, target = cache / name, prefixes / name
    try:
        source.touch()
        # Equal device numbers are not enough: bind mounts of one file system refuse links too.
        os.link(source, target)
    except OSError as error:
        raise InvalidInputError(
            f"Files of {cache} cannot be hard-linked into {prefixes}: {error.strerror}.",
            hint="Put the package cache and the prefixes on one file system.",
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
