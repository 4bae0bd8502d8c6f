"""Find READY builds whose folder is missing on the disk, and record them for restoring.

The rows say which folders should exist. One is missing after a backup was restored, as backups hold
packages but no folders, or after somebody deleted it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import structlog
from django.db.models import Q
from django.utils import timezone

from environments.models import FolderRestore
from environments.models.folder_restores import RestoreState, wanted_prefixes
from environments.services import folders

logger = structlog.get_logger(__name__)
#: SQLite limits the number of variables in one statement.
BATCH = 500


def record_missing() -> int:
    """Compare the rows with the folders, and return the number of newly missing folders.

    Lists each namespace's folder once. Idempotent, and safe to run concurrently.
    """
    rows = wanted_prefixes().order_by("path").values_list("pk", "path")
    missing = set(_missing(rows.iterator()))
    known = dict(FolderRestore.objects.values_list("prefix", "state"))
    waiting = {prefix for prefix, state in known.items() if state != RestoreState.RESTORED}
    _forget(waiting - missing)
    new = missing - waiting
    for batch in _batches(sorted(new)):
        FolderRestore.objects.bulk_create(
            [FolderRestore(prefix_id=prefix) for prefix in batch if prefix not in known],
            ignore_conflicts=True,
        )
        again = FolderRestore.objects.filter(prefix__in=batch, state=RestoreState.RESTORED)
        now = timezone.now()
        again.update(
            state=RestoreState.WAITING,
            attempt=0,
            not_before=now,
            message_sent_at=None,
            found_at=now,
            failure=None,
        )
    if new:
        logger.warning("folders of READY builds are missing", number=len(new))
    return len(new)


def _missing(rows: Iterator[tuple[int, str]]) -> Iterator[int]:
    """Yield the keys of prefixes without a folder. `rows` are (key, path), ordered by path."""
    for parent, group in groupby(rows, key=lambda row: row[1].rpartition("/")[0]):
        try:
            with os.scandir(folders.data() / parent) as entries:
                there = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except FileNotFoundError:
            there = set()
        for key, path in group:
            if path.rpartition("/")[2] not in there:
                yield key


def _forget(prefixes: Iterable[int]) -> None:
    """Delete records of folders that exist again or are no longer needed, unless being linked."""
    for batch in _batches(sorted(prefixes)):
        rows = FolderRestore.objects.filter(prefix__in=batch).exclude(state=RestoreState.RESTORING)
        rows.filter(Q(restored=0)).delete()
        rows.update(state=RestoreState.RESTORED, failure=None)


def _batches(keys: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def hidden_name(final: Path, token: int) -> Path:
    """Return the hidden folder of one attempt; `r` distinguishes it from attempts of builds."""
    return final.with_name(f".{final.name}.r{token}")


def is_being_linked(path: Path) -> bool:
    """Return whether `path` is the hidden folder of an attempt in progress."""
    name, _, token = path.name.removeprefix(".").rpartition(".r")
    if not path.name.startswith(".") or not token.isdecimal():
        return False
    final = path.with_name(name).relative_to(folders.data()).as_posix()
    running = FolderRestore.objects.filter(state=RestoreState.RESTORING, lease_token=int(token))
    return running.filter(prefix__path=final).exists()
