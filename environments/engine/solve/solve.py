"""Which conda packages answer a request? One question to rattler per platform."""

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
from environments.engine.solve.explain import (
    Explainer,
    NoAnswerError,
    Tier,
    spec_name,
    unsatisfiable,
)
from environments.engine.solve.policy_view import PlatformView, PolicyView, Reading, Refused, Rules

Log = Callable[[str], None]

_PIP_HINT = (
    "pip is added beside Python, as conda and mamba do. Ask for a version of Python that the "
    "channel's pip supports, or ask an administrator of the namespace to switch that off."
)
_SPELT_OUT = 5  # packages that an error's message names


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveRequest:
    """What to solve. Requirements are by platform, in the words that rattler and uv read."""

    channels: tuple[str, ...]  # canonical base URLs in the order of priority, no credentials
    dependencies: Mapping[str, tuple[str, ...]]  # platform -> MatchSpecs
    platforms: tuple[str, ...]
    timeout: timedelta
    pip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # platform -> PEP 508
    pip_options: Mapping[str, PipOptions] = field(default_factory=dict)  # by platform
    virtual_packages: tuple[str, ...] = ()  # overrides: "__cuda=12"
    exclude_newer: str = ""  # "", an ISO date or time, or an age: "7 days", "P7D", "36h"
    constraints: tuple[str, ...] = ()  # MatchSpecs that hold in every answer: policy
    rules: Rules | None = None  # what the solver may see of the channels; None: all of it
    pypi_cutoff: datetime | None = None  # what the index got later is not taken: policy
    pypi_cutoffs: Mapping[str, datetime | None] = field(default_factory=dict)  # of some names
    locked: Lock | None = None  # where these packages still fit, they stay
    allow_md5: bool = False  # packages of which the channel names no sha256
    #: Add `pip` to the dependencies of Python, as conda and mamba do; a `pip:` part implies it.
    add_pip_as_python_dependency: bool = True

    def adds_pip(self, platform: str) -> bool:
        return self.add_pip_as_python_dependency or bool(self.pip.get(platform))


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A request with what is known when its solve starts; what a solver's process is sent."""

    request: SolveRequest
    cutoff: datetime | None
    states: Mapping[tuple[str, str], str]
    hosted: tuple[HostedFiles, ...] = ()
    deadline: float  # of time.monotonic(), which all processes of a machine share
    explain_only: bool = False  # rattler's solver must not be asked again

    @property
    def channels(self) -> tuple[str, ...]:
        return self.request.channels


