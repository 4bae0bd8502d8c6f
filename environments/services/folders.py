"""Folders under `envs/`: symbolic links that follow the current build of each environment."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from condastore.errors import InvalidInputError
from environments.domain.lifecycle import BuildState
from environments.engine.prefix import linking
from environments.engine.system import disk
from environments.models import Build, Environment, Prefix, RecalledLock
from environments.services import folder_access

ENVS, PREFIXES, TRASH = folder_access.ENVS, folder_access.PREFIXES, "trash"
SEEN = "first-seen"  # when each package of a channel was first seen; cannot be recomputed
#: Prefixes of recalled builds are moved here until they are deleted or the recall is undone.
RECALLED = "recalled"
#: Length of the placeholder that conda packages reserve for the prefix.
CONDA_PREFIX_LENGTH = 255


def data() -> Path:
    return Path(settings.DATA)


def link_path(namespace: str, name: str) -> Path:
    return data() / ENVS / namespace / name


def prefix_path(build: Build) -> Path | None:
    """Return the path of the build's files; None unless it is READY and not recalled."""
    if build.prefix is None or build.state != BuildState.READY:
        return None
    recalled = RecalledLock.objects.active().filter(lock=build.prefix.lock_id)
    return None if recalled.exists() else data() / build.prefix.path


def planned_prefix(build: Build) -> str:
    """Return `prefixes/<namespace>/<number>-<lock digest, 12>-<environment>`, without the data
    folder."""
    environment = build.environment
    assert build.lock is not None
    leaf = f"{build.number}-{build.lock.digest[:12]}-{environment.name}"
    path = f"{PREFIXES}/{environment.namespace.name}/{leaf}"
    # A renamed or moved environment keeps folders with its old name, and cleanup may be about to
    # delete the folder of an attempt that ended after this name was chosen.
    for free in (path, f"{path}-{build.pk}"):
        if not Prefix.objects.filter(path=free).exclude(builds=build).exists():
            return free
    return f"{path}-{build.pk}.{build.lease_token}"


@contextmanager
def _locked(namespace: str, name: str) -> Iterator[None]:
    """Serialize changes of a link: the last process to read the pointer is the last to write."""
    locks = data() / "run" / "links"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{namespace}~{name}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def follow(namespace: str, name: str) -> bool:
    """Make the link of this environment follow its current build; True if it was changed."""
    if not _is_outdated(namespace, name):
        return False
    # Change the row first and then the link, as every change of the pointer does: a process that
    # read the pointer during a change would otherwise set the link back.
    with transaction.atomic():
        rows = Environment.objects.select_for_update()
        rows = rows.filter(namespace__name=namespace, name=name, deleted_at=None)
        environment = rows.first()
        with _locked(namespace, name):
            if not _is_outdated(namespace, name):
                return False
            link, target = link_path(namespace, name), _target(namespace, name)
            if target is None or environment is None:
                linking.remove_link(link)
            else:
                folder_access.create_folder(ENVS, environment.namespace)
                linking.set_link(link, target)
    return True


def _target(namespace: str, name: str) -> Path | None:
    """Return the target that the link should have; None without a current build or prefix."""
    environment = (
        Environment.objects.present()
        .select_related("current__prefix")
        .filter(namespace__name=namespace, name=name)
        .first()
    )
    build = environment.current if environment else None
    target = prefix_path(build) if build else None
    return target if target is not None and target.is_dir() else None


def _is_outdated(namespace: str, name: str) -> bool:
    """Return whether the link has another target than the current build."""
    link, target = link_path(namespace, name), _target(namespace, name)
    if target is None:
        return link.is_symlink()
    return not (link.is_symlink() and link.resolve() == target.resolve())


def follow_environment(environment: Environment) -> bool:
    return follow(environment.namespace.name, environment.name)


def require_path_length(namespace: str, name: str) -> None:
    """Refuse names whose prefix would be longer than the placeholder of conda packages."""
    longest = len(str(data() / PREFIXES / namespace / f"{10**6}-{'f' * 12}-{name}"))
    if longest > CONDA_PREFIX_LENGTH:
        raise InvalidInputError(
            f"The name is {longest - CONDA_PREFIX_LENGTH} characters too long for this server: "
            f"conda packages support paths of up to {CONDA_PREFIX_LENGTH} characters.",
            where="name",
            hint="Choose a shorter name.",
        )


def discard(prefix: Path, environment: Environment) -> None:
    """Move a prefix to the trash, after the environment's link no longer leads to it."""
    follow_environment(environment)
    if prefix.exists():
        linking.move_to_trash(prefix, data() / TRASH)


# --- recalled builds ------------------------------------------------------------------------------


def quarantine(path: str) -> bool:
    """Move a prefix (`prefixes/...`) out of reach by one rename.

    Its files are not touched, as they are shared. Running processes keep the files they have open.
    """
    location = _quarantine_path(path)
    location.parent.mkdir(parents=True, exist_ok=True)
    (data() / RECALLED).chmod(0o700)
    return _renamed(data() / path, location)


def restore(path: str) -> bool:
    """Move a prefix back to its path; False if it was not in quarantine."""
    location = _quarantine_path(path)
    return location.is_dir() and _renamed(location, data() / path)


def quarantined() -> list[str]:
    """Return the original paths of all prefixes in quarantine."""
    root = data() / RECALLED
    return [f"{PREFIXES}/{found.relative_to(root).as_posix()}" for found in root.glob("*/*")]


def discard_quarantined(path: str) -> None:
    linking.move_to_trash(_quarantine_path(path), data() / TRASH)


def _quarantine_path(path: str) -> Path:
    return data() / RECALLED / Path(path).relative_to(PREFIXES)


def _renamed(old: Path, new: Path) -> bool:
    if new.exists():
        return False
    try:
        old.rename(new)
    except FileNotFoundError:
        return False
    return True


#: The installation itself reads files of a prefix within this time after linking it.
OWN_READS = timedelta(minutes=10)


def last_read(prefix: Prefix) -> datetime | None:
    """Return when a program of the prefix was last started; None if the file system does not tell.

    Uses only files that no other prefix shares. Most file systems update the access time at most
    once a day (`relatime`), and some never do.
    """
    latest = 0.0
    try:
        with os.scandir(data() / prefix.path / "bin") as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if found.st_nlink == 1 and stat.S_ISREG(found.st_mode):
                    latest = max(latest, found.st_atime)
    except OSError:
        return None
    moment = datetime.fromtimestamp(latest, UTC)
    return moment if moment > prefix.created_at + OWN_READS else None


def measure_prefix(prefix: Prefix) -> None:
    """Measure a prefix by reading the size of each file; builds use `prefix.sizes` instead."""
    size = disk.tree_size(data() / prefix.path)
    Prefix.objects.filter(pk=prefix.pk).update(
        apparent_size=size.apparent,
        unique_size=size.unique,
        share_size=size.share,
        measured_at=timezone.now(),
    )
