"""Resolution of the PyPI part with uv, beside the Python distributions that conda packages hold."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import uv
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from condastore.errors import (
    FaultError,
    PypiError,
    SpecificationError,
    StoreError,
)
from environments.domain.lock import PlatformLock
from environments.domain.names import without_credentials
from environments.domain.pip_requirements import NO_OPTIONS, PipOptions, direct_reference
from environments.domain.progress import Cancelled
from environments.domain.records import CondaPackage, PypiPackage
from environments.engine.channels.credentials import (
    CredentialSource,
    no_credentials,
)
from environments.engine.channels.repodata import Channels
from environments.engine.pypi.conda_distributions import CondaDistributions, Provided
from environments.engine.pypi.direct_wheels import DirectWheel, DirectWheels
from environments.engine.pypi.targets import Target, target_of
from environments.engine.pypi.uv_run import UvRun
from environments.engine.solve.virtual_packages import virtual_packages as of_platform

Log = Callable[[str], None]
Answer = TypeVar("Answer")
NO_NAMES: Mapping[str, Any] = MappingProxyType({})

#: Prefix of the temporary folders in which uv runs.
WORK_FOLDER = "condastore-uv-"


class PypiResolver:
    """Resolves the PyPI part with uv; distributions of conda packages are fixed."""

    def __init__(
        self,
        *,
        index_urls: Sequence[str],
        cache: Path,
        channels: Channels,
        credentials: CredentialSource = no_credentials,
        extracted: Callable[[CondaPackage], Path | None] = lambda package: None,
        uv_program: str = "",
        uv_cache: Path | None = None,
        direct: DirectWheels | None = None,
    ) -> None:
        """
        Args:
            index_urls: simple indexes in the order of priority, without credentials; a project is
                taken from the first index that has it.
            cache: folder for uv's downloads and for the lists of distributions in conda packages.
            channels: reads conda packages that are not extracted.
            extracted: returns the folder of an extracted conda package, or None.
            uv_cache: uv's cache, by default below `cache`. It must contain nothing else.
            direct: provider of wheels of direct references; None: there are none.
        """
        self._direct = direct
        self._indexes = tuple(index_urls)
        self._credentials = credentials
        self.distributions = CondaDistributions(cache=cache, channels=channels, extracted=extracted)
        self._uv_cache = (uv_cache or cache / "uv").absolute()
        self._uv = uv_program or os.fsdecode(uv.find_uv_bin())

    def lock(
        self,
        requirements: Sequence[str],
        platform_lock: PlatformLock,
        *,
        virtual_packages: Sequence[str],
        exclude_newer: datetime | None,
        cancelled: Cancelled,
        log: Log,
        time_limit: timedelta,
        constraints: Sequence[str] = (),
        exclude_newer_of: Mapping[str, datetime | None] = NO_NAMES,
        options: PipOptions = NO_OPTIONS,
        direct: Mapping[str, DirectWheel] = NO_NAMES,
    ) -> tuple[PypiPackage, ...]:
        """Resolve `requirements` (PEP 508); return the wheels by name, without what conda has.

        Args:
            options: options of the pip part: additional indexes and pages.
            direct: result of `provide` for the same requirements.
            virtual_packages: `name=version=build`; glibc and macOS determine the wheels.
            constraints: PEP 508; not applied to distributions of conda packages.
            exclude_newer_of: different limits by name; None means no limit.
            time_limit: time limit of all reading and resolving.
        Raises:
            PypiError: there is no solution, or only one that contradicts a conda package.
            ChannelUnavailableError: an index or a conda package cannot be read now.
            TimeLimitError: there is no solution within `time_limit`.
            LeaseLostError: `cancelled` returned True.
        """
        deadline = time.monotonic() + time_limit.total_seconds()
        parsed = _parse(requirements, direct)
        target = target_of(platform_lock, virtual_packages)
        provided = self.distributions.of_lock(platform_lock, cancelled=cancelled, deadline=deadline)
        requested = _applying(parsed, target)
        _refuse_contradictions(requested, provided, platform_lock.platform)
        with_extras: set[str] = {
            canonicalize_name(requirement.name) for requirement in requested if requirement.extras
        }
        log(f"{platform_lock.platform}: resolving {len(requested)} requirements of PyPI.")
        for _ in range(3):  # repeat if an extra of a conda package turns out to be required
            run = UvRun(
                uv=self._uv,
                uv_cache=self._uv_cache,
                usual_indexes=self._indexes,
                credentials=self._credentials,
                requirements=requested,
                platform=platform_lock.platform,
                provided=provided,
                metadata=self.distributions.metadata(
                    [item for item in provided.values() if item.name in with_extras],
                    cancelled=cancelled,
                    deadline=deadline,
                ),
                target=target,
                options=options,
                direct=direct,
                exclude_newer=exclude_newer,
                exclude_newer_of=exclude_newer_of,
                constraints=[
                    text
                    for text in constraints
                    if canonicalize_name(Requirement(text).name) not in provided
                ],
            )
            # Beside the caches, where the cleanup job finds folders of killed workers.
            self._uv_cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=WORK_FOLDER, dir=self._uv_cache.parent
            ) as folder:
                packages, missing = run.resolve(
                    Path(folder), cancelled=cancelled, deadline=deadline
                )
            if missing <= with_extras:
                break
            with_extras |= missing
        log(f"{platform_lock.platform}: {len(packages)} packages of PyPI.")
        return packages

    def provide(
        self,
        requirements: Sequence[str],
        platform_lock: PlatformLock,
        *,
        host: PlatformLock | None,
        virtual_packages: Sequence[str],
        exclude_newer: datetime | None,
        cancelled: Cancelled,
        log: Log,
        time_limit: timedelta,
    ) -> dict[str, DirectWheel]:
        """Fetch or build the wheels of direct references; return them by name.

        Args:
            host: lock for the platform of this machine, whose Python builds from source.
            exclude_newer, time_limit: limits of the solves for build requirements.
        Raises:
            PypiError: a wheel is not compatible with the platform.
            StoreError: other errors of `DirectWheels.provide`.
        """
        target = target_of(platform_lock, virtual_packages)
        found: dict[str, DirectWheel] = {}
        # Rounded to a day: a limit that moves with the clock would rebuild for every solve.
        limit = None if exclude_newer is None else _day(exclude_newer)

        def resolve(texts: Sequence[str], part: PlatformLock) -> tuple[PypiPackage, ...]:
            return self.lock(
                texts,
                part,
                virtual_packages=of_platform(part.platform, ()),
                exclude_newer=limit,
                cancelled=cancelled,
                log=lambda line: None,
                time_limit=time_limit,
            )

        for requirement in _applying(_parse(requirements, None), target):
            reference = direct_reference(f"{requirement.name} @ {requirement.url}")
            if not requirement.url or reference is None:
                continue
            name = canonicalize_name(requirement.name)
            if self._direct is None:
                raise PypiError(
                    f"“{without_credentials(str(requirement))}” names its own source, but this "
                    "installation uses indexes only.",
                    where="dependencies.pip",
                    hint="Name a version from an index, or use the conda package.",
                )
            wheel = self._direct.provide(
                name,
                reference,
                host=host,
                resolve=resolve,
                inputs=self._inputs(limit),
                cancelled=cancelled,
                log=log,
            )
            if target.rank(wheel.package.file_name) is None:
                raise PypiError(
                    f"On {platform_lock.platform}: {wheel.package.file_name} from "
                    f"{reference.location} does not support Python {target.python} on "
                    f"{target.uv_platform}.",
                    where="dependencies.pip",
                    hint="Name a wheel for this platform, with a marker such as "
                    "; platform_machine == 'x86_64'.",
                )
            found[name] = wheel
        return found

    def _inputs(self, limit: datetime | None) -> tuple[str, ...]:
        """Return what the choice of build requirements depends on, beside conda packages."""
        found = [f"until {limit.isoformat() if limit else 'now'}"]
        for url in self._indexes:
            credential = self._credentials(url)
            found.append(f"{url} {credential.secret if credential else ''}")
        return tuple(found)


def _day(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _parse(
    requirements: Sequence[str], direct: Mapping[str, DirectWheel] | None
) -> list[Requirement]:
    """Parse PEP 508 requirements; refuse URLs without a wheel in `direct`, if it is given."""
    parsed: list[Requirement] = []
    faults: list[StoreError] = []
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            message = f"“{text}” is not a valid requirement: {error}"
            faults.append(FaultError(message, where="dependencies.pip"))
            continue
        known = direct is None or canonicalize_name(requirement.name) in direct
        if requirement.url and not known:
            faults.append(
                FaultError(
                    f"“{without_credentials(text)}” names a URL, but only indexes are used here.",
                    where="dependencies.pip",
                )
            )
        parsed.append(requirement)
    if faults:
        raise SpecificationError(faults)
    return parsed


def _applying(requirements: Sequence[Requirement], target: Target) -> list[Requirement]:
    """Return the requirements whose markers hold for the target."""
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(dict(target.markers))
    ]


def _refuse_contradictions(
    wanted: Sequence[Requirement], provided: Mapping[str, Provided], platform: str
) -> None:
    clashes = [
        (requirement, held)
        for requirement in wanted
        if (held := provided.get(canonicalize_name(requirement.name))) is not None
        and (requirement.url or not requirement.specifier.contains(held.version, prereleases=True))
    ]
    if clashes:
        raise PypiError(
            f"On {platform}: "
            + "; ".join(f"pip requires {requirement}, but the environment has {held}"
                        for requirement, held in clashes)
            + ".",
            where="dependencies.pip",
            hint="Put the version among the conda dependencies, and remove it under pip.",
            details={
                "conda": [
                    {"name": held.name, "version": held.version, "package": held.package.name}
                    for _, held in clashes
                ]
            },
        )  # fmt: skip
