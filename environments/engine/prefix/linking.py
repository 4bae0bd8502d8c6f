"""Link the packages of a lock into a prefix; publish, point to and remove prefixes."""

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
from environments.engine._private import native_spec
from environments.engine.channels.records import to_rattler
from environments.engine.packages.cache import CachedPackage, PackageCache
from environments.engine.system.disk import remove_tree

logger = logging.getLogger(__name__)
#: Exception names of a panic in rattler; the classes cannot be imported from any module.
_PANICS = ("PanicException", "RustPanic")
POLL = 0.1  # seconds between two checks of cancellation
FROZEN_MESSAGE = (
    "This environment is made and kept by condastore. Change its specification there, "
    "or copy the environment, instead of installing into it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """Result of linking; `bytes_unique` is disk space that the cache does not share."""

    paths: int
    bytes_apparent: int
    bytes_unique: int  # of files that were copied to replace the prefix in them
    link_scripts: Mapping[str, tuple[str, ...]]  # package -> its scripts; none of them was run
    python: PythonInfo | None
    conflicts: tuple[PathConflict, ...] = ()  # files that another package's file replaced


def python_of(packages: Sequence[CondaPackage], platform: str) -> PythonInfo | None:
    """Return the Python among `packages`, or None."""
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
    """Link `packages`, those of `lock`, into the new folder `target`, for `final_prefix`.

    Args:
        packages: result of `cache.ensure(lock.conda)`.
        requested: the conda requirements of the specification, for conda's metadata.
        variables: environment variables that activation sets.
        moment, note: time and command for conda's history.
        checked: result of `check_paths` for these packages and `final_prefix`, if known.
    Raises:
        LinkError: packages conflict or cannot be linked; reports all of them.
        DiskSpaceError, LeaseLostError: `target` is incomplete and must be removed.
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
            hint="Use other versions of these packages, or remove one of them.",
            details={
                "faults": [
                    {"packages": fault.packages, "path": fault.path, "reason": fault.reason}
                    for fault in faults
                ]
            },
        )
    obey(cancelled)
    try:
        target.mkdir(parents=True, mode=0o700)  # private until it is published
        with cache.view(packages) as view:
            _install(lock, target, final_prefix, view, requested, progress, cancelled)
            _refuse_misplaced_links(packages, target, python)
            _place_winners(checked.conflicts, packages, target)
            _remove_rattler_leftovers(target, view, packages)
        _restrict_entry_points(packages, target, python)
        _make_folders(packages, target, python)
        _write_conda_metadata(lock, target, requested, variables, moment, note)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                "The disk is full: the environment could not be linked.",
                hint="Ask an administrator to free disk space, then try again.",
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
    # mypy takes rattler's empty methods for abstract ones.
    counter = _Counter(total=len(lock.conda), progress=progress)  # type: ignore[abstract]
    specs = [native_spec(MatchSpec(each)) for each in requested]

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
                # `PackageCache.ensure` has already validated the packages.
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
                "The disk is full: the environment could not be linked.",
                hint="Ask an administrator to free disk space, then try again.",
            ) from error
        # Do not reveal the paths of the cache in the message.
        message = message.replace(f"{view}/", "").replace(f"{target}/", "")
        raise LinkError(
            f"The packages cannot be linked: {message}.",
            hint="Use other versions of the packages, or show this message to an administrator.",
        ) from error
    except BaseException as error:
        if type(error).__name__ not in _PANICS:
            raise
        logger.exception("rattler panicked")
        raise LinkError(
            "The packages cannot be linked: the installer crashed on one of them.",
            hint="Ask an administrator to look at the worker's log.",
        ) from error


class _Counter(InstallerReporter):
    """Reports progress; rattler calls it from its own threads."""

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


def _place_winners(
    conflicts: Sequence[PathConflict], packages: Sequence[CachedPackage], target: Path
) -> None:
    """Place the file of the package that is linked last at each conflicting path.

    If neither package depends on the other, rattler may place the other file, and moves the rest to
    `__clobbers__/NAME/`. Afterwards the file must equal the winner's record.

    Raises:
        LinkError: it does not.
    """
    if not conflicts:
        return
    names = {cached.contents.label: cached.contents.name for cached in packages}
    expected: dict[str, dict[str, str]] = {}
    for conflict in conflicts:
        label, location = conflict.winner, target / conflict.path
        aside = target / CLOBBERS / names[label] / conflict.path
        if os.path.lexists(aside):
            aside.replace(location)
        if label not in expected:
            expected[label] = _linked_digests(target, label)
        if location.is_symlink() or _sha256(location) != expected[label].get(conflict.path):
            raise LinkError(
                f"{printable(conflict.path)} of {label} was not linked as its record says.",
                hint="Remove one of the packages that contain this file: "
                f"{', '.join((label, *conflict.replaced))}.",
            )


