"""Modes of package files: readable by everyone, writable by the owner only.

Prefixes and the cache share the inodes of these files. A file that others may write would let any
local user who reaches one prefix change all environments; a file that others may not read would be
useless in a prefix that is open to them. Extraction applies an archive's modes without the umask,
so they are corrected afterwards.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_EVERYBODY_READS = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_EVERYBODY_RUNS = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def shared_mode(mode: int) -> int:
    """Return the mode of a package's file or folder: 0644, 0755, 0444 or 0555.

    A folder is always 0755, so that its contents can be removed.
    """
    if stat.S_ISDIR(mode):
        return 0o755
    permissions = stat.S_IMODE(mode) & stat.S_IWUSR | _EVERYBODY_READS
    return permissions | (_EVERYBODY_RUNS if mode & _EVERYBODY_RUNS else 0)


def take_write_from_others(root: Path) -> int:
    """Remove write permission of others below `root`; return the number of changed entries.

    For trees of releases that kept the modes of archives. Prefixes share these inodes, so the
    change applies to them too, as it must.
    """
    changed = 0
    folders = [os.fspath(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as listed:
                entries = list(listed)
        except (FileNotFoundError, PermissionError):
            continue
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    continue
                if mode & _OTHERS_WRITE and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    os.chmod(entry.path, stat.S_IMODE(mode) & ~_OTHERS_WRITE)  # noqa: PTH101
                    changed += 1
                if stat.S_ISDIR(mode):
                    folders.append(entry.path)
    return changed
