"""The folders under `envs/`: each a symbolic link that follows its environment's pointer."""

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
SEEN = "first-seen"  # when each package of a channel was first seen: nothing can tell it again
#: Where the folders of recalled builds wait, for their end or for the recall to be undone.
RECALLED = "recalled"
#: The length of the placeholder in which conda packages keep room for a prefix.
CONDA_PREFIX_LENGTH = 255


def data() -> Path:
    return Path(settings.DATA)


def link_path(namespace: str, name: str) -> Path:
    return data() / ENVS / namespace / name


def prefix_path(build: Build) -> Path | None:
    """Where the build's files are; None where it is not READY, or was recalled."""
    if build.prefix is None or build.state != BuildState.READY:
        return None
    recalled = RecalledLock.objects.active().filter(lock=build.prefix.lock_id)
    return None if recalled.exists() else data() / build.prefix.path


def planned_prefix(build: Build) -> str:
    """Below the data folder: `prefixes/<namespace>/<number>-<lock digest, 12>-<environment>`."""
    environment = build.environment
    assert build.lock is not None
    leaf = f"{build.number}-{build.lock.digest[:12]}-{environment.name}"
    path = f"{PREFIXES}/{environment.namespace.name}/{leaf}"
    # An environment that was renamed or moved keeps the folders that bear its old name, and upkeep
    # may be about to remove the folder of an attempt that ended after it was named.
    for free in (path, f"{path}-{build.pk}"):
        if not Prefix.objects.filter(path=free).exclude(builds=build).exists():
            return free
    return f"{path}-{build.pk}.{build.lease_token}"


@contextmanager
def _alone(namespace: str, name: str) -> Iterator[None]:
    """One process at a time changes a link: the last to read the pointer is the last to write."""
    locks = data() / "run" / "links"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{namespace}~{name}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def follow(namespace: str, name: str) -> bool:
    """Make the folder of this environment follow the pointer; True if it had to change."""
    if not _astray(namespace, name):
        return False
    # The row first, then the link, as those who move the pointer do: who looked at the pointer
    # while a move of it was under way would else lead the folder back.
    with transaction.atomic():
        rows = Environment.objects.select_for_update()
        rows = rows.filter(namespace__name=namespace, name=name, deleted_at=None)
        environment = rows.first()
        with _alone(namespace, name):
            if not _astray(namespace, name):
                return False
            link, target = link_path(namespace, name), _target(namespace, name)
            if target is None or environment is None:
                linking.unpoint(link)
            else:
                folder_access.create_folder(ENVS, environment.namespace)
                linking.point(link, target)
    return True


def _target(namespace: str, name: str) -> Path | None:
    """Where the pointer of this environment leads; None where it has none, or nothing is there."""
    environment = (
        Environment.objects.present()
        .select_related("current__prefix")
        .filter(namespace__name=namespace, name=name)
        .first()
    )
    build = environment.current if environment else None
    target = prefix_path(build) if build else None
    return target if target is not None and target.is_dir() else None


def _astray(namespace: str, name: str) -> bool:
    """Whether the folder leads elsewhere than the pointer."""
    link, target = link_path(namespace, name), _target(namespace, name)
    if target is None:
        return link.is_symlink()
    return not (link.is_symlink() and link.resolve() == target.resolve())


def follow_environment(environment: Environment) -> bool:
    return follow(environment.namespace.name, environment.name)


def require_room(namespace: str, name: str) -> None:
    """Refuse names whose prefix would be longer than what conda packages leave room for."""
    longest = len(str(data() / PREFIXES / namespace / f"{10**6}-{'f' * 12}-{name}"))
    if longest > CONDA_PREFIX_LENGTH:
        raise InvalidInputError(
            f"The name is {longest - CONDA_PREFIX_LENGTH} characters too long here: conda packages "
            f"leave room for paths of {CONDA_PREFIX_LENGTH}.",
            where="name",
            hint="Choose a shorter name.",
        )


def discard(prefix: Path, environment: Environment) -> None:
    """Send a prefix to the trash; first the folder follows the pointer, if it led here."""
    follow_environment(environment)
    if prefix.exists():
        linking.to_trash(prefix, data() / TRASH)


# --- what was recalled --------------------------------------------------------------------------


def set_aside(path: str) -> bool:
    """Take a prefix (`prefixes/...`) out of everybody's reach by one rename.

    No file in it is touched: others share them. What runs in it goes on with what it has open.
    """
    place = _aside(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    (data() / RECALLED).chmod(0o700)
    return _renamed(data() / path, place)


def put_back(path: str) -> bool:
    """Give a prefix back its name; False where it was not set aside."""
    place = _aside(path)
    return place.is_dir() and _renamed(place, data() / path)


def aside() -> list[str]:
    """What is set aside, by the path that it had."""
    root = data() / RECALLED
    return [f"{PREFIXES}/{found.relative_to(root).as_posix()}" for found in root.glob("*/*")]


def drop_aside(path: str) -> None:
    linking.to_trash(_aside(path), data() / TRASH)


def _aside(path: str) -> Path:
    return data() / RECALLED / Path(path).relative_to(PREFIXES)


def _renamed(old: Path, new: Path) -> bool:
    if new.exists():
        return False
    try:
        old.rename(new)
    except FileNotFoundError:
        return False
    return True


#: What the installation itself reads of a prefix, it reads within this time after making it.
OWN_READS = timedelta(minutes=10)


def last_read(prefix: Prefix) -> datetime | None:
    """When somebody last started a program of it; None where the file system does not tell.

    Of the files that only it holds: those that prefixes share are read for others, too. On most
    file systems a day may pass before a second look is noted (`relatime`); on some, none is.
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
    """Measure a prefix by a look at each of its files; `prefix_sizes` is what a build does."""
    size = disk.tree_size(data() / prefix.path)
    Prefix.objects.filter(pk=prefix.pk).update(
        apparent_size=size.apparent,
        unique_size=size.unique,
        share_size=size.share,
        measured_at=timezone.now(),
    )
