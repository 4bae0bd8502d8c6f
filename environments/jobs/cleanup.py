"""What workers do beside builds: empty the trash, find orphans, follow pointers, read channels."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from datetime import timedelta
from pathlib import Path

import structlog
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from condastore.errors import StoreError
from environments.domain.artifacts import ArtifactState
from environments.domain.lifecycle import RUNNING
from environments.engine.channels.first_seen import Scan
from environments.engine.channels.jobs import Described
from environments.engine.packages import file_modes
from environments.engine.prefix import linking
from environments.engine.pypi.resolve import WORK_FOLDER
from environments.engine.solve.lock_completion import UNLISTED_PREFIX
from environments.models import (
    Artifact,
    Build,
    Channel,
    Environment,
    IndexedPackage,
    LockRow,
    Prefix,
)
from environments.services import (
    blobs,
    data_folder_marker,
    folder_access,
    folders,
    mirrors,
    missing_folders,
    recalled_locks,
    thread_bounds,
)
from environments.services.engine_context import get_engine

logger = structlog.get_logger(__name__)
#: A folder that no row knows is an orphan only when it is older than any attempt may be.
GRACE = timedelta(minutes=10)
#: A download that was cut is worth keeping as long as somebody may continue it.
LEFTOVER = timedelta(days=1)
#: What the folder of an attempt at an artifact is called.
_ATTEMPT = re.compile(r"(documents-)?(?P<artifact>[0-9]+)-(?P<token>[0-9]+)(-[0-9a-f]+)?")

#: How long reading a whole channel for search may take.
INDEX_TIME_LIMIT = timedelta(minutes=8)

#: How old the count of what a prefix shares may become.
REMEASURE = timedelta(hours=1)


def tidy() -> None:
    """Safe beside everything else, and beside itself.

    Nothing is done in a data folder that is not the installation's: every folder seems lost there.
    """
    if fault := data_folder_marker.fault():
        logger.error("no upkeep of the data folder", reason=fault)
        return
    drop_prefixes()
    recalled_locks.follow_all()
    missing_folders.record_missing()
    drop_orphans()
    drop_leftovers()
    follow_pointers()
    folder_access.apply()
    repair_file_modes()
    measure_again()
    note_use_of_folders()
    linking.empty_trash(folders.data() / folders.TRASH, cancelled=lambda: False)


def measure_again(*, older: timedelta = REMEASURE, most: int = 20) -> None:
    """Recount the shared sizes of prefixes, which depend on other prefixes, oldest count first.

    A few at a time, so that it costs next to nothing.
    """
    old = Prefix.objects.filter(measured_at__lt=timezone.now() - older).order_by("measured_at")
    for prefix in old[:most]:
        folders.measure_prefix(prefix)


def note_use_of_folders(*, most: int = 200) -> int:
    """Note when somebody last used the folders of some environments; returns how many were.

    A part of them each time, in turns: the file system is asked, where it tells.
    """
    global _looked_at
    rows = Environment.objects.present().exclude(current__prefix=None).order_by("pk")
    found = list(rows.filter(pk__gt=_looked_at).select_related("current__prefix")[:most])
    _looked_at = found[-1].pk if len(found) == most else 0
    noted = 0
    for environment in found:
        prefix = environment.current.prefix if environment.current else None
        read_at = folders.last_read(prefix) if prefix else None
        if read_at is not None:
            older = Q(used_at=None) | Q(used_at__lt=read_at)
            row = Environment.objects.filter(older, pk=environment.pk)
            noted += row.update(used_at=read_at)
    return noted


def repair_file_modes() -> int:
    """Once in a data folder: take write access from others, where archives of packages gave it."""
    done = folders.data() / "run" / "file-modes-repaired"
    if done.exists():
        return 0
    roots = (folders.data() / folders.PREFIXES, get_engine().cache)
    changed = sum(file_modes.take_write_from_others(root) for root in roots)
    if changed:
        logger.warning("others could write files of packages", repaired=changed)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    return changed


#: The last environment whose folder was looked at.
_looked_at = 0


def drop_prefixes() -> int:
    """Trash the folders of prefixes that no build has any more; returns how many."""
    dropped = 0
    for prefix in Prefix.objects.filter(builds=None).iterator():
        with transaction.atomic():
            # The row first: a build that takes it at this moment is waited for, and then seen.
            Prefix.objects.select_for_update().filter(pk=prefix.pk).first()
            gone, _ = Prefix.objects.filter(pk=prefix.pk, builds=None).delete()
            path = folders.data() / prefix.path
            if gone and path.is_dir():
                _lead_away(path)
                linking.move_to_trash(path, folders.data() / folders.TRASH)
        dropped += bool(gone)
    return dropped


def _lead_away(prefix: Path) -> None:
    """Let no folder of `envs/` lead to this prefix, whose worker was killed before READY."""
    for link in (folders.data() / folders.ENVS / prefix.parent.name).glob("[!.]*"):
        with contextlib.suppress(OSError):
            if link.readlink().name == prefix.name:
                folders.follow(prefix.parent.name, link.name)


def drop_orphans(*, grace: timedelta = GRACE) -> int:
    """Trash folders below `prefixes/` that no row and no running build knows."""
    root = folders.data() / folders.PREFIXES
    oldest = time.time() - grace.total_seconds()
    dropped = 0
    for path in sorted(root.glob("*/*")):
        if path.is_symlink() or not path.is_dir() or path.lstat().st_mtime > oldest:
            continue
        if not _known(path):
            logger.warning("orphan folder", path=str(path))
            linking.move_to_trash(path, folders.data() / folders.TRASH)
            dropped += 1
    return dropped


def _known(path: Path) -> bool:
    relative = path.relative_to(folders.data()).as_posix()
    if Prefix.objects.filter(path=relative).exists():
        return True
    # Hidden folders are `.<final name>.<lease token>`; other ones may be about to get their row.
    if missing_folders.is_being_linked(path):
        return True
    number = path.name.lstrip(".").split("-", 1)[0]
    running = Build.objects.filter(state__in=RUNNING, environment__namespace__name=path.parent.name)
    if number.isdecimal():
        running = running.filter(number=int(number))
    if path.name.startswith("."):
        token = path.name.rsplit(".", 1)[-1]
        running = running.filter(lease_token=token) if token.isdecimal() else running.none()
    return running.exists()


def drop_leftovers(*, grace: timedelta = GRACE) -> None:
    """Remove what killed workers left half done in the caches and among the links."""
    get_engine().packages.remove_leftovers(older_than=LEFTOVER)
    get_engine().wheels.remove_leftovers(older_than=LEFTOVER)
    get_engine().remove_leftover_builds(older_than=LEFTOVER)
    get_engine().parts.remove_leftovers(older_than=LEFTOVER)
    get_engine().bytecode.remove_leftovers(older_than=LEFTOVER)
    get_engine().remove_former_caches()
    mirrors.delete_leftovers(older_than=LEFTOVER)
    _drop_unlisted(older=LEFTOVER)
    _drop_of_uv(older=LEFTOVER)
    _drop_uploads(older=LEFTOVER)
    oldest = time.time() - grace.total_seconds()
    _drop_attempts(oldest)
    for link in (folders.data() / folders.ENVS).glob("*/.*"):
        with contextlib.suppress(FileNotFoundError):
            if link.is_symlink() and link.lstat().st_mtime < oldest:
                link.unlink()


def _drop_attempts(oldest: float) -> None:
    """Remove the folders in which killed workers made artifacts."""
    for path in blobs.blobs_folder().glob("*"):
        attempt = _ATTEMPT.fullmatch(path.name)
        with contextlib.suppress(FileNotFoundError):
            created = attempt and Artifact.objects.filter(
                pk=attempt["artifact"], lease_token=attempt["token"], state=ArtifactState.MAKING
            )
            limit = oldest if attempt else time.time() - LEFTOVER.total_seconds()
            if path.stat().st_mtime < limit and not (created and created.exists()):
                linking.move_to_trash(path, folders.data() / folders.TRASH)


def _drop_unlisted(*, older: timedelta) -> None:
    """Of workers that were killed while they asked unlisted packages for what they are."""
    oldest = time.time() - older.total_seconds()
    for path in (get_engine().cache / "repodata").glob(f"**/{UNLISTED_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path)


def _drop_of_uv(*, older: timedelta) -> None:
    """Remove temporary files and folders of uv processes that were killed, from its caches."""
    oldest = time.time() - older.total_seconds()
    cache = get_engine().cache / "uv"
    work = cache.glob(f"{WORK_FOLDER}*")
    for path in (*work, *cache.glob("*/.tmp*"), *cache.glob("*/*/.tmp*")):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime >= oldest:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _drop_uploads(*, older: timedelta) -> None:
    """Of web processes that were killed while they took a package, or converted a wheel."""
    oldest = time.time() - older.total_seconds()
    for path in (folders.data() / "cache" / "uploads").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= oldest:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def follow_pointers() -> int:
    """Put right the folders that do not lead where their environment's pointer says."""
    changed = 0
    present = Environment.objects.present().select_related("namespace")
    for namespace, name in present.values_list("namespace__name", "name").iterator():
        changed += folders.follow(namespace, name)
    root = folders.data() / folders.ENVS
    for link in root.glob("*/*"):
        if link.is_symlink() and not link.name.startswith("."):
            changed += folders.follow(link.parent.name, link.name)
    return changed


