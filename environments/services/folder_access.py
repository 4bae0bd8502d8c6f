"""Modes of `envs/<namespace>`, `prefixes/<namespace>` and the prefixes: who can read them.

Folders of a private namespace belong to the service alone, or to a Unix group set by
`CONDASTORE_NAMESPACE_GROUPS`; those of a public namespace are readable by everybody. A prefix may
be in the folder of another namespace than its environment, as copied and moved builds keep it. So
each prefix has the mode of the namespaces whose builds use it, and a folder below `prefixes/` that
holds prefixes of other namespaces can be passed through, but not listed.

Only folders are changed, never files, as files are shared with the package cache.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import structlog
from django.conf import settings
from django.db.models import QuerySet

from condastore.errors import InvalidInputError
from condastore.private_files import group_id
from environments.domain.folder_access import (
    EVERYONE,
    OWNER_ONLY,
    PASSAGE,
    WORLD_READABLE,
    FolderMode,
    GroupRule,
    combined,
    group_for,
    group_readable,
    parse_group_rules,
)
from environments.models import Build, Environment, Namespace

ENVS, PREFIXES = "envs", "prefixes"
logger = structlog.get_logger(__name__)


@lru_cache(maxsize=4)
def _rules(texts: tuple[str, ...]) -> tuple[GroupRule, ...]:
    try:
        return parse_group_rules(texts)
    except InvalidInputError as error:  # reported by checks.py; until then nothing is opened
        logger.error("namespace groups unreadable", error=error.message)
        return ()


def _data() -> Path:
    return Path(settings.DATA)


def rules() -> tuple[GroupRule, ...]:
    return _rules(tuple(settings.NAMESPACE_GROUPS))


def mode_for(namespace: str, *, public: bool) -> FolderMode:
    group = group_for(namespace, public=public, rules=rules())
    if group == EVERYONE:
        return WORLD_READABLE
    if not group:
        return OWNER_ONLY
    number = group_id(group)
    if number is None:
        logger.warning("unknown group", namespace=namespace, group=group)
        return OWNER_ONLY
    return group_readable(number)


def mode_of(namespace: Namespace) -> FolderMode:
    return mode_for(namespace.name, public=namespace.public)


# --- one namespace, one environment ---------------------------------------------------------------


def create_folder(root: str, namespace: Namespace) -> None:
    """Create `root`/<namespace> with mode 0700 first, then set its mode."""
    path = _data() / root / namespace.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    set_mode(path, mode_of(namespace), keep_passage=True)


def apply_to_namespace(namespace: Namespace) -> None:
    """Set the modes of an existing namespace's folders and prefixes."""
    for root in (ENVS, PREFIXES):
        set_mode(_data() / root / namespace.name, mode_of(namespace), keep_passage=True)
    _apply_to_prefixes(_modes(), Build.objects.filter(environment__namespace=namespace))


def apply_to_environment(environment: Environment) -> None:
    """Set the modes after a move or copy: prefixes may be in another namespace's folder."""
    _apply_to_prefixes(_modes(), Build.objects.filter(environment=environment))


def _modes() -> dict[str, FolderMode]:
    """Return the mode of every namespace; looks up each group once, as that may be slow."""
    publicity = Namespace.objects.values_list("name", "public")
    return {name: mode_for(name, public=public) for name, public in publicity}


def _apply_to_prefixes(
    modes: Mapping[str, FolderMode], holders: QuerySet[Build] | None = None
) -> dict[str, set[FolderMode]]:
    """Set the modes of the prefixes of the builds `holders` (None means all).

    Returns:
        Modes of the prefixes in each namespace's folder.
    """
    builds = Build.objects.exclude(prefix=None).filter(environment__deleted_at=None)
    if holders is not None:  # include builds that were copied from them
        builds = builds.filter(prefix__in=holders.exclude(prefix=None).values("prefix"))
    rows = builds.order_by("prefix__path").values_list(
        "prefix__path", "environment__namespace__name"
    )
    found: dict[str, set[FolderMode]] = {}
    for path, group in itertools.groupby(rows.distinct().iterator(), key=lambda row: row[0]):
        home = path.split("/")[1]  # prefixes/<namespace>/<folder>
        own = modes.get(home, OWNER_ONLY)
        mode = combined([modes.get(name, OWNER_ONLY) for _, name in group], own=own)
        found.setdefault(home, set()).add(mode)
        set_mode(_data() / path, mode)
    for home, given in found.items():
        if any(_is_wider(mode, modes.get(home, OWNER_ONLY)) for mode in given):
            _open_passage(_data() / PREFIXES / home)
    return found


def _is_wider(mode: FolderMode, own: FolderMode) -> bool:
    return mode not in (own, OWNER_ONLY)


# --- the whole data folder ------------------------------------------------------------------------


def apply() -> None:
    """Set the modes of all namespace folders and prefixes.

    Costs one `stat` for each folder if nothing has to change.
    """
    for root in (ENVS, PREFIXES):
        set_mode(_data() / root, WORLD_READABLE if _everything_is_open() else PASSAGE)
    modes = _modes()
    held = _apply_to_prefixes(modes)
    for root in (ENVS, PREFIXES):
        for path in sorted((_data() / root).glob("*")):
            own = modes.get(path.name, OWNER_ONLY)
            wider = root == PREFIXES and any(
                _is_wider(mode, own) for mode in held.get(path.name, ())
            )
            passage = stat.S_IXOTH if wider else 0
            set_mode(path, FolderMode(mode=own.mode | passage, group=own.group))


def _everything_is_open() -> bool:
    """Return whether the first rule is `*=*`, so that names of namespaces are public too."""
    return rules()[:1] == (GroupRule(pattern="*", group=EVERYONE),)


def set_mode(path: Path, wanted: FolderMode, *, keep_passage: bool = False) -> None:
    """Set mode and group of an existing folder at `path`.

    Args:
        keep_passage: keep the execute bit for others, if it is set.
    """
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return
        mode = wanted.mode
        if keep_passage and not status.st_mode & stat.S_IROTH:
            mode |= status.st_mode & stat.S_IXOTH
        if wanted.group is not None and status.st_gid != wanted.group:
            path.chmod(0o700)  # closed while the group changes
            os.chown(path, -1, wanted.group, follow_symlinks=False)
        elif stat.S_IMODE(status.st_mode) == mode:
            return
        path.chmod(mode)
    except FileNotFoundError:
        return
    except PermissionError as error:
        logger.warning("folder mode not set", path=str(path), error=error.strerror)


def _open_passage(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not mode & stat.S_IXOTH:
            path.chmod(mode | stat.S_IXOTH)
    except OSError as error:
        logger.warning("folder mode not set", path=str(path), error=error.strerror)
