"""How do the packages of a lock become a prefix, and how does a prefix appear and disappear?"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rattler import MatchSpec, install
from rattler.exceptions import InstallerError, IoError, TransactionError
from rattler.exceptions import LinkError as RattlerLinkError
from rattler.install import InstallerReporter
from rattler.package_cache import PackageCache as RattlerCache
from rattler.package_cache import ValidationMode
from rattler.platform import Subdir

from condastore.errors import ConflictError, DiskSpaceError, LinkError
from environments.domain.linking import (
    CLOBBERS,
    PathCheck,
    PathConflict,
    PythonInfo,
    check_paths,
    prefix_path,
)
from environments.domain.lock import PlatformLock
from environments.domain.names import printable
from environments.domain.progress import Cancelled, Progress, Report, ignore, never, obey
from environments.domain.records import CondaPackage
from environments.engine.channels.records import to_rattler
from environments.engine.packages.cache import CachedPackage, PackageCache
from environments.engine.system.disk import remove_tree

logger = logging.getLogger(__name__)
#: What a panic of rattler's becomes; neither class has a module to import it from.
_PANICS = ("PanicException", "RustPanic")
POLL = 0.1  # seconds between two looks at a cancel
FROZEN = (
    "This environment is made and kept by condastore. Change its specification there, "
    "or copy the environment, instead of installing into it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """What was linked. A prefix's cost beside its cache is `bytes_unique`."""

    paths: int
    bytes_apparent: int
    bytes_unique: int  # of files that were copied to replace the prefix in them
    link_scripts: Mapping[str, tuple[str, ...]]  # package: its scripts, none of which was run
    python: PythonInfo | None
    conflicts: tuple[PathConflict, ...] = ()  # files of packages that others replaced


def python_of(packages: Sequence[CondaPackage], platform: str) -> PythonInfo | None:
    """The Python that `packages` bring, if they bring one."""
    for package in packages:
        if package.name == "python":
            return PythonInfo.of(
                package.version,
                platform=platform,
                site_packages=str(package.record.get("python_site_packages_path") or ""),
            )
    return None


def link(
    lock: PlatformLock,
    *,
    target: Path,
    final_prefix: Path,
    cache: PackageCache,
    packages: Sequence[CachedPackage],
    requested: Sequence[str],
    variables: Mapping[str, str],
    moment: datetime,
    note: str,
    checked: PathCheck | None = None,
    progress: Report = ignore,
    cancelled: Cancelled = never,
) -> LinkReport:
    """Link `packages`, those of `lock`, into the new folder `target`, as if it were `final_prefix`.

    Args:
        packages: what `cache.ensure(lock.conda)` gave.
        requested: the conda requirements of the specification, for conda's own notes.
        variables: what activation sets.
        moment, note: go into the history: when, and what made the prefix.
        checked: what `check_paths` says of these packages and `final_prefix`, where it is known.
    Raises:
        LinkError: packages that clash or cannot be linked; every one of them is named.
        DiskSpaceError, LeaseLostError: `target` is left as it is, to be thrown away.
    """
    python = python_of(lock.conda, lock.platform)
    checked = checked or check_paths(
        [cached.contents for cached in packages],
        python=python,
        platform=lock.platform,
        prefix=str(final_prefix),
    )
    if faults := checked.faults:
        raise LinkError(
            "; ".join(fault.reason.rstrip(".") for fault in faults[:20]) + ".",
            hint="Ask for other versions of these packages, or leave one of them out.",
            details={
                "faults": [
                    {"packages": fault.packages, "path": fault.path, "reason": fault.reason}
                    for fault in faults
                ]
            },
        )
    obey(cancelled)
    try:
        target.mkdir(parents=True, mode=0o700)  # until it is published
        with cache.view(packages) as view:
            _install(lock, target, final_prefix, view, requested, progress, cancelled)
            _refuse_misplaced_links(packages, target, python)
            _keep_winners(checked.conflicts, packages, target)
            _tidy(target, view, packages)
        _close_entry_points(packages, target, python)
        _make_folders(packages, target, python)
        _write_notes(lock, target, requested, variables, moment, note)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                "The disk is full: the environment could not be linked."
            ) from error
        raise
    return _report(packages, python, checked.conflicts)


