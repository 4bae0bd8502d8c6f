"""Solve the conda packages of a request with rattler, one solve per platform."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import rattler
from rattler.exceptions import SolverError

from condastore.errors import (
    FaultError,
    SpecificationError,
    StoreError,
    TimeLimitError,
    UnsatisfiableError,
)
from environments.domain.diff import shortest_chains
from environments.domain.lock import Lock, PlatformLock, dependency_order, takes_pip
from environments.domain.names import without_credentials
from environments.domain.pip_requirements import PipOptions
from environments.domain.progress import Cancelled
from environments.domain.records import CondaPackage, require_sha256
from environments.engine.channels.hosted import HostedFiles
from environments.engine.channels.records import from_rattler, to_rattler
from environments.engine.channels.repodata import Channels, with_noarch
from environments.engine.solve import virtual_packages
from environments.engine.solve.conflict_errors import unsatisfiable
from environments.engine.solve.explain import Explainer, NoSolutionError, Tier
from environments.engine.solve.match_specs import spec_name
from environments.engine.solve.policy_view import PlatformView, PolicyView, Reading, Refused, Rules

Log = Callable[[str], None]

_PIP_HINT = (
    "pip is added beside Python, as conda and mamba do. Ask for a version of Python that the "
    "channel's pip supports, or ask an administrator of the namespace to switch that off."
)
_MAX_NAMED_PACKAGES = 5  # packages that an error message names


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRequest:
    """A request to solve. Requirements are by platform, in the syntax of rattler and of uv."""

    channels: tuple[str, ...]  # canonical base URLs in the order of priority, no credentials
    dependencies: Mapping[str, tuple[str, ...]]  # platform -> MatchSpecs
    platforms: tuple[str, ...]
    timeout: timedelta
    pip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # platform -> PEP 508
    pip_options: Mapping[str, PipOptions] = field(default_factory=dict)  # by platform
    virtual_packages: tuple[str, ...] = ()  # overrides: "__cuda=12"
    exclude_newer: str = ""  # "", an ISO date or time, or an age: "7 days", "P7D", "36h"
    constraints: tuple[str, ...] = ()  # MatchSpecs of the policy, valid for every solution
    rules: Rules | None = None  # which packages the solver may see; None: all
    pypi_cutoff: datetime | None = None  # policy: ignore files that the index got later
    pypi_cutoffs: Mapping[str, datetime | None] = field(default_factory=dict)  # by package name
    locked: Lock | None = None  # packages to keep if they still satisfy the requirements
    allow_md5: bool = False  # accept packages for which the channel gives no sha256
    #: Add `pip` to the dependencies of Python, as conda and mamba do; a `pip:` part implies it.
    add_pip_as_python_dependency: bool = True

    def adds_pip(self, platform: str) -> bool:
        return self.add_pip_as_python_dependency or bool(self.pip.get(platform))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request and the state of the channels at its start; sent to a solver process."""

    request: SolveRequest
    cutoff: datetime | None
    states: Mapping[tuple[str, str], str]
    hosted: tuple[HostedFiles, ...] = ()
    deadline: float  # of time.monotonic(), which is shared by all processes of a machine
    explain_only: bool = False  # do not run rattler's solver again

    @property
    def channels(self) -> tuple[str, ...]:
        return self.request.channels


def check(request: SolveRequest) -> None:
    """Refuse requirements that rattler cannot parse.

    Raises:
        SpecificationError: reports all of them at once.
    """
    faults: list[StoreError] = []
    for where, specs in [
        *((f"dependencies ({platform})", request.dependencies.get(platform, ()))
          for platform in request.platforms),
        ("constraints", request.constraints),
    ]:  # fmt: skip
        for spec in specs:
            try:
                match_spec(spec)
            except Exception as error:  # rattler's errors have no common base
                message = f"“{spec}” is not a valid requirement: {error}"
                faults.append(FaultError(message, where=where))
    for platform in request.platforms:
        try:
            virtual_packages.virtual_packages(platform, request.virtual_packages)
        except StoreError as error:
            if str(error) not in map(str, faults):
                faults.append(error)
    if faults:
        raise SpecificationError(faults)


def match_spec(text: str) -> rattler.MatchSpec:
    return rattler.MatchSpec(text, strict=False)


