"""Complete an imported lock with metadata that its channels and indexes confirm.

What a lock says about a package is only a claim of its author. The stored record comes from the
channel's repodata, or from what this installation saw of it before. A package that is not listed
is described by its own `info/index.json`; it counts as unlisted, and the policy rule
`unlisted-packages` decides about it. What only a channel may state (`indexed_timestamp`) is never
read from a package.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from condastore.errors import (
    AddressRefusedError,
    ChannelNotFoundError,
    ChannelUnavailableError,
    DownloadError,
    FaultError,
    FileRefusedError,
    PackageInvalidError,
    SpecificationError,
    StoreError,
    TimeLimitError,
)
from environments.domain.lock import Lock, PlatformLock, dependency_order
from environments.domain.lockfiles import is_complete
from environments.domain.progress import Cancelled
from environments.domain.records import CondaPackage, Package, PypiPackage
from environments.domain.unpacking import DEFAULT_LIMITS, Limits
from environments.domain.urls import canonical_or_same
from environments.engine.channels.repodata import Channels
from environments.engine.packages.download_types import Patience
from environments.engine.packages.downloads import fetch_originals
from environments.engine.packages.package_validation import read_package
from environments.engine.pypi.indexes import Project, PythonIndexes

Log = Callable[[str], None]


class Listed(Protocol):
    """Reads from a channel which of the given files it lists."""

    def __call__(
        self,
        channel: str,
        subdir: str,
        names: Sequence[str],
        *,
        urls: Collection[str],
        cancelled: Cancelled,
        deadline: float,
    ) -> Iterable[CondaPackage]: ...


#: Prefix of the temporary folders of downloaded unlisted packages.
UNLISTED_PREFIX = ".unlisted-"
_PATIENCE = Patience(attempts=3)
#: Errors of a channel or an index that does not respond now.
UNAVAILABLE_ERRORS = (ChannelUnavailableError, TimeLimitError)
_PARALLEL = 4  # unlisted packages that are downloaded at the same time


class History:
    """Records of what channels and indexes listed before; this base class knows nothing."""

    def records(self, packages: Sequence[Package]) -> Mapping[str, Package]:
        """Return, by URL, the record that its channel gave for exactly these bytes."""
        return {}

    def was_listed(self, package: CondaPackage) -> bool:
        """Return True if the channel listed exactly these bytes before."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """Completed packages by URL, and the faults of others."""

    done: dict[str, Package]
    faults: list[StoreError]


def complete_lock(
    lock: Lock,
    *,
    channels: Channels,
    listed: Listed,
    cancelled: Cancelled,
    log: Log,
    indexes: PythonIndexes | None = None,
    history: History | None = None,
    limits: Limits = DEFAULT_LIMITS,
    time_limit: timedelta = timedelta(minutes=5),
    direct: Callable[[str], bool] = lambda url: False,
) -> Lock:
    """Return `lock` with confirmed records of its packages, dependencies first.

    Args:
        listed: reads some files of a channel; see `RattlerSolver.listed`.
        indexes: Python indexes that wheels may come from; None confirms no wheel.
        history: what was listed before; used for packages that are no longer listed.
        limits: unpacking limits of a package that describes itself.
        direct: returns True if a wheel may have this URL, which is not of an index.
    Raises:
        SpecificationError: a digest differs from the channel's, a package is gone, or a wheel is
            not a file of an index; reports all faults.
        ChannelUnavailableError: a channel or an index does not respond, and did not list all of
            these packages before.
    """
    deadline = time.monotonic() + time_limit.total_seconds()
    work = _Completion(
        channels=channels,
        listed=listed,
        indexes=indexes,
        history=history or History(),
        limits=limits,
        cancelled=cancelled,
        deadline=deadline,
        log=log,
        direct=direct,
    )
    _require_one_channel([package for part in lock for package in part.conda])
    conda = work.conda([p for part in lock for p in part.conda if not is_complete(p)])
    pypi = work.pypi([package for part in lock for package in part.pypi])
    faults = [*conda.faults, *pypi.faults]
    transient = next((fault for fault in faults if fault.transient), None)
    if transient is not None:
        raise transient
    if faults:
        raise SpecificationError(faults)
    done = conda.done | pypi.done
    return replace(lock, platforms=tuple(_completed(part, done) for part in lock))


def _require_one_channel(packages: Sequence[CondaPackage]) -> None:
    """Refuse a URL with two channels: one channel could describe the other's file.

    Raises:
        SpecificationError: reports every such URL.
    """
    channels: dict[str, set[str]] = {}
    for package in packages:
        channels.setdefault(package.url, set()).add(package.channel)
    faults = [
        FaultError(
            f"The lock assigns this file to {len(of)} channels: {', '.join(sorted(of))}.",
            where=url,
            hint="Create the lock again and submit the new one.",
        )
        for url, of in channels.items()
        if len(of) > 1
    ]
    if faults:
        raise SpecificationError(faults)


def _completed(part: PlatformLock, done: Mapping[str, Any]) -> PlatformLock:
    return replace(
        part,
        conda=dependency_order([done.get(package.url, package) for package in part.conda]),
        pypi=tuple(done[package.url] for package in part.pypi),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Completion:
    channels: Channels
    listed: Listed
    indexes: PythonIndexes | None
    history: History
    limits: Limits
    cancelled: Cancelled
    direct: Callable[[str], bool]
    deadline: float  # of time.monotonic()
    log: Log

    # --- conda -----------------------------------------------------------------------------------

    def conda(self, packages: Sequence[CondaPackage]) -> _Outcome:
        requested: dict[tuple[str, str], dict[str, CondaPackage]] = {}
        for package in packages:
            requested.setdefault((package.channel, package.subdir), {})[package.url] = package
        listed: dict[str, CondaPackage] = {}
        outcome = _Outcome(done={}, faults=[])
        unlisted: list[CondaPackage] = []
        without_hash = [package for package in packages if not _has_hash(package)]
        if without_hash:
            self.log(
                f"{len(without_hash)} packages have no hash in the list; using the hashes that "
                "their channels list now."
            )
        answered: list[CondaPackage] = []
        for (channel, subdir), some in requested.items():
            try:
                listed |= self._listed(channel, subdir, some)
            except UNAVAILABLE_ERRORS as error:
                outcome.done.update(self._as_listed_before(channel, some, error))
            else:
                answered += some.values()
        for package in answered:
            record = listed.get(package.url)
            if record is None and not _has_hash(package):
                outcome.faults.append(_hash_unknown(package, "does not list"))
            elif record is None:
                unlisted.append(package)
            elif not _has_hash(package) and not _has_hash(record):
                outcome.faults.append(_hash_unknown(package, "has no hash of"))
            elif fault := _difference(package, record):
                outcome.faults.append(fault)
            else:
                # Without a sha256 from the channel it is unknown which bytes the channel lists.
                same = bool(record.sha256) or not package.sha256
                outcome.done[package.url] = _completed_package(package, record.record, listed=same)
        known = self.history.records(unlisted) if unlisted else {}
        for package in unlisted:
            if isinstance(before := known.get(package.url), CondaPackage):
                outcome.done[package.url] = _completed_package(package, before.record, listed=True)
        self._complete_from_packages([p for p in unlisted if p.url not in known], outcome)
        return outcome

    def _listed(
        self, channel: str, subdir: str, packages: Mapping[str, CondaPackage]
    ) -> dict[str, CondaPackage]:
        try:
            found = self.listed(
                channel,
                subdir,
                sorted({package.name for package in packages.values()}),
                urls=packages.keys(),
                cancelled=self.cancelled,
                deadline=self.deadline,
            )
        except ChannelNotFoundError:
            self.log(f"Channel {channel} no longer exists; reading its packages themselves.")
            return {}
        by_url = {canonical_or_same(package.url): package for package in found}
        return {url: package for url, package in by_url.items() if url in packages}

    def _as_listed_before(
        self, channel: str, packages: Mapping[str, CondaPackage], error: StoreError
    ) -> dict[str, CondaPackage]:
        """Complete packages of a channel that does not respond from what it listed before.

        Each must have been listed by this channel, at this URL, with this sha256. The package
        archive does not count: it does not say which channel its bytes came from.

        Raises:
            StoreError: `error`, if one of the packages was not listed.
        """
        known = self.history.records(list(packages.values()))
        done: dict[str, CondaPackage] = {}
        for url, package in packages.items():
            before = known.get(url)
            if not isinstance(before, CondaPackage) or _difference(package, before):
                raise error
            done[url] = _completed_package(package, before.record, listed=True)
        self.log(
            f"Channel {channel} does not respond: using {len(done)} packages as it listed them "
            f"before. {error.message}"
        )
        return done

    def _complete_from_packages(self, packages: Sequence[CondaPackage], outcome: _Outcome) -> None:
        """Complete packages that were never listed from their own `info/index.json`."""
        if not packages:
            return
        self.log(f"{len(packages)} packages are not listed by their channel.")
        with ThreadPoolExecutor(_PARALLEL) as pool:
            answers = list(pool.map(self._index_of, packages))
        for package, answer in zip(packages, answers, strict=True):
            if isinstance(answer, StoreError):
                outcome.faults.append(answer)
            else:
                listed = self.history.was_listed(package)
                outcome.done[package.url] = _completed_package(package, answer, listed=listed)

    def _index_of(self, package: CondaPackage) -> Mapping[str, Any] | StoreError:
        """Return a package's own metadata if its URL serves the bytes that the lock names.

        Caches do not count: they identify bytes by digest and do not know if this channel has them.
        """
        if self.channels.hosted((package.channel,)):  # a hosted channel lists all its packages
            return FaultError(
                f"{package.channel} has no {package.subdir}/{package.file_name}.",
                where=package.url,
                hint="Create the lock again and submit the new one.",
            )
        with self._folder() as folder:
            path = self._fetched(package, Path(folder))
            if isinstance(path, StoreError):
                return path
            try:
                record = read_package(path, package.file_name, limits=self.limits)
            except PackageInvalidError as error:
                return FaultError(
                    f"{package.file_name} is not a valid package of this name: {error.message}",
                    where=package.url,
                    hint="Do not use this package, and report it to the channel's owner.",
                )
            size = path.stat().st_size
        if record["subdir"] != package.subdir:
            return FaultError(
                f"{package.file_name} is a package for {record['subdir']}, not for "
                f"{package.subdir}.",
                where=package.url,
                hint="Create the lock again and submit the new one.",
            )
        return record | {"size": size}

    def _fetched(self, package: Package, folder: Path) -> Path | StoreError:
        try:
            [path] = fetch_originals(
                [package],
                folder,
                credentials=self.channels.credential,
                cancelled=self._past_deadline,
                patience=_PATIENCE,
            ).values()
        except DownloadError as error:
            if error.details.get("gone"):
                return FaultError(
                    f"{package.file_name} no longer exists at {package.url}.",
                    where=package.url,
                    hint="Create the lock again, or use a mirror that still has the file.",
                )
            if "expected" in error.details:
                return FaultError(
                    f"{package.file_name} at {package.url} differs from the hash in the lock.",
                    where=package.url,
                    hint="Create the lock again and submit the new one.",
                )
            return ChannelUnavailableError(
                f"{package.file_name} could not be downloaded: {error.message}", where=package.url
            )
        except (AddressRefusedError, FileRefusedError) as error:
            return error
        return path

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        self.channels.cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=UNLISTED_PREFIX, dir=self.channels.cache)

    def _past_deadline(self) -> bool:
        if time.monotonic() > self.deadline:
            raise TimeLimitError("Checking the lock took longer than the time limit.")
        return self.cancelled()

    # --- PyPI ------------------------------------------------------------------------------------

    def pypi(self, packages: Sequence[PypiPackage]) -> _Outcome:
        outcome = _Outcome(done={}, faults=[])
        for package in packages:
            if self.direct(package.url) and not (self.indexes and self.indexes.hold(package.url)):
                named = self._direct_wheel(package)
                if isinstance(named, StoreError):
                    outcome.faults.append(named)
                else:
                    outcome.done[package.url] = named
        packages = [package for package in packages if not self._is_direct(package, outcome)]
        requested = {package.url: package for package in packages}
        if not requested:
            return outcome
        if self.indexes is None or not self.indexes.urls:
            outcome.faults.append(
                FaultError(
                    "This installation installs no packages from a Python index.",
                    where="package",
                    hint="Use conda packages, or ask an administrator to configure an index.",
                )
            )
            return outcome
        files: dict[str, set[str]] = {}
        for package in packages:
            files.setdefault(package.name, set()).add(package.file_name)
        try:
            projects = self.channels.run(
                self.indexes.projects(files),
                cancelled=self.cancelled,
                deadline=self.deadline,
            )
        except UNAVAILABLE_ERRORS as error:
            outcome.done.update(self._wheels_listed_before(list(requested.values()), error))
            return outcome
        unlisted: list[PypiPackage] = []
        for package in packages:
            answer = self._confirmed(package, projects[package.name])
            if isinstance(answer, StoreError):
                outcome.faults.append(answer)
            elif answer is None:
                unlisted.append(package)
            else:
                outcome.done[package.url] = answer
        self._complete_from_history(unlisted, projects, outcome)
        return outcome

    def _wheels_listed_before(
        self, packages: Sequence[PypiPackage], error: StoreError
    ) -> dict[str, PypiPackage]:
        """Complete wheels on a host of a configured index that does not respond.

        Raises:
            StoreError: `error`, if one of the wheels was not listed before.
        """
        assert self.indexes is not None, "checked by the caller"
        known = self.history.records(packages)
        done: dict[str, PypiPackage] = {}
        for package in packages:
            before = known.get(package.url)
            if not isinstance(before, PypiPackage) or not self.indexes.hold(package.url):
                raise error
            done[package.url] = replace(before, requires=package.requires)
        self.log(
            f"A Python index does not respond: using {len(done)} wheels as it listed them before. "
            f"{error.message}"
        )
        return done

    @staticmethod
    def _is_direct(package: PypiPackage, outcome: _Outcome) -> bool:
        wheres = {fault.where for fault in outcome.faults}
        return package.url in outcome.done or package.url in wheres

    def _direct_wheel(self, package: PypiPackage) -> PypiPackage | StoreError:
        """Return a wheel of no index, if its URL serves the bytes that the lock names."""
        with self._folder() as folder:
            path = self._fetched(package, Path(folder))
            if isinstance(path, StoreError):
                return path
            return replace(package, size=path.stat().st_size, listed=False, direct=True)

    def _confirmed(
        self, package: PypiPackage, project: Project | None
    ) -> PypiPackage | StoreError | None:
        """Return the wheel as its index describes it; None if the index does not list it."""
        file = project.files.get(package.file_name) if project else None
        if project is None or file is None:
            return None
        if file.url != package.url:
            return FaultError(
                f"{package.file_name} must not come from {package.url}: {project.index} has it at "
                f"{file.url}.",
                where=package.url,
                hint="Create the lock again with the indexes of this installation.",
            )
        if file.sha256 and file.sha256 != package.sha256:
            return FaultError(
                f"The sha256 of {package.file_name} differs from the one in {project.index}.",
                where=package.url,
                hint="Create the lock again and submit the new one.",
            )
        if not file.sha256 and isinstance(fault := self._has_bytes(package), StoreError):
            return fault
        return replace(
            package,
            size=file.size,
            requires_python=file.requires_python,
            uploaded=file.uploaded,
            listed=True,
        )

    def _has_bytes(self, package: PypiPackage) -> StoreError | None:
        with self._folder() as folder:
            path = self._fetched(package, Path(folder))
        return path if isinstance(path, StoreError) else None

    def _complete_from_history(
        self,
        packages: Sequence[PypiPackage],
        projects: Mapping[str, Project | None],
        outcome: _Outcome,
    ) -> None:
        """Complete wheels that their index no longer lists but listed before."""
        known = self.history.records(packages) if packages else {}
        for package in packages:
            project, before = projects[package.name], known.get(package.url)
            at_home = self._of_an_index(package, project)
            if isinstance(before, PypiPackage) and at_home:
                outcome.done[package.url] = replace(before, requires=package.requires)
                continue
            where = project.index if project else "No Python index of this installation"
            outcome.faults.append(
                FaultError(
                    f"{where} {'does not list' if project else 'lists'} {package.file_name}.",
                    where=package.url,
                    hint="Create the lock again with the indexes of this installation.",
                )
            )

    def _of_an_index(self, package: PypiPackage, project: Project | None) -> bool:
        assert self.indexes is not None, "checked by the caller"
        return self.indexes.hold(package.url) if project is None else project.holds(package.url)


def _has_hash(package: CondaPackage) -> bool:
    return bool(package.sha256 or package.md5)


def _hash_unknown(package: CondaPackage, reason: str) -> FaultError:
    return FaultError(
        f"The list has no hash for {package.file_name}, and {package.channel} {reason} it.",
        where=package.url,
        hint="Write the list with hashes: conda list --explicit --sha256, or --md5.",
    )


def _difference(package: CondaPackage, record: CondaPackage) -> FaultError | None:
    for kind in ("sha256", "md5"):
        ours, theirs = getattr(package, kind), getattr(record, kind)
        if ours and theirs and ours != theirs:
            return FaultError(
                f"The {kind} of {package.file_name} is {ours} in the lock, but {theirs} in its "
                f"channel.",
                where=package.url,
                hint="Create the lock again; if it is new, report this to the channel's owner.",
            )
    said = (record.name, record.version, record.build)
    if said != (package.name, package.version, package.build):
        return FaultError(
            f"{package.file_name} is {' '.join(said)} in its channel.",
            where=package.url,
            hint="Do not use this package, and report it to the channel's owner.",
        )
    return None


def _completed_package(
    package: CondaPackage, record: Mapping[str, Any], *, listed: bool
) -> CondaPackage:
    content = dict(record)
    for kind in ("sha256", "md5"):
        if getattr(package, kind):
            content[kind] = getattr(package, kind)
    content["subdir"] = package.subdir
    content.setdefault("build_number", 0)
    return CondaPackage.from_record(
        content,
        url=package.url,
        channel=package.channel,
        file_name=package.file_name,
        listed=listed,
    )
