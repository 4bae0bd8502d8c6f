"""Find READY builds whose folder is missing on the disk, and record what is to be linked again.

The rows say which folders there must be. One is missing after a restored backup, which holds the
packages but no folders, or when somebody removed it.
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
#: SQLite takes a limited number of variables in one statement.
BATCH = 500


def find() -> int:
    """Compare the rows with the folders; returns how many are newly found missing.

    Reads each folder of a namespace once. Idempotent, and safe beside itself.
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
            state=RestoreState.WAITING, attempt=0, not_before=now, found_at=now, failure=None
        )
    if new:
        logger.warning("folders of READY builds are missing", number=len(new))
    return len(new)


def _missing(rows: Iterator[tuple[int, str]]) -> Iterator[int]:
    """Yield the keys of prefixes without a folder; `rows`: (key, path), in the order of paths."""
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
    """Their folder is there again, or is not wanted any more. What is being linked is left."""
    for batch in _batches(sorted(prefixes)):
        rows = FolderRestore.objects.filter(prefix__in=batch).exclude(state=RestoreState.RESTORING)
        rows.filter(Q(restored=0)).delete()
        rows.update(state=RestoreState.RESTORED, failure=None)


def _batches(keys: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]


def hidden_name(final: Path, token: int) -> Path:
    """Where one attempt links a missing folder; `r` sets it apart from attempts of builds."""
    return final.with_name(f".{final.name}.r{token}")


def is_being_linked(path: Path) -> bool:
    """Whether `path` is the hidden folder of an attempt that is under way."""
    name, _, token = path.name.removeprefix(".").rpartition(".r")
    if not path.name.startswith(".") or not token.isdecimal():
        return False
    final = path.with_name(name).relative_to(folders.data()).as_posix()
    running = FolderRestore.objects.filter(state=RestoreState.RESTORING, lease_token=int(token))
    return running.filter(prefix__path=final).exists()
