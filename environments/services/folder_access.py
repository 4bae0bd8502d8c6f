"""Modes of `envs/<namespace>`, `prefixes/<namespace>` and the prefixes: who reaches them.

A private namespace's folders are the service's alone, or a Unix group's where
`CONDASTORE_NAMESPACE_GROUPS` says so; a public one's are readable by everybody. A prefix may lie
in the folder of another namespace than its environment: builds that were copied or moved keep it.
So each prefix has the mode of the namespaces whose builds it belongs to, and a folder of
`prefixes/` can be passed through, but not listed, where it holds a prefix of others.

Only folders are changed, never files: those are shared with the cache.
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
    except InvalidInputError as error:  # checks.py reports it; until then nothing is opened
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


# --- one namespace, one environment --------------------------------------------------------------


def create_folder(root: str, namespace: Namespace) -> None:
    """Create `root`/<namespace>, closed from the first moment, and give it its mode."""
    path = _data() / root / namespace.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    set_mode(path, mode_of(namespace), keep_passage=True)


def apply_to_namespace(namespace: Namespace) -> None:
    """Give the folders of a namespace and its prefixes their modes; where there are any."""
    for root in (ENVS, PREFIXES):
        set_mode(_data() / root / namespace.name, mode_of(namespace), keep_passage=True)
    _apply_to_prefixes(_modes(), Build.objects.filter(environment__namespace=namespace))


def apply_to_environment(environment: Environment) -> None:
    """After it was moved or copied: its prefixes may lie in another namespace's folder."""
    _apply_to_prefixes(_modes(), Build.objects.filter(environment=environment))


def _modes() -> dict[str, FolderMode]:
    """The mode of every namespace: groups are looked up once, which may take a while."""
    publicity = Namespace.objects.values_list("name", "public")
    return {name: mode_for(name, public=public) for name, public in publicity}


def _apply_to_prefixes(
    modes: Mapping[str, FolderMode], holders: QuerySet[Build] | None = None
) -> dict[str, set[FolderMode]]:
    """Give the prefixes of the builds `holders` (None: all) their modes.

    Returns:
        Namespace of the folder that a prefix lies in -> modes of the prefixes there.
    """
    builds = Build.objects.exclude(prefix=None).filter(environment__deleted_at=None)
    if holders is not None:  # and others that were copied from them
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


# --- everything ----------------------------------------------------------------------------------


def apply() -> None:
    """Give all folders of namespaces and all prefixes their modes.

    Cheap where nothing is to be changed: one look at each folder.
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
    """`*=*` comes first: then the names of namespaces are no secret either."""
    return rules()[:1] == (GroupRule(pattern="*", group=EVERYONE),)


def set_mode(path: Path, wanted: FolderMode, *, keep_passage: bool = False) -> None:
    """Set mode and group of the folder at `path`; nothing where there is none.

    Args:
        keep_passage: leave it to others to pass through it, where they do.
    """
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return
        mode = wanted.mode
        if keep_passage and not status.st_mode & stat.S_IROTH:
            mode |= status.st_mode & stat.S_IXOTH
        if wanted.group is not None and status.st_gid != wanted.group:
            path.chmod(0o700)  # nobody's while it changes hands
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