def _linked_digests(target: Path, label: str) -> dict[str, str]:
    """Return path -> sha256 of its content in the prefix, from conda's record of a package."""
    note = json.loads((target / "conda-meta" / f"{label}.json").read_bytes())
    return {
        entry.get("original_path") or entry["_path"]: entry.get("sha256_in_prefix")
        or entry.get("sha256", "")
        for entry in note["paths_data"]["paths"]
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_rattler_leftovers(target: Path, view: Path, packages: Sequence[CachedPackage]) -> None:
    """Remove from `target` what rattler leaves besides the environment.

    Its records name the temporary view and are readable by the owner only; replaced files of
    conflicting packages are still there; and a tag marks the folder as a cache for backups.
    """
    (target / "CACHEDIR.TAG").unlink(missing_ok=True)
    clobbered = target / CLOBBERS
    parents = {cached.folder.name: cached.folder.parent for cached in packages}
    for path in (target / "conda-meta").glob("*.json"):
        with path.open("r+b") as file:  # rewrite in place: no other prefix shares this inode
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
    """Raise LinkError unless each symbolic link is at the path where it was checked.

    At another path a link may lead out of the prefix, and later writes would follow it.
    """
    for cached in packages:
        noarch = cached.contents.noarch_python
        for file in cached.contents.files:
            if file.kind != "link":
                continue
            location = prefix_path(file.path, noarch_python=noarch, python=python)
            try:
                found = os.readlink(f"{target}/{location}")  # noqa: PTH115  # Path rewrites "./x"
            except OSError:
                found = ""
            if found != file.target:
                raise LinkError(
                    f"The link {printable(location)} of {cached.contents.label} was not created "
                    "where it was expected.",
                    where=cached.package.url,
                    hint="Use another build or version, and report it to the channel's owner.",
                )


def _restrict_entry_points(
    packages: Sequence[CachedPackage], target: Path, python: PythonInfo | None
) -> None:
    """Remove others' write permission from entry points, which rattler creates as 0775."""
    for cached in packages:
        if python is None or not cached.contents.noarch_python:
            continue
        for entry_point in cached.contents.entry_points:
            script = target / python.scripts / entry_point.partition("=")[0].strip()
            with contextlib.suppress(FileNotFoundError):  # another form on this platform
                script.chmod(0o755, follow_symlinks=False)


def _make_folders(
    packages: Sequence[CachedPackage], target: Path, python: PythonInfo | None
) -> None:
    for cached in packages:
        for file in cached.contents.files:
            if file.kind == "folder":
                noarch = cached.contents.noarch_python
                location = prefix_path(file.path, noarch_python=noarch, python=python)
                (target / location).mkdir(parents=True, exist_ok=True)


def _write_conda_metadata(
    lock: PlatformLock,
    target: Path,
    requested: Sequence[str],
    variables: Mapping[str, str],
    moment: datetime,
    note: str,
) -> None:
    """Write conda's metadata of a prefix: history, variables, and the frozen marker."""
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
    (meta / "frozen").write_text(json.dumps({"message": FROZEN_MESSAGE}) + "\n")  # CEP 22
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
    """Rename the finished `hidden` to `final`, which must not exist, and sync both to disk.

    After a machine crash `final` is either missing or complete.

    Args:
        mode: mode of the folder, independent of the umask; None leaves it unchanged.
    """
    if os.path.lexists(final):
        raise ConflictError(f"{final.name} already exists and is never replaced.")
    final.parent.mkdir(parents=True, exist_ok=True)
    if mode is not None:
        hidden.chmod(mode)
    _sync_file_system(hidden)
    try:
        hidden.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConflictError(f"{final.name} already exists and is never replaced.") from error
        raise
    _sync_folder(final.parent)


def set_link(link: Path, target: Path) -> None:
    """Atomically make the symbolic `link` point to `target`."""
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}-{secrets.token_hex(4)}")
    new.symlink_to(os.path.relpath(target, link.parent))
    try:
        new.replace(link)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _sync_folder(link.parent)


def remove_link(link: Path) -> None:
    """Remove the symbolic `link`, and its folder if that is empty."""
    link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        link.parent.rmdir()


def move_to_trash(path: Path, trash: Path) -> Path | None:
    """Move `path` into `trash`; return its new path, or None if it did not exist."""
    trash.mkdir(parents=True, exist_ok=True)
    location = trash / f"{path.name}-{secrets.token_hex(4)}"
    try:
        path.rename(location)
    except FileNotFoundError:
        return None
    return location


def empty_trash(trash: Path, *, cancelled: Cancelled = never) -> int:
    """Remove what is in `trash`; return the number of removed entries.

    A cancelled install may still write into its folder meanwhile; what cannot be removed stays for
    the next call.
    """
    removed = 0
    if not trash.exists():
        return removed
    for entry in sorted(trash.iterdir()):
        remove_tree(entry, cancelled=cancelled)
        removed += not os.path.lexists(entry)
    return removed


def _sync_file_system(path: Path) -> None:
    """Flush the file system: one call instead of an fsync for each of 15,000 files."""
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