def _install(
    lock: PlatformLock,
    target: Path,
    final_prefix: Path,
    view: Path,
    requested: Sequence[str],
    progress: Report,
    cancelled: Cancelled,
) -> None:
    # mypy takes rattler's methods that do nothing for abstract ones.
    counter = _Counter(total=len(lock.conda), progress=progress)  # type: ignore[abstract]
    # py-rattler 0.28 says that it takes MatchSpecs, and takes only what is inside them.
    specs: list[Any] = [MatchSpec(each)._match_spec for each in requested]

    async def run() -> None:
        task = asyncio.ensure_future(
            install(
                [to_rattler(package) for package in lock.conda],
                target.absolute(),
                installed_packages=[],
                platform=Subdir(lock.platform),
                execute_link_scripts=False,
                requested_specs=specs,
                reporter=counter,
                alternative_target_prefix=final_prefix,
                # What is in the cache was checked when it was asked for.
                package_cache=RattlerCache.new_layered(
                    [view], validation_mode=ValidationMode.skip()
                ),
            )
        )
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=POLL)
                obey(cancelled)
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        task.result()

    try:
        asyncio.run(run())
    except (InstallerError, RattlerLinkError, TransactionError, IoError) as error:
        message = str(error)
        if any(f"os error {code}" in message for code in (errno.ENOSPC, errno.EDQUOT)):
            raise DiskSpaceError(
                "The disk is full: the environment could not be linked."
            ) from error
        # Where the cache lies is nothing to whoever reads the message.
        message = message.replace(f"{view}/", "").replace(f"{target}/", "")
        raise LinkError(f"The packages cannot be linked: {message}.") from error
    except BaseException as error:
        if type(error).__name__ not in _PANICS:
            raise
        logger.exception("rattler panicked")
        raise LinkError(
            "The packages cannot be linked: one of them holds what the installer cannot handle."
        ) from error


class _Counter(InstallerReporter):
    """Tells the progress of rattler's work, as it calls it from its own threads."""

    def __init__(self, *, total: int, progress: Report) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._names: list[str] = []

    def on_link_start(self, operation: int, package_name: str) -> int:
        self._names.append(package_name)
        return len(self._names) - 1

    def on_link_complete(self, index: int) -> None:
        self._done += 1
        self._progress(
            Progress(
                stage="linking", done=self._done, total=self._total, current=self._names[index]
            )
        )


def _keep_winners(
    conflicts: Sequence[PathConflict], packages: Sequence[CachedPackage], target: Path
) -> None:
    """Have the file of the package that is linked last at each conflicting path.

    rattler keeps the file of another one where neither needs the other, and moves the rest into
    `__clobbers__/NAME/`. What is at the path afterwards must be what the winner's record says.

    Raises:
        LinkError: it is something else.
    """
    if not conflicts:
        return
    names = {cached.contents.label: cached.contents.name for cached in packages}
    expected: dict[str, dict[str, str]] = {}
    for conflict in conflicts:
        label, place = conflict.winner, target / conflict.path
        aside = target / CLOBBERS / names[label] / conflict.path
        if os.path.lexists(aside):
            aside.replace(place)
        if label not in expected:
            expected[label] = _linked_digests(target, label)
        if place.is_symlink() or _sha256(place) != expected[label].get(conflict.path):
            raise LinkError(
                f"{printable(conflict.path)} of {label} was not linked as its record says.",
                hint="Leave out one of the packages that bring this file: "
                f"{', '.join((label, *conflict.replaced))}.",
            )