def check(request: SolveRequest) -> None:
    """Refuse what rattler cannot read, all of it at once.

    Raises:
        SpecificationError: see above.
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
                faults.append(FaultError(f"“{spec}” cannot be read: {error}", where=where))
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
    """The conda part of every platform; faults of all platforms in one error."""
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
    question = RattlerQuestion(channels, work, platform)
    try:
        if work.explain_only:
            raise NoAnswerError
        if view is None:
            records = await _with_pip_where_it_exists(question, specs, log)
        else:
            records = await _through(question, view.on(platform), specs, log)
    except NoAnswerError as error:
        await question.drop_missing_pip()
        explainer = Explainer(question, specs, constraints=request.constraints)
        conflict = await explainer.explain(probe=not work.explain_only)
        if question.adds_pip and _names_pip(conflict, specs):
            conflict.hint = _PIP_HINT
        raise conflict from error
    without_added_pip(records, added=question.adds_pip)
    packages = _packages(channels, records, allow_md5=request.allow_md5)
    log(f"{platform}: {len(packages)} packages, in {time.monotonic() - started:.2f} s.")
    return PlatformLock(platform=platform, conda=dependency_order(packages))


async def _with_pip_where_it_exists(
    question: RattlerQuestion, specs: Sequence[str], log: Log
) -> list[rattler.RepoDataRecord]:
    """Solve `specs`; without pip beside Python where no channel has a pip.

    Raises:
        NoAnswerError: there is no solution.
    """
    try:
        return await question.ask(specs, question.constraints)
    except NoAnswerError:
        if not await question.drop_missing_pip():
            raise
        log(f"{question.platform}: no channel has pip; solving without pip beside Python.")
        return await question.ask(specs, question.constraints)


async def _through(
    question: RattlerQuestion, view: PlatformView, specs: Sequence[str], log: Log
) -> list[rattler.RepoDataRecord]:
    """The answer to `specs` of what the rules let the solver see.

    What is allowed comes first, then what needs a decision where nothing is allowed, then all
    that needs one.

    Raises:
        NoAnswerError: there is none without the rules either.
        UnsatisfiableError: the rules leave none; it says which of them removed what.
    """
    constraints = question.constraints
    # What names a channel knows the records by the channel's own name.
    if any(match_spec(spec).channel for spec in (*specs, *constraints)):
        view.reading = Reading.NONE
    while True:
        try:
            records = await question.ask(specs, constraints, view=view)
        except NoAnswerError:
            if view.reading is not Reading.NONE:
                # A package may name a channel, and the view has another name for it.
                view.reading = Reading.NONE
                continue
            if question.adds_pip and not await view.offers("pip"):
                question.adds_pip = False
                log(
                    f"{question.platform}: no pip that the rules allow; solving without pip "
                    "beside Python."
                )
                continue
            if await view.show_more():
                log(
                    f"{question.platform}: no answer without packages that need approval; "
                    "looking among those too."
                )
                continue
            # Is it the rules at all? If nothing answers without them, they are not to blame.
            free = await question.ask(specs, constraints)
            raise await _refused_by_rules(question, view, specs, free) from None
        if not view.accepts(records):
            view.reading = Reading(view.reading + 1)
            continue
        for line in await view.passed_over(records):
            log(f"{question.platform}: {line}")
        return records


async def _refused_by_rules(
    question: RattlerQuestion,
    view: PlatformView,
    specs: Sequence[str],
    free: Sequence[rattler.RepoDataRecord],
) -> UnsatisfiableError:
    """What the rules removed of the answer that there would be without them (`free`)."""
    removed: list[Refused] = []
    needed: list[Refused] = []  # those of which nothing at all is left
    for record in free:
        refused = await view.refused(record)
        if refused is not None:
            removed.append(refused)
            if not await view.has_allowed(refused.name):
                needed.append(refused)
    part = PlatformLock(
        platform=question.platform, conda=tuple(from_rattler(record) for record in free)
    )
    chains = shortest_chains(part, specs)
    shown = needed or removed
    sentences = []
    for each in shown[:_SPELT_OUT]:
        chain = chains.get(each.name, ())
        way = f"; it is needed through {' → '.join(chain)}" if len(chain) > 1 else ""
        none = ", as every other release of it is" if each in needed else ""
        sentences.append(
            f"{each.name} {each.version} {each.reason} (rule “{each.rule}”){none}{way}."
        )
    more = f" And {len(shown) - _SPELT_OUT} more." if len(shown) > _SPELT_OUT else ""
    return UnsatisfiableError(
        f"On {question.platform}: the rules leave no answer. {' '.join(sentences)}{more}",
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
                    "platform": question.platform,
                }
                for each in removed
            ],
        },
    )


class RattlerQuestion:
    """What one platform's solve can ask of rattler; the Explainer asks the same again."""

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

    async def ask(
        self,
        specs: Sequence[str],
        constraints: Sequence[str],
        *,
        seconds: float | None = None,
        view: PlatformView | None = None,
    ) -> list[rattler.RepoDataRecord]:
        """The answer to `specs`; of what `view` shows, or of all there is.

        Raises:
            NoAnswerError: there is none.
            TimeLimitError: not within `seconds`, or what is left of the request's time.
        """
        left = self.deadline - time.monotonic()
        limit = left if seconds is None else min(seconds, left)
        if limit <= 0:
            raise TimeLimitError(f"{self.platform}: there was no answer within the time limit.")
        try:
            records = await self._repodata.guarded(
                rattler.solve(
                    self._sources if view is None else view.sources(),
                    [match_spec(spec) for spec in self._strictly(specs)],
                    gateway=self._repodata.gateway,
                    platforms=with_noarch([self.platform]),
                    locked_packages=self._locked,
                    virtual_packages=[virtual_packages.to_rattler(entry) for entry in self.virtual],
                    timeout=timedelta(seconds=limit),
                    channel_priority=rattler.ChannelPriority.Strict,
                    exclude_newer=self.cutoff,
                    # What has no date could be of any date: it waits outside like what is too new.
                    timestamp_policy="require-timestamp",
                    constraints=[match_spec(spec) for spec in constraints],
                    channel_relations="disabled",
                    add_pip_as_python_dependency=self.adds_pip,
                )
            )
        except SolverError as error:
            if "has been cancelled" in str(error):
                raise TimeLimitError(
                    f"{self.platform}: the solver found no answer within the time limit."
                ) from error
            raise NoAnswerError from error  # its text is for those who know the solver
        return [*records]

    def _strictly(self, specs: Sequence[str]) -> list[str]:
        """`specs` so that a channel that has a name hides it in all lower ones.

        rattler loads of a name what fits the spec, and takes the first channel that has some of
        that: a lower one, where the first has other versions only. It loads all of a bare name.
        """
        if len(self.channels) == 1:
            return [*specs]
        names = [spec_name(spec) for spec in specs if "::" not in spec]
        return [*specs, *(name for name in names if not name.startswith("__"))]

    async def tiers(self, name: str) -> list[Tier]:
        """The records of `name` in each channel that has some, in the order of priority."""
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
            # One list per source, or per source and subdir: a record names its channel itself.
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
        """Stop adding pip if no channel has one; True if that changed something."""
        if not self.adds_pip or any(tier.records for tier in await self.tiers("pip")):
            return False
        self.adds_pip = False
        return True

    async def platforms_with(self, name: str) -> list[str]:
        """The other platforms of the request for which a channel has `name`."""
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
    """Restore the channel's own record of Python: rattler appends `pip` to its dependencies."""
    for record in records:
        if added and record.name.normalized == "python" and takes_pip(str(record.version)):
            depends = record.depends
            if depends and depends[-1] == "pip":
                record.depends = depends[:-1]


def _names_pip(error: StoreError, specs: Sequence[str]) -> bool:
    """Whether a conflict is about the pip that was added, and not about one that was asked for."""
    asked = any(spec_name(spec) == "pip" for spec in specs)
    return not asked and re.search(r"(?<![\w.-])pip(?![\w.-])", error.message) is not None


def _base(channel: str | None) -> str:
    return without_credentials(channel or "").rstrip("/")


def _packages(
    channels: Channels, records: Sequence[rattler.RepoDataRecord], *, allow_md5: bool
) -> tuple[CondaPackage, ...]:
    packages = tuple(channels.package(record) for record in records)
    if not allow_md5:
        require_sha256(packages)
    return packages