def index_channel(channel_id: int) -> bool:
    """Read what a channel offers into rows, for search, and remember when each file came.

    Nothing to do if it has not changed. A channel that cannot be read is noted in the log.

    Returns:
        False if no more of this worker's threads may read channels now: try again later.
    """
    with thread_bounds.hold(thread_bounds.Kind.INDEXING) as free:
        if free:
            try:
                _index_channel(channel_id)
            except StoreError as error:
                logger.warning("channel not indexed", channel=channel_id, error=str(error))
    return free


def _index_channel(channel_id: int) -> None:
    channel = Channel.objects.get(pk=channel_id)
    engine = get_engine().solver(())
    requested = _platforms_in_use()
    state = engine.channel_state((channel.url,), requested, time_limit=INDEX_TIME_LIMIT)
    if state == channel.indexed_state:
        Channel.objects.filter(pk=channel.pk).update(indexed_at=timezone.now())
        return
    poll = Scan(folders.data() / folders.SEEN, channel.url)
    updated = ("latest_version", "versions", "subdirs", "license", "summary")
    names: set[str] = set()
    batch: list[IndexedPackage] = []

    def store() -> None:
        IndexedPackage.objects.bulk_create(
            batch,
            update_conflicts=True,
            unique_fields=["channel", "name"],
            update_fields=updated,
        )
        batch.clear()

    def see(described: Described) -> None:
        entry = described.entry
        for subdir, digests in described.digests.items():
            for digest in digests:
                poll.add(subdir, digest)
        names.add(entry.name)
        batch.append(
            IndexedPackage(
                channel=channel,
                name=entry.name,
                latest_version=entry.latest_version,
                versions=entry.versions,
                subdirs=list(entry.subdirs),
                license=entry.license,
                summary=entry.summary,
            )
        )
        if len(batch) >= 100:
            store()

    engine.describe(channel.url, requested, each=see, time_limit=INDEX_TIME_LIMIT)
    store()
    poll.save(now=time.time())
    for old in IndexedPackage.objects.filter(channel=channel).iterator():
        if old.name not in names:
            old.delete()
    Channel.objects.filter(pk=channel.pk).update(indexed_state=state, indexed_at=timezone.now())


def _platforms_in_use() -> tuple[str, ...]:
    """Those of the newest locks; linux-64 always."""
    newest = LockRow.objects.order_by("-pk").values_list("platforms", flat=True)[:500]
    return tuple(sorted({"linux-64"}.union(*newest)))
