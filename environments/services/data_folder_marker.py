"""Marker of the data folder: tells it apart from the mount point of an unmounted file system.

The folder holds a file with a random name, and the database holds the same name. While they differ,
nothing is linked into the folder and nothing is deleted because of its contents: otherwise the
folders of all builds would seem missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from accounts.models import InstallationKey

#: Name of the file in the data folder, and `InstallationKey.name` of the row.
FILE, ROW = "installation", "data_folder"
#: Markers that this process has already compared with the database.
_seen: set[Path] = set()


def fault() -> str:
    """Return why this data folder must not be used; empty if it belongs to the installation.

    The first process that calls this creates the marker and records it.
    """
    known = _recorded()
    if known is None:
        marker = _create()
        row, _ = InstallationKey.objects.get_or_create(name=ROW, defaults={"fingerprint": marker})
        known = row.fingerprint
    found = _read()
    if found == known:
        _seen.add(_path())
        return ""
    path = _path().parent
    wrong = (
        f"The data folder {path} has no marker of this installation"
        if not found
        else f"The data folder {path} belongs to another installation"
    )
    return (
        f"{wrong}: its file system may not be mounted. Mount it, or set the right folder "
        "(CONDASTORE_DATA). If the folder was lost permanently, run `condastore manage data_folder "
        "--accept`: the folders of all environments are linked again."
    )


def has_vanished() -> bool:
    """Return whether this process has seen the marker and it is missing now; uses no database."""
    return _path() in _seen and not _path().exists()


def accept() -> bool:
    """Make this data folder the installation's; False if it already is."""
    if _recorded() is not None and not fault():
        return False
    marker = _read() or _create()
    InstallationKey.objects.update_or_create(
        name=ROW, defaults={"fingerprint": marker, "since": timezone.now()}
    )
    return True


def _recorded() -> str | None:
    return InstallationKey.objects.filter(name=ROW).values_list("fingerprint", flat=True).first()


def _path() -> Path:
    return Path(settings.DATA) / FILE


def _read() -> str:
    try:
        return _path().read_text().strip()
    except FileNotFoundError:
        return ""


def _create() -> str:
    """Write a new marker unless one exists; the first of several processes wins."""
    path = _path()
    part = path.with_name(f".{FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink()
    return _read()