def solve_conda(
    channels: Channels, work: Work, *, cancelled: Cancelled, log: Log
) -> list[PlatformLock]:
    """Return the conda packages of every platform.

    Raises:
        UnsatisfiableError: there is no solution; one error reports the faults of all platforms.
    """
    channels.learn_hosted(work.hosted)
    channels.refresh(work.states)

    def read() -> list[PlatformLock]:
        return channels.run(
            _solve_platforms(channels, work, log), cancelled=cancelled, deadline=work.deadline + 1
        )

    return channels.persistently(work.channels, read)


async def _solve_platforms(channels: Channels, work: Work, log: Log) -> list[PlatformLock]:
    request = work.request
    rules = request.rules
    hides = rules is not None and rules.policy.hides and not work.explain_only
    view = None
    if rules and hides:
        view = PolicyView(channels, request.channels, rules, work.states)
    answers = await asyncio.gather(
        *(_solve_platform(channels, work, platform, view, log) for platform in request.platforms),
        return_exceptions=True,
    )
    faults = [answer for answer in answers if isinstance(answer, BaseException)]
    conflicts = [fault for fault in faults if isinstance(fault, UnsatisfiableError)]
    for fault in faults:
        if not isinstance(fault, UnsatisfiableError):
            raise fault
    if conflicts:
        raise unsatisfiable(conflicts)
    return [answer for answer in answers if isinstance(answer, PlatformLock)]


async def _solve_platform(
    channels: Channels, work: Work, platform: str, view: PolicyView | None, log: Log
) -> PlatformLock:
    request = work.request
    specs = request.dependencies.get(platform, ())
    started = time.monotonic()
    if not work.explain_only:
        log(f"{platform}: solving {len(specs)} requirements with {len(request.channels)} channels.")
    solver = RattlerPlatform(channels, work, platform)
    try:
        if work.explain_only:
            raise NoSolutionError
        if view is None:
            records = await _solve_with_optional_pip(solver, specs, log)
        else:
            records = await _solve_within_policy(solver, view.on(platform), specs, log)
    except NoSolutionError as error:
        await solver.drop_missing_pip()
        explainer = Explainer(solver, specs, constraints=request.constraints)
        conflict = await explainer.explain(probe=not work.explain_only)
        if solver.adds_pip and _names_pip(conflict, specs):
            conflict.hint = _PIP_HINT
        raise conflict from error
    without_added_pip(records, added=solver.adds_pip)
    packages = _packages(channels, records, allow_md5=request.allow_md5)
    log(f"{platform}: {len(packages)} packages, in {time.monotonic() - started:.2f} s.")
    return PlatformLock(platform=platform, conda=dependency_order(packages))


async def _solve_with_optional_pip(
    solver: RattlerPlatform, specs: Sequence[str], log: Log
) -> list[rattler.RepoDataRecord]:
    """Solve `specs`; do not add pip beside Python if no channel has pip.

    Raises:
        NoSolutionError: there is no solution.
    """
    try:
        return await solver.solve(specs, solver.constraints)
    except NoSolutionError:
        if not await solver.drop_missing_pip():
            raise
        log(f"{solver.platform}: no channel has pip; solving without pip beside Python.")
        return await solver.solve(specs, solver.constraints)


async def _solve_within_policy(
    solver: RattlerPlatform, view: PlatformView, specs: Sequence[str], log: Log
) -> list[rattler.RepoDataRecord]:
    """Solve `specs` with the packages that the policy lets the solver see.

    The first solve sees allowed packages only. The next one also sees packages that need
    approval, for names of which nothing is allowed; the last one all that need approval.

    Raises:
        NoSolutionError: there is no solution without the policy either.
        UnsatisfiableError: the policy leaves no solution; the message says which rule removed
            which package.
    """
    constraints = solver.constraints
    # A spec that names a channel finds records by the channel's real name only.
    if any(match_spec(spec).channel for spec in (*specs, *constraints)):
        view.reading = Reading.NONE
    while True:
        try:
            records = await solver.solve(specs, constraints, view=view)
        except NoSolutionError:
            if view.reading is not Reading.NONE:
                # A package may depend on a named channel, which has another name in the view.
                view.reading = Reading.NONE
                continue
            if solver.adds_pip and not await view.offers("pip"):
                solver.adds_pip = False
                log(
                    f"{solver.platform}: the policy allows no pip; solving without pip "
                    "beside Python."
                )
                continue
            if await view.show_more():
                log(
                    f"{solver.platform}: no solution without packages that need approval; "
                    "including those."
                )
                continue
            # If there is no solution without the policy either, the policy is not the reason.
            free = await solver.solve(specs, constraints)
            raise await _policy_conflict(solver, view, specs, free) from None
        if not view.accepts(records):
            view.reading = Reading(view.reading + 1)
            continue
        for line in await view.passed_over(records):
            log(f"{solver.platform}: {line}")
        return records


