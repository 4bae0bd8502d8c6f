"""Keys of the installation: from a setting, or from a file of the data folder, created once.

A key may have several lines. The first one signs and encrypts; the others are former keys, with
which older data is still verified and read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

#: Folder of the key files, below the data folder.
SECRETS = "secrets"


def random_key() -> str:
    return secrets.token_urlsafe(50)


def stored_key(data: Path, name: str, create: Callable[[], str] = random_key) -> str:
    """Read the key file `name`; create it where it is missing.

    Of several processes that create it at once one wins, and all of them read its key. The file
    is never readable by others, nor visible before it is complete.
    """
    path = data / SECRETS / name
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(create())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path.read_text().strip()


def lines(key: str) -> list[str]:
    """The keys of a setting or file: the current one, then former ones."""
    return [line.strip() for line in key.splitlines() if line.strip()]
