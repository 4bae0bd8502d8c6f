"""Channels as the solver sees them through a namespace's policy.

The view serves rattler one name at a time: it queries the gateway for the records of a name in one
channel, evaluates the policy once per record, and returns the allowed ones. Records that only need
approval are hidden at first too, so that an allowed solution is preferred (`Showing`).

Passing a record through Python takes longer than solving with it, and rules affect few names. So
rattler reads the other names from the channel itself (`Reading`), and only these from the view,
under a different channel name: by strict priority the view's records hide the channel's own records
of the name. Results per name are cached between solves, so the records of a solution are evaluated
again before it is returned.

The policy must not change which channel a name comes from: if all records of a name in the first
channel are refused, a lower channel must not replace it, or a rule would let anyone who publishes
the same name there supply the package. So in a channel with others below it, hidden records stay
visible as records that nothing can install.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import rattler

from environments.domain.names import without_credentials
from environments.domain.policy import Effect, Known, Objection, Policy, Screen, Subject
from environments.engine._private import native_record
from environments.engine.channels.first_seen import FirstSeen
from environments.engine.channels.repodata import Channels, Source, with_noarch

#: A virtual package that no machine has: records that need it are visible but never chosen.
_BARRIER = "__condastore_refused"
_MAX_LOG_LINES = 10  # about newer versions that need approval
_MAX_COMPARED_RECORDS = 5_000
_MAX_CACHED_NAMES = 20_000
_MAX_CACHED_FILES = 100_000  # of all names; 10 MB
#: Suffix of the channel name of records that the view shows beside the channel itself.
_FILTERED = "#filtered"


class _Found(NamedTuple):
    """Result of evaluating the records of a name in one subdir of a channel."""

    records: int
    hidden: frozenset[str] = frozenset()  # files that the rules object to
    newest: bool = False  # True if a release of the newest version is hidden
    asks: bool = False  # True if an approval would show one of the hidden files


#: By the policy's version, the channel, the subdir and its state; most solves of a process read the
#: same names. An allowed record stays allowed: the version changes with the rules and decisions,
#: the state with the records, and with time records only become older.
_FOUND: dict[tuple[tuple[str, str, str, str], str], _Found] = {}
_UNKNOWN = _Found(records=-1, hidden=frozenset([""]), newest=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A policy with the evidence to evaluate it in the solver's process."""

    policy: Policy
    now: float  # seconds since the epoch
    first_seen: Path | None = None  # folder of the database that `first_seen` writes


class Showing(IntEnum):
    """Which of the records that need approval the solver sees."""

    ALLOWED = 0  # none
    WHERE_NEEDED = 1  # those of names without any allowed record
    ALL = 2


class Reading(IntEnum):
    """Which names rattler reads from the channels themselves instead of through the view."""

    NEWEST_ALLOWED = 0  # names with no hidden release of the newest version; usually sufficient
    ALLOWED = 1  # names without hidden records
    NONE = 2  # all through the view; only then a missing solution is final