async def _policy_conflict(
    solver: RattlerPlatform,
    view: PlatformView,
    specs: Sequence[str],
    free: Sequence[rattler.RepoDataRecord],
) -> UnsatisfiableError:
    """Return the error that lists which packages of the solution `free` the policy removed."""
    removed: list[Refused] = []
    needed: list[Refused] = []  # packages without any allowed release
    for record in free:
        refused = await view.refused(record)
        if refused is not None:
            removed.append(refused)
            if not await view.has_allowed(refused.name):
                needed.append(refused)
    part = PlatformLock(
        platform=solver.platform, conda=tuple(from_rattler(record) for record in free)
    )
    chains = shortest_chains(part, specs)
    shown = needed or removed
    sentences = []
    for each in shown[:_MAX_NAMED_PACKAGES]:
        chain = chains.get(each.name, ())
        way = f"; it is required through {' → '.join(chain)}" if len(chain) > 1 else ""
        none = ", and so does every other release of it" if each in needed else ""
        sentences.append(
            f"{each.name} {each.version} {each.reason} (rule “{each.rule}”){none}{way}."
        )
    more = (
        f" And {len(shown) - _MAX_NAMED_PACKAGES} more." if len(shown) > _MAX_NAMED_PACKAGES else ""
    )
    return UnsatisfiableError(
        f"On {solver.platform}: the rules leave no solution. {' '.join(sentences)}{more}",
        hint="Choose other packages, or ask an administrator of the namespace to change the rule.",
        details={
            "conflicts": [],
            "missing": [],
            "policy": [
                {
                    "package": each.name,
                    "version": each.version,
                    "rule": each.rule,
                    "reason": each.reason,
                    "chain": list(chains.get(each.name, ())),
                    "nothing_left": each in needed,
                    "can_ask": each.only_asks,
                    "platform": solver.platform,
                }
                for each in removed
            ],
        },
    )


