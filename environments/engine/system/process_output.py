"""Checked reading of files that a confined process wrote."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def require_output(path: Path) -> None:
    """Refuse a confined process's output that is not a regular file: a link may lead anywhere.

    Raises:
        OSError: it is not a regular file, or has other hard links.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise OSError(errno.EINVAL, "is not a regular file", path.name)


def read_output(path: Path, *, most: int) -> bytes:
    """Read a file that a confined process wrote, up to `most` bytes.

    Raises:
        OSError: it is not a regular file, or is too long.
    """
    require_output(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, "is too long", path.name)
    return content