def _linked_digests(target: Path, label: str) -> dict[str, str]:
    """Path in the prefix -> sha256 of its content there, by conda's note of a linked package."""
    note = json.loads((target / "conda-meta" / f"{label}.json").read_bytes())
    return {
        entry.get("original_path") or entry["_path"]: entry.get("sha256_in_prefix")
        or entry.get("sha256", "")
        for entry in note["paths_data"]["paths"]
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tidy(target: Path, view: Path, packages: Sequence[CachedPackage]) -> None:
    """Take what rattler leaves that is not of the environment out of `target`.

    Its notes name the view, which is about to go, and are readable by their owner only; equal
    files of two packages stand twice; and a tag tells backups that the folder is a mere cache.
    """
    (target / "CACHEDIR.TAG").unlink(missing_ok=True)
    clobbered = target / CLOBBERS
    parents = {cached.folder.name: cached.folder.parent for cached in packages}
    for path in (target / "conda-meta").glob("*.json"):
        with path.open("r+b") as file:  # rewritten in place: no other prefix has this inode
            text = file.read().decode()
            text = text.replace(
                f'"{view}/{path.stem}"', json.dumps(f"{parents[path.stem]}/{path.stem}")
            )
            if '"__clobbers__/' in text:
                text = re.sub(r'"__clobbers__/[^/"]+/', '"', text)
                text = re.sub(r'\n *"original_path": "[^\n]*",(?=\n)', "", text)
            file.seek(0)
            file.truncate(file.write(text.encode()))
            os.fchmod(file.fileno(), 0o644)
    if clobbered.exists():
        shutil.rmtree(clobbered)


def _refuse_misplaced_links(
    packages: Sequence[CachedPackage], target: Path, python: PythonInfo | None
) -> None:
    """Raise LinkError unless each symbolic link is where it was judged.

    A link that rattler put elsewhere may lead out of the prefix, and what is written later would
    follow it.
    """
    for cached in packages:
        noarch = cached.contents.noarch_python
        for file in cached.contents.files:
            if file.kind != "link":
                continue
            place = prefix_path(file.path, noarch_python=noarch, python=python)
            try:
                found = os.readlink(f"{target}/{place}")  # noqa: PTH115  # Path rewrites "./x"
            except OSError:
                found = ""
            if found != file.target:
                raise LinkError(
                    f"The link {printable(place)} of {cached.contents.label} was not linked where "
                    "it was expected.",
                    where=cached.package.url,
                )


def _close_entry_points(
    packages: Sequence[CachedPackage], target: Path, python: PythonInfo | None
) -> None:
    """Let nobody but the owner write entry points, which rattler writes for this prefix as 0775."""
    for cached in packages:
        if python is None or not cached.contents.noarch_python:
            continue
        for entry_point in cached.contents.entry_points:
            script = target / python.scripts / entry_point.partition("=")[0].strip()
            with contextlib.suppress(FileNotFoundError):  # of another form on this platform
                script.chmod(0o755, follow_symlinks=False)


def _make_folders(
    packages: Sequence[CachedPackage], target: Path, python: PythonInfo | None
) -> None:
    for cached in packages:
        for file in cached.contents.files:
            if file.kind == "folder":
                noarch = cached.contents.noarch_python
                place = prefix_path(file.path, noarch_python=noarch, python=python)
                (target / place).mkdir(parents=True, exist_ok=True)


def _write_notes(
    lock: PlatformLock,
    target: Path,
    requested: Sequence[str],
    variables: Mapping[str, str],
    moment: datetime,
    note: str,
) -> None:
    """What conda wants to know of a prefix: its history, its variables, that it is frozen."""
    meta = target / "conda-meta"
    lines = [
        f"==> {moment:%Y-%m-%d %H:%M:%S} <==",
        f"# cmd: {note}",
        *(
            f"+{package.channel}/{package.subdir}::{package.name}-{package.version}-{package.build}"
            for package in sorted(lock.conda, key=lambda package: package.name)
        ),
        f"# update specs: {json.dumps(list(requested))}",
    ]
    (meta / "history").write_text("\n".join(lines) + "\n")
    (meta / "frozen").write_text(json.dumps({"message": FROZEN}) + "\n")  # CEP 22
    (meta / "state").write_text(
        json.dumps({"version": 1, "env_vars": dict(variables)}, indent=2) + "\n"
    )


def _report(
    packages: Sequence[CachedPackage],
    python: PythonInfo | None,
    conflicts: Sequence[PathConflict],
) -> LinkReport:
    files = [file for cached in packages for file in cached.contents.files if file.kind != "folder"]
    return LinkReport(
        paths=len(files),
        bytes_apparent=sum(file.size for file in files),
        bytes_unique=sum(file.size for file in files if file.placeholder),
        link_scripts={
            cached.contents.label: cached.contents.link_scripts
            for cached in packages
            if cached.contents.link_scripts
        },
        python=python,
        conflicts=tuple(conflicts),
    )


def publish_prefix(hidden: Path, final: Path, *, mode: int | None = 0o755) -> None:
    """Rename the finished `hidden` to `final`, which must not exist, and make that last.

    Whoever sees `final` after a crash of the machine sees all of it.

    Args:
        mode: of the folder, whatever the umask; None where it has the right one.
    """
    if os.path.lexists(final):
        raise ConflictError(f"{final.name} is there already and is never replaced.")
    final.parent.mkdir(parents=True, exist_ok=True)
    if mode is not None:
        hidden.chmod(mode)
    _sync_file_system(hidden)
    try:
        hidden.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConflictError(f"{final.name} is there already and is never replaced.") from error
        raise
    _sync_folder(final.parent)


def point(link: Path, target: Path) -> None:
    """Let the symbolic `link` lead to `target`: readers see the old or the new, never nothing."""
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}-{secrets.token_hex(4)}")
    new.symlink_to(os.path.relpath(target, link.parent))
    try:
        new.replace(link)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _sync_folder(link.parent)


def unpoint(link: Path) -> None:
    """Remove the symbolic `link`, and its folder where that is empty now."""
    link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        link.parent.rmdir()


def to_trash(path: Path, trash: Path) -> Path | None:
    """Rename `path` into `trash`; where it went, or None where it was not there."""
    trash.mkdir(parents=True, exist_ok=True)
    place = trash / f"{path.name}-{secrets.token_hex(4)}"
    try:
        path.rename(place)
    except FileNotFoundError:
        return None
    return place


def empty_trash(trash: Path, *, cancelled: Cancelled = never) -> int:
    """Remove what is in `trash`; the number of entries that are gone.

    A cancelled install may still write into its folder while that is removed: what cannot be
    removed now stays for the next time.
    """
    removed = 0
    if not trash.exists():
        return removed
    for entry in sorted(trash.iterdir()):
        remove_tree(entry, cancelled=cancelled)
        removed += not os.path.lexists(entry)
    return removed


def _sync_file_system(path: Path) -> None:
    """Write all that is not on the disk yet: one call instead of one for each of 15,000 files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
