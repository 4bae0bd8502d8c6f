"""Completion of a brought lock: its claims are held against the channels and indexes.

What a lock says of a package is a claim of whoever wrote it. The record that is stored comes from
the channel's own repodata, or from what this installation saw of it before. A package that neither
lists describes itself (`info/index.json`); then it counts as unlisted, and a rule of the policy
decides (`unlisted-packages`). What only a channel may state (`indexed_timestamp`) is never taken
from a package.
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
from environments.engine.packages.downloads import Patience, bring
from environments.engine.packages.uploads import read_package
from environments.engine.pypi.indexes import Project, PythonIndexes

Log = Callable[[str], None]


class Listed(Protocol):
    """Asks a channel for those of some files that it lists."""

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


#: How the folders begin into which unlisted packages are fetched.
UNLISTED = ".unlisted-"
_PATIENCE = Patience(attempts=3)
#: A channel or an index does not answer now.
UNANSWERED = (ChannelUnavailableError, TimeLimitError)
_PARALLEL = 4  # packages that are fetched at a time to be asked themselves


class History:
    """What this installation saw channels and indexes list before; knows nothing by itself."""

    def records(self, packages: Sequence[Package]) -> Mapping[str, Package]:
        """By URL: the description that its channel gave of exactly these bytes."""
        return {}

    def was_listed(self, package: CondaPackage) -> bool:
        """Whether exactly these bytes were among what the channel listed."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """Packages by URL, and what is wrong with others."""

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
    """`lock` with verified descriptions of its packages, dependencies first.

    Args:
        listed: asks a channel for some of its files, as `RattlerSolver.listed` does.
        indexes: those that wheels may come from; None confirms no wheel.
        history: what they listed before; asked of packages that they no longer list.
        limits: to what a package that describes itself may unpack.
        direct: whether a wheel may be named by this URL, which is of no index.
    Raises:
        SpecificationError: a digest differs from the channel's, a package is gone, a wheel is not
            what an index links to: every one.
        ChannelUnavailableError: a channel or an index does not answer now, and was not seen to list
            all of these packages before.
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
    """Refuse a URL that is said to be of two channels: one could describe the other's file.

    Raises:
        SpecificationError: every one.
    """
    channels: dict[str, set[str]] = {}
    for package in packages:
        channels.setdefault(package.url, set()).add(package.channel)
    faults = [
        FaultError(
            f"The lock takes one file from {len(of)} channels: {', '.join(sorted(of))}.",
            where=url,
            hint="Lock the environment again.",
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
        wanted: dict[tuple[str, str], dict[str, CondaPackage]] = {}
        for package in packages:
            wanted.setdefault((package.channel, package.subdir), {})[package.url] = package
        listed: dict[str, CondaPackage] = {}
        outcome = _Outcome(done={}, faults=[])
        unlisted: list[CondaPackage] = []
        without_hash = [package for package in packages if not _has_hash(package)]
        if without_hash:
            self.log(
                f"The hashes of {len(without_hash)} packages, which the list does not have, are "
                "those that their channels list now."
            )
        answered: list[CondaPackage] = []
        for (channel, subdir), some in wanted.items():
            try:
                listed |= self._listed(channel, subdir, some)
            except UNANSWERED as error:
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
                # Without a digest of its own the channel does not say which bytes it lists.
                same = bool(record.sha256) or not package.sha256
                outcome.done[package.url] = _joined(package, record.record, listed=same)
        known = self.history.records(unlisted) if unlisted else {}
        for package in unlisted:
            if isinstance(before := known.get(package.url), CondaPackage):
                outcome.done[package.url] = _joined(package, before.record, listed=True)
        self._ask_themselves([p for p in unlisted if p.url not in known], outcome)
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
            self.log(f"The channel {channel} is gone; its packages are looked at themselves.")
            return {}
        by_url = {canonical_or_same(package.url): package for package in found}
        return {url: package for url, package in by_url.items() if url in packages}

    def _as_listed_before(
        self, channel: str, packages: Mapping[str, CondaPackage], error: StoreError
    ) -> dict[str, CondaPackage]:
        """Complete packages of a channel that does not answer now from what it listed before.

        Each must have been listed by this channel, at this URL, with this sha256. The package
        archive is not asked: that bytes are kept says nothing of the channel they came from.

        Raises:
            StoreError: `error`, if one of them was not.
        """
        known = self.history.records(list(packages.values()))
        done: dict[str, CondaPackage] = {}
        for url, package in packages.items():
            before = known.get(url)
            if not isinstance(before, CondaPackage) or _difference(package, before):
                raise error
            done[url] = _joined(package, before.record, listed=True)
        self.log(
            f"The channel {channel} does not answer: {len(done)} packages are taken as it listed "
            f"them before. {error.message}"
        )
        return done

    def _ask_themselves(self, packages: Sequence[CondaPackage], outcome: _Outcome) -> None:
        """Complete packages that nobody listed from their own `info/index.json`."""
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
                outcome.done[package.url] = _joined(package, answer, listed=listed)

    def _index_of(self, package: CondaPackage) -> Mapping[str, Any] | StoreError:
        """What the package says of itself, once its URL gave the bytes that the lock names.

        The caches are not asked: they know the bytes by their digest, and not whether this channel
        has them.
        """
        if self.channels.hosted((package.channel,)):  # which says all that it has
            return FaultError(
                f"{package.channel} has no {package.subdir}/{package.file_name}.",
                where=package.url,
                hint="Lock the environment again.",
            )
        with self._folder() as folder:
            path = self._fetched(package, Path(folder))
            if isinstance(path, StoreError):
                return path
            try:
                record = read_package(path, package.file_name, limits=self.limits)
            except PackageInvalidError as error:
                return FaultError(
                    f"{package.file_name} cannot be read as this package: {error.message}",
                    where=package.url,
                    hint="Do not use it; tell the owner of the channel.",
                )
            size = path.stat().st_size
        if record["subdir"] != package.subdir:
            return FaultError(
                f"{package.file_name} says that it is for {record['subdir']}.", where=package.url
            )
        return record | {"size": size}

    def _fetched(self, package: Package, folder: Path) -> Path | StoreError:
        try:
            [path] = bring(
                [package],
                folder,
                credentials=self.channels.credential,
                cancelled=self._over,
                patience=_PATIENCE,
            ).values()
        except DownloadError as error:
            if error.details.get("gone"):
                return FaultError(
                    f"{package.file_name} is no longer at {package.url}.",
                    where=package.url,
                    hint="Lock the environment again, or ask for a mirror that kept it.",
                )
            if "expected" in error.details:
                return FaultError(
                    f"{package.file_name} has other bytes at {package.url} than the lock says.",
                    where=package.url,
                    hint="Lock the environment again.",
                )
            return ChannelUnavailableError(
                f"{package.file_name} could not be read: {error.message}", where=package.url
            )
        except (AddressRefusedError, FileRefusedError) as error:
            return error
        return path

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        self.channels.cache.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=UNLISTED, dir=self.channels.cache)

    def _over(self) -> bool:
        if time.monotonic() > self.deadline:
            raise TimeLimitError("There was no answer within the time limit.")
        return self.cancelled()

    # --- PyPI ------------------------------------------------------------------------------------

    def pypi(self, packages: Sequence[PypiPackage]) -> _Outcome:
        outcome = _Outcome(done={}, faults=[])
        for package in packages:
            if self.direct(package.url) and not (self.indexes and self.indexes.hold(package.url)):
                named = self._named(package)
                if isinstance(named, StoreError):
                    outcome.faults.append(named)
                else:
                    outcome.done[package.url] = named
        packages = [package for package in packages if not self._is_named(package, outcome)]
        wanted = {package.url: package for package in packages}
        if not wanted:
            return outcome
        if self.indexes is None or not self.indexes.urls:
            outcome.faults.append(
                FaultError(
                    "This installation takes no packages from a Python index.",
                    where="package",
                    hint="Ask for conda packages, or ask an administrator to configure an index.",
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
        except UNANSWERED as error:
            outcome.done.update(self._wheels_listed_before(list(wanted.values()), error))
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
        self._remember(unlisted, projects, outcome)
        return outcome

    def _wheels_listed_before(
        self, packages: Sequence[PypiPackage], error: StoreError
    ) -> dict[str, PypiPackage]:
        """As `_as_listed_before`, of wheels at a host of an index that is configured now."""
        assert self.indexes is not None, "asked before"
        known = self.history.records(packages)
        done: dict[str, PypiPackage] = {}
        for package in packages:
            before = known.get(package.url)
            if not isinstance(before, PypiPackage) or not self.indexes.hold(package.url):
                raise error
            done[package.url] = replace(before, requires=package.requires)
        self.log(
            f"A Python index does not answer: {len(done)} wheels are taken as they were listed "
            f"before. {error.message}"
        )
        return done

    @staticmethod
    def _is_named(package: PypiPackage, outcome: _Outcome) -> bool:
        wheres = {fault.where for fault in outcome.faults}
        return package.url in outcome.done or package.url in wheres

    def _named(self, package: PypiPackage) -> PypiPackage | StoreError:
        """A wheel of no index, once its URL gave the bytes that the lock names."""
        with self._folder() as folder:
            path = self._fetched(package, Path(folder))
            if isinstance(path, StoreError):
                return path
            return replace(package, size=path.stat().st_size, listed=False, direct=True)

    def _confirmed(
        self, package: PypiPackage, project: Project | None
    ) -> PypiPackage | StoreError | None:
        """The wheel as its index describes it; None where the index does not list it."""
        file = project.files.get(package.file_name) if project else None
        if project is None or file is None:
            return None
        if file.url != package.url:
            return FaultError(
                f"{package.file_name} is not taken from {package.url}: {project.index} has it at "
                f"{file.url}.",
                where=package.url,
                hint="Lock it again with the indexes of this installation.",
            )
        if file.sha256 and file.sha256 != package.sha256:
            return FaultError(
                f"The sha256 of {package.file_name} is not the one that {project.index} gives.",
                where=package.url,
                hint="Lock the environment again.",
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

    def _remember(
        self,
        packages: Sequence[PypiPackage],
        projects: Mapping[str, Project | None],
        outcome: _Outcome,
    ) -> None:
        """Take wheels that their index no longer lists where it was seen to list them before."""
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
                    hint="Lock it again with the indexes of this installation.",
                )
            )

    def _of_an_index(self, package: PypiPackage, project: Project | None) -> bool:
        assert self.indexes is not None, "asked before"
        return self.indexes.hold(package.url) if project is None else project.holds(package.url)


def _has_hash(package: CondaPackage) -> bool:
    return bool(package.sha256 or package.md5)


def _hash_unknown(package: CondaPackage, reason: str) -> FaultError:
    return FaultError(
        f"The list has no hash of {package.file_name}, and {package.channel} {reason} it.",
        where=package.url,
        hint="Write the list with hashes: conda list --explicit --sha256, or --md5.",
    )


def _difference(package: CondaPackage, record: CondaPackage) -> FaultError | None:
    for kind in ("sha256", "md5"):
        ours, theirs = getattr(package, kind), getattr(record, kind)
        if ours and theirs and ours != theirs:
            return FaultError(
                f"The {kind} of {package.file_name} is {ours} in the lock, and {theirs} in its "
                f"channel.",
                where=package.url,
                hint="Lock the environment again; if you did just now, tell the channel's owner.",
            )
    said = (record.name, record.version, record.build)
    if said != (package.name, package.version, package.build):
        return FaultError(
            f"{package.file_name} is {' '.join(said)} in its channel.",
            where=package.url,
            hint="Do not use it; tell the owner of the channel.",
        )
    return None


def _joined(package: CondaPackage, record: Mapping[str, Any], *, listed: bool) -> CondaPackage:
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