class RattlerPlatform:
    """Queries to rattler for one platform; the `Explainer` repeats them with fewer requirements."""

    def __init__(self, channels: Channels, work: Work, platform: str) -> None:
        self.platform = platform
        self.channels = work.request.channels
        self.cutoff = work.cutoff
        self.deadline = work.deadline
        self.virtual = virtual_packages.virtual_packages(platform, work.request.virtual_packages)
        self._repodata = channels
        self._request = work.request
        self.constraints = work.request.constraints
        self.adds_pip = work.request.adds_pip(platform)
        self._sources = channels.sources(work.request.channels)
        part = work.request.locked.on(platform) if work.request.locked else None
        self._locked = [to_rattler(package) for package in part.conda] if part else []
        self._tiers: dict[str, list[Tier]] = {}

    async def solve(
        self,
        specs: Sequence[str],
        constraints: Sequence[str],
        *,
        seconds: float | None = None,
        view: PlatformView | None = None,
    ) -> list[rattler.RepoDataRecord]:
        """Return the solution of `specs` among what `view` shows, or among all packages.

        Raises:
            NoSolutionError: there is no solution.
            TimeLimitError: none was found within `seconds`, or before the request's deadline.
        """
        left = self.deadline - time.monotonic()
        limit = left if seconds is None else min(seconds, left)
        if limit <= 0:
            raise TimeLimitError(f"{self.platform}: no solution was found within the time limit.")
        try:
            records = await self._repodata.guarded(
                rattler.solve(
                    self._sources if view is None else view.sources(),
                    [match_spec(spec) for spec in self._with_strict_priority(specs)],
                    gateway=self._repodata.gateway,
                    platforms=with_noarch([self.platform]),
                    locked_packages=self._locked,
                    virtual_packages=[virtual_packages.to_rattler(entry) for entry in self.virtual],
                    timeout=timedelta(seconds=limit),
                    channel_priority=rattler.ChannelPriority.Strict,
                    exclude_newer=self.cutoff,
                    # Without a date a package may be newer than the cutoff: exclude it.
                    timestamp_policy="require-timestamp",
                    constraints=[match_spec(spec) for spec in constraints],
                    channel_relations="disabled",
                    add_pip_as_python_dependency=self.adds_pip,
                )
            )
        except SolverError as error:
            if "has been cancelled" in str(error):
                raise TimeLimitError(
                    f"{self.platform}: the solver found no solution within the time limit."
                ) from error
            raise NoSolutionError from error  # rattler's text is of no use to the user
        return [*records]

    def _with_strict_priority(self, specs: Sequence[str]) -> list[str]:
        """Return `specs` and their bare names, so that a channel hides a name in all lower ones.

        For a spec rattler loads only matching records, and takes the first channel that has some:
        a lower channel, if the first one has other versions only. For a bare name it loads all.
        """
        if len(self.channels) == 1:
            return [*specs]
        names = [spec_name(spec) for spec in specs if "::" not in spec]
        return [*specs, *(name for name in names if not name.startswith("__"))]

    async def tiers(self, name: str) -> list[Tier]:
        """Return the records of `name` by channel, in the order of priority."""
        if name not in self._tiers:
            found = await self._repodata.guarded(
                self._repodata.gateway.query(
                    self._sources,
                    with_noarch([self.platform]),
                    [rattler.MatchSpec(name)],
                    recursive=False,
                    channel_relations="disabled",
                )
            )
            # Results come by source, or by source and subdir; each record names its channel.
            records: dict[str, list[rattler.RepoDataRecord]] = {}
            removed: dict[str, set[str]] = {}
            for record in (record for part in found for record in part):
                records.setdefault(_base(record.channel), []).append(record)
            for item in (item for part in found.removed for item in part):
                removed.setdefault(_base(item.channel), set()).add(item.version)
            if name == "python" and self.adds_pip:
                for record in (each for found in records.values() for each in found):
                    if takes_pip(str(record.version)):
                        record.depends = [*record.depends, "pip"]
            self._tiers[name] = [
                Tier(
                    channel=channel,
                    records=tuple(records.get(channel, ())),
                    removed=frozenset(removed.get(channel, ())),
                )
                for channel in map(_base, self.channels)
                if channel in records or channel in removed
            ]
        return self._tiers[name]

    async def drop_missing_pip(self) -> bool:
        """Stop adding pip if no channel has it; return True if that changed anything."""
        if not self.adds_pip or any(tier.records for tier in await self.tiers("pip")):
            return False
        self.adds_pip = False
        return True

    async def platforms_with(self, name: str) -> list[str]:
        """Return the other platforms of the request for which a channel has `name`."""
        others = [platform for platform in self._request.platforms if platform != self.platform]
        if not others:
            return []
        found = await self._repodata.guarded(
            self._repodata.gateway.query(
                self._sources,
                with_noarch(others),
                [rattler.MatchSpec(name)],
                recursive=False,
                channel_relations="disabled",
            )
        )
        return sorted({record.subdir for records in found for record in records})

    async def names(self) -> list[str]:
        found = await self._repodata.guarded(
            self._repodata.gateway.names(
                self._sources, with_noarch([self.platform]), channel_relations="disabled"
            )
        )
        return sorted(name.normalized for name in found)


def without_added_pip(records: Sequence[rattler.RepoDataRecord], *, added: bool) -> None:
    """Restore the channel's record of Python: rattler appends `pip` to its dependencies."""
    for record in records:
        if added and record.name.normalized == "python" and takes_pip(str(record.version)):
            depends = record.depends
            if depends and depends[-1] == "pip":
                record.depends = depends[:-1]


def _names_pip(error: StoreError, specs: Sequence[str]) -> bool:
    """Return True if a conflict is about the added pip and no requirement names pip."""
    requested = any(spec_name(spec) == "pip" for spec in specs)
    return not requested and re.search(r"(?<![\w.-])pip(?![\w.-])", error.message) is not None


def _base(channel: str | None) -> str:
    return without_credentials(channel or "").rstrip("/")


def _packages(
    channels: Channels, records: Sequence[rattler.RepoDataRecord], *, allow_md5: bool
) -> tuple[CondaPackage, ...]:
    packages = tuple(channels.package(record) for record in records)
    if not allow_md5:
        require_sha256(packages)
    return packages