@dataclass(slots=True)
class _Judged:
    """The records of one name in one subdir of one channel."""

    allowed: list[rattler.RepoDataRecord] = field(default_factory=list)
    asked: list[tuple[rattler.RepoDataRecord, Objection]] = field(default_factory=list)
    refused: list[tuple[rattler.RepoDataRecord, Objection]] = field(default_factory=list)
    depends: dict[int, list[str]] = field(default_factory=dict)  # original values, by position
    filtered: bool = False  # True if the channel names of the records end with `_FILTERED`

    def found(self) -> _Found:
        hidden = [record for record, _ in (*self.asked, *self.refused)]
        newest = max((record.version for record in self.allowed), default=None)
        return _Found(
            records=len(self.allowed) + len(hidden),
            hidden=frozenset(record.file_name for record in hidden),
            newest=any(newest is None or record.version >= newest for record in hidden),
            asks=bool(self.asked),
        )

    @property
    def empty(self) -> bool:
        return not (self.allowed or self.asked or self.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A record that the policy hides from the solver."""

    name: str
    version: str
    rule: str
    reason: str  # follows the name and version
    only_asks: bool


class PolicyView:
    """Policy view of the channels of one request; evaluates each record once for all platforms."""

    def __init__(
        self,
        channels: Channels,
        urls: Sequence[str],
        rules: Rules,
        states: Mapping[tuple[str, str], str],
    ) -> None:
        """`states`: current state of each (channel, subdir), from `Channels.observe`."""
        self._channels = channels
        self._urls = urls
        self._raw = channels.sources(urls)
        policy = rules.policy
        # Most packages have no scripts: if none are known, the rule about scripts hides nothing.
        idle = () if policy.scripts else ("install-scripts",)
        hiding = [rule for rule in policy.rules if rule.hides() and rule.kind not in idle]
        self._screen = Screen(policy, _Evidence(rules), rules=hiding)
        self._judged: dict[tuple[int, str, str], asyncio.Future[_Judged]] = {}
        #: (channel, subdir) -> part of the keys of `_FOUND`, with the channel's name for rules.
        self._places = {
            (index, subdir): (policy.version, url, subdir, state)
            for index, url in enumerate(urls)
            for (channel, subdir), state in states.items()
            if channel == url
        }
        self._names = [without_credentials(url).rstrip("/") for url in urls]

    def on(self, platform: str) -> PlatformView:
        return PlatformView(self, platform)

    @property
    def width(self) -> int:
        return len(self._raw)

    def raw(self, index: int) -> Source:
        """Return the channel itself."""
        return self._raw[index]

    async def found(self, index: int, subdirs: Iterable[str], name: str) -> list[_Found]:
        """Return what the policy hides of a name in a channel.

        Results of earlier solves are used if the channel still has the same state.
        """
        found = []
        for subdir in subdirs:
            key = (self._place(index, subdir), name)
            if key not in _FOUND:
                await self.judged(index, subdir, name)
            found.append(_FOUND.get(key, _UNKNOWN))
        return found

    def still_allows(self, record: rattler.RepoDataRecord) -> bool:
        """Return True if the policy allows a record that rattler read from a channel itself.

        If not, the channel changed within one state, so all cached results are dropped.
        """
        own = without_credentials(str(record.channel)).rstrip("/")
        held = [name for name in self._names if record.url.startswith(f"{name}/")]
        name = own if own in self._names or not held else max(held, key=len)
        subject = ChannelRecord(record, record.name.normalized, name)
        if self._objection(subject) is None:
            return True
        _FOUND.clear()
        self._judged.clear()
        return False

    def _place(self, index: int, subdir: str) -> tuple[str, str, str, str]:
        return self._places.get((index, subdir)) or (
            self._screen.policy.version,
            self._urls[index],
            subdir,
            "",
        )

    async def judged(self, index: int, subdir: str, name: str) -> _Judged:
        key = (index, subdir, name)
        if key not in self._judged:
            self._judged[key] = asyncio.ensure_future(self._judge(index, subdir, name))
        return await self._judged[key]

    async def _judge(self, index: int, subdir: str, name: str) -> _Judged:
        found = await self._channels.guarded(
            self._channels.gateway.query(
                [self._raw[index]],
                [rattler.Subdir(subdir)],
                [rattler.MatchSpec(name)],
                recursive=False,
                channel_relations="disabled",
            )
        )
        records = [record for part in found for record in part]
        judged = _Judged()
        location = self._place(index, subdir)
        before = _FOUND.get((location, name), _UNKNOWN)
        suspects, known = before.hidden, before.records == len(records)
        if not self._screen.checks("conda", name) or (known and not suspects):
            judged.allowed = records
            _remember(location, name, _Found(len(records)))
            return judged
        channel = self._names[index]
        for record in records:
            if known and record.file_name not in suspects:
                judged.allowed.append(record)
                continue
            objection = self._objection(ChannelRecord(record, name, channel))
            if objection is None:
                judged.allowed.append(record)
            elif objection.effect is Effect.ASK:
                judged.asked.append((record, objection))
            else:
                judged.refused.append((record, objection))
        _remember(location, name, judged.found())
        return judged

    def _objection(self, subject: Subject) -> Objection | None:
        """Return the most severe objection; the first one among equals."""
        first: Objection | None = None
        for objection in self._screen.found(subject):
            if objection.effect is Effect.ENFORCE:
                return objection
            first = first or objection
        return first


class PlatformView:
    """View of one platform; `showing` advances while there is no solution."""

    def __init__(self, view: PolicyView, platform: str) -> None:
        self._view = view
        self._subdirs = [str(subdir) for subdir in with_noarch([platform])]
        self.showing = Showing.ALLOWED
        self.reading = Reading.NEWEST_ALLOWED
        self._names: set[str] = set()  # names that the solver has requested

    def sources(self) -> list[Source]:
        if self.reading is Reading.NONE:
            return [_ChannelView(self, index) for index in range(self._view.width)]
        return [
            source
            for index in range(self._view.width)
            for source in (_ChannelView(self, index), self._view.raw(index))
        ]

    def accepts(self, answer: Sequence[rattler.RepoDataRecord]) -> bool:
        """Return True if a solution is allowed; restore its records' channel names."""
        allowed = True
        for record in answer:
            channel = str(record.channel)
            if channel.endswith(_FILTERED):
                record.channel = channel.removesuffix(_FILTERED)
            elif self.reading is not Reading.NONE:
                allowed = allowed and self._view.still_allows(record)
        return allowed

    async def shown(self, index: int, subdir: str, name: str) -> list[rattler.RepoDataRecord]:
        """Return the records of a name that the solver gets from the view of a channel."""
        if self.reading is Reading.NONE:
            return await self._seen(index, subdir, name, walled=index + 1 < self._view.width)
        found = await self._view.found(index, self._subdirs, name)
        if self.reading is Reading.NEWEST_ALLOWED:
            hides = any(each.newest for each in found)
        else:
            hides = any(each.hidden for each in found)
        if not hides:
            return []
        return await self._seen(index, subdir, name, walled=True)

    async def _seen(
        self, index: int, subdir: str, name: str, *, walled: bool
    ) -> list[rattler.RepoDataRecord]:
        """Return the visible records of a name; `walled` adds hidden ones as not installable."""
        self._names.add(name)
        judged = await self._view.judged(index, subdir, name)
        with_asked = bool(judged.asked) and await self._shows_asked(name)
        # Another platform's task may have changed the shared `noarch` records in between.
        _name_channel(judged, filtered=self.reading is not Reading.NONE)
        if not judged.asked and not judged.refused:
            return judged.allowed
        records = [*judged.allowed]
        if with_asked:
            _restore(judged)
            records += [record for record, _ in judged.asked]
        if walled:
            for record, _ in judged.refused:
                record.depends = [_BARRIER]
            records += [record for record, _ in judged.refused]
            if not with_asked:
                _wall_in(judged)
                records += [record for record, _ in judged.asked]
        return records

    async def _shows_asked(self, name: str) -> bool:
        if self.showing is Showing.WHERE_NEEDED:
            return not await self._has_allowed(name)
        return self.showing is Showing.ALL

    async def _has_allowed(self, name: str) -> bool:
        """Return True if the first channel that has the name has an allowed record of it."""
        for index in range(self._view.width):
            found = await self._everywhere(index, name)
            if not all(judged.empty for judged in found):
                return any(judged.allowed for judged in found)
        return False

    async def _everywhere(self, index: int, name: str) -> list[_Judged]:
        return [await self._view.judged(index, subdir, name) for subdir in self._subdirs]

    async def show_more(self) -> bool:
        """Show more of the records that need approval; return False if there are no more."""
        requested = []
        for name in sorted(self._names):
            for index in range(self._view.width):
                if any(judged.asked for judged in await self._everywhere(index, name)):
                    requested.append(name)
                    break
        if self.showing is Showing.ALLOWED:
            for name in requested:
                if not await self._has_allowed(name):
                    self.showing = Showing.WHERE_NEEDED
                    return True
        if self.showing is not Showing.ALL and requested:
            self.showing = Showing.ALL
            return True
        return False

    async def passed_over(self, chosen: Iterable[rattler.RepoDataRecord]) -> list[str]:
        """Return log lines about newer versions of the chosen packages that need approval."""
        lines: list[str] = []
        compared = 0
        for record in chosen:
            name, version = record.name.normalized, record.version
            newest: tuple[Any, Objection] | None = None
            for index in range(self._view.width):
                found = await self._view.found(index, self._subdirs, name)
                if not any(each.asks for each in found):
                    continue
                for judged in await self._everywhere(index, name):
                    compared += len(judged.asked)
                    if compared > _MAX_COMPARED_RECORDS:
                        break
                    for other, objection in judged.asked:
                        if other.version > (newest[0] if newest else version):
                            newest = (other.version, objection)
            if newest:
                lines.append(
                    f"{name} {newest[0]} needs approval (it {newest[1].text}); "
                    f"{version} was chosen."
                )
        more = len(lines) - _MAX_LOG_LINES
        if more > 0:
            lines[_MAX_LOG_LINES:] = [f"The same applies to {more} more packages."]
        return lines

    async def refused(self, record: rattler.RepoDataRecord) -> Refused | None:
        """Return why the solver did not see a record, or None if it saw it."""
        name = record.name.normalized
        same = (str(record.version), str(record.build), record.file_name, record.url)
        for index in range(self._view.width):
            for judged in await self._everywhere(index, name):
                hidden = [*judged.refused]
                if self.showing is not Showing.ALL:
                    hidden += judged.asked
                for other, objection in hidden:
                    mine = (str(other.version), str(other.build), other.file_name, other.url)
                    if mine == same:
                        return Refused(
                            name=name,
                            version=same[0],
                            rule=objection.rule.name,
                            reason=objection.text,
                            only_asks=objection.effect is Effect.ASK,
                        )
        return None

    async def offers(self, name: str) -> bool:
        """Return True if the solver sees a record of `name`, or would see one after approval."""
        for index in range(self._view.width):
            found = await self._everywhere(index, name)
            if not all(judged.empty for judged in found):
                return any(judged.allowed or judged.asked for judged in found)
        return False

    async def has_allowed(self, name: str) -> bool:
        """Return True if the solver sees a record of `name`."""
        if self.showing is not Showing.ALLOWED:
            return await self.offers(name)
        return await self._has_allowed(name)


def _remember(place: tuple[str, str, str, str], name: str, found: _Found) -> None:
    files = sum(len(each.hidden) for each in _FOUND.values()) if found.hidden else 0
    if len(_FOUND) >= _MAX_CACHED_NAMES or files + len(found.hidden) > _MAX_CACHED_FILES:
        _FOUND.clear()
    _FOUND[place, name] = found


def _name_channel(judged: _Judged, *, filtered: bool) -> None:
    if judged.filtered is filtered:
        return
    judged.filtered = filtered
    hidden = (record for record, _ in (*judged.asked, *judged.refused))
    for record in (*judged.allowed, *hidden):
        channel = str(record.channel).removesuffix(_FILTERED)
        record.channel = f"{channel}{_FILTERED}" if filtered else channel


def _wall_in(judged: _Judged) -> None:
    for position, (record, _) in enumerate(judged.asked):
        if position not in judged.depends:
            judged.depends[position] = record.depends
        record.depends = [_BARRIER]


def _restore(judged: _Judged) -> None:
    for position, depends in judged.depends.items():
        judged.asked[position][0].depends = depends
    judged.depends.clear()


class _ChannelView:
    """One channel of a view; implements rattler's RepoDataSource."""

    def __init__(self, view: PlatformView, index: int) -> None:
        self._view = view
        self._index = index

    async def fetch_package_records(
        self, platform: rattler.Subdir, name: rattler.PackageName
    ) -> list[rattler.RepoDataRecord]:
        return await self._view.shown(self._index, str(platform), name.normalized)

    def package_names(self, platform: rattler.Subdir) -> list[str]:
        return []  # lists of names are read from the channels themselves


class _Evidence:
    """Policy evidence of this installation, read in the solver's process."""

    def __init__(self, rules: Rules) -> None:
        self.now = rules.now
        self._known = Known(
            now=rules.now,
            found_scripts=rules.policy.scripts,
            own_licenses=rules.policy.own_licenses,
        )
        self._seen = FirstSeen(rules.first_seen) if rules.first_seen else None

    def first_seen(self, subject: Subject) -> Any:
        if self._seen is None:
            return None
        return self._seen.sighting(subject.channel, subject.subdir, subject.sha256)

    def scripts(self, subject: Subject) -> tuple[str, ...] | None:
        return self._known.scripts(subject)

    def own_license(self, subject: Subject) -> str:
        return self._known.own_license(subject)


class ChannelRecord:
    """Adapter from a rattler record to a policy `Subject`; reads only attributes a rule needs."""

    __slots__ = ("channel", "name", "record")
    manager = "conda"
    listed = True
    source = ""

    def __init__(self, record: rattler.RepoDataRecord, name: str, channel: str) -> None:
        """`channel`: its base URL, shared by all its records."""
        self.record = record
        self.name = name
        self.channel = channel

    @property
    def version(self) -> str:
        return str(self.record.version)

    @property
    def subdir(self) -> str:
        return self.record.subdir

    @property
    def file_name(self) -> str:
        return self.record.file_name

    @property
    def sha256(self) -> str:
        digest = self.record.sha256
        return digest.hex() if digest else ""

    @property
    def license(self) -> str:
        return self.record.license or ""

    # rattler's properties build a datetime, which takes longer than the rest of a rule; the
    # wrapped record has the milliseconds.

    @property
    def published(self) -> float | None:
        moment = native_record(self.record).timestamp
        return None if moment is None else moment / 1000

    @property
    def indexed(self) -> float | None:
        moment = native_record(self.record).indexed_timestamp
        return None if moment is None else moment / 1000
