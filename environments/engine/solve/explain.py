"""Explain why a request has no solution: find the requirements that exclude each other."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

import rattler
from rattler.version import VersionSpec

from condastore.errors import TimeLimitError, UnsatisfiableError

#: Time limits in seconds of one solve of a subset, and of all of them together.
_PROBE_SECONDS = 3.0
_PROBES_SECONDS = 12.0
_MAX_NAMES = 400  # names that are examined for one conflict
_MAX_SHOWN_VERSIONS = 6
_OR = " or "  # between alternatives, when different records of a package depend on different specs
_REVOKED = "package_has_been_revoked"


class NoAnswerError(Exception):
    """rattler found that the requirements have no solution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The records of one name in one channel, and the versions that the channel removed."""

    channel: str
    records: tuple[rattler.RepoDataRecord, ...]
    removed: frozenset[str] = frozenset()


class Question(Protocol):
    """Queries that an explanation needs; `solve.RattlerQuestion` implements it."""

    platform: str
    channels: tuple[str, ...]
    cutoff: datetime | None
    deadline: float
    virtual: tuple[str, ...]

    async def ask(
        self, specs: Sequence[str], constraints: Sequence[str], *, seconds: float | None = None
    ) -> Sequence[Any]: ...

    async def tiers(self, name: str) -> list[Tier]: ...

    async def names(self) -> list[str]: ...

    async def platforms_with(self, name: str) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """A limit on one package, with the chain of dependencies that leads to it."""

    spec: str
    path: tuple[str, ...]  # ("conflict-left", "conflict-left-base 1.0", ...), requirement first
    origins: tuple[str, ...]  # the user's requirements that it follows from
    only_if_there: bool = False  # from `constrains`: no limit unless something needs the package

    def __str__(self) -> str:
        verb = "allows only" if self.only_if_there else "requires"
        through = f" (through {', '.join(self.path[1:])})" if len(self.path) > 1 else ""
        if self.path == (self.spec,):
            return f"you ask for {_words(self.spec)}"
        if not self.origins:
            return f"{self.path[0]} applies"
        return f"{_words(self.path[0])} {verb} {_short(self.spec)}{through}"


@dataclass(slots=True)
class _Domain:
    """The candidates of one name, and the limits on them."""

    limits: list[_Limit] = field(default_factory=list)
    left: list[rattler.RepoDataRecord] | None = None  # None: not examined yet
    needed: bool = False
    accepted: dict[str, bool] = field(default_factory=dict)  # spec -> whether one of `left` matches

    def keep(self, records: list[rattler.RepoDataRecord]) -> None:
        self.left = records
        self.accepted.clear()

    def accepts(self, text: str) -> bool:
        """Return True if a candidate matches a dependency, or if none was examined yet."""
        if self.left is None:
            return True
        if text not in self.accepted:
            spec = _spec(text)
            self.accepted[text] = any(spec.matches(record) for record in self.left)
        return self.accepted[text]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    requirements: tuple[str, ...]
    reason: str
    chain: tuple[str, ...] = ()


class Explainer:
    """Find the reasons of one platform's conflict, with a few short solves."""

    def __init__(
        self, question: Question, specs: Sequence[str], *, constraints: Sequence[str] = ()
    ) -> None:
        self._question = question
        self._specs = tuple(dict.fromkeys(specs))
        self._constraints = tuple(constraints)
        self._until = min(time.monotonic() + _PROBES_SECONDS, question.deadline)
        self._cutoff_ms = question.cutoff.timestamp() if question.cutoff is not None else None

    async def explain(self, *, probe: bool = True) -> UnsatisfiableError | TimeLimitError:
        """Return the error to raise. Without `probe`, no solves: report only direct reasons."""
        missing: list[dict[str, Any]] = []
        findings: list[_Finding] = []
        rest: list[str] = []
        for spec in self._specs:
            fault = await self._unmet(spec)
            if fault is None:
                rest.append(spec)
            elif isinstance(fault, _Finding):
                findings.append(fault)
            else:
                missing.append(fault)
        for _ in range(3):  # report unrelated conflicts together
            conflict = await self._conflict(rest, probe=probe and time.monotonic() < self._until)
            if conflict is None:
                break
            findings.append(conflict)
            rest = [spec for spec in rest if spec not in conflict.requirements]
        if not missing and not findings:
            if not probe:
                return TimeLimitError(
                    f"{self._question.platform}: the solver needed too much memory to find a "
                    "solution.",
                    hint="Give versions for more of the requirements, or ask for fewer packages.",
                )
            findings.append(
                _Finding(
                    requirements=self._specs,
                    reason="No combination of versions satisfies these requirements together.",
                )
            )
        return _error(self._question.platform, missing, findings)

    # One requirement alone

    async def _unmet(self, spec: str) -> _Finding | dict[str, Any] | None:
        """Return what is wrong with a requirement on its own; None if nothing is found."""
        name = spec_name(spec)
        if name.startswith("__"):
            if self._virtual_match(spec):
                return None
            limit = _Limit(spec=spec, path=(spec,), origins=(spec,))
            return self._found([limit], self._virtual_reason(limit))
        tiers = await self._question.tiers(name)
        if not any(tier.records for tier in tiers):
            gone = sorted({version for tier in tiers for version in tier.removed})
            return await self._missing(spec, name, gone)
        left = self._visible(tiers, spec)
        if left:
            return None
        return _Finding(requirements=(spec,), reason=await self._nothing_fits(spec, tiers))

    async def _missing(self, spec: str, name: str, gone: Sequence[str]) -> dict[str, Any]:
        names = await self._question.names()
        elsewhere = await self._question.platforms_with(name)
        similar = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
        known = set(names)
        for candidate in (f"python-{name}", f"py{name}", f"lib{name}", name.replace("_", "-")):
            if candidate in known and candidate not in similar:
                similar.append(candidate)
        note = ""
        if elsewhere:
            note = f"it exists only for {', '.join(elsewhere)}"
        elif gone:
            note = f"the channel removed it ({', '.join(gone)})"
        return {
            "requirement": spec,
            "platform": self._question.platform,
            "channels": list(self._question.channels),
            "similar": similar,
            "note": note,
        }

    async def _nothing_fits(self, wanted: str, tiers: Sequence[Tier]) -> str:
        """Say why no record satisfies `wanted`, whatever else is required."""
        name = spec_name(wanted)
        either = [_spec(text) for text in wanted.split(_OR)]
        first = next((tier for tier in tiers if tier.records), None)
        if first is None:
            return f"No channel has {name}."
        fitting = {
            tier.channel: [r for r in tier.records if any(spec.matches(r) for spec in either)]
            for tier in tiers
        }
        if fitting[first.channel]:  # it exists, but exclude-newer hides it
            newest = max(fitting[first.channel], key=_order)
            when = newest.indexed_timestamp or newest.timestamp
            limit = self._question.cutoff.date().isoformat() if self._question.cutoff else ""
            date = f"was published on {when.date().isoformat()}" if when else "has no date"
            return (
                f"{name} {newest.version} {date}; only packages published up to {limit} are "
                "allowed (exclude-newer)."
            )
        lower = [channel for channel, found in fitting.items() if found]
        if lower:
            return (
                f"{_words(wanted)} is only in the channel {lower[0]}; {first.channel} has a higher "
                f"priority and also has {name}, so strict channel priority ignores lower "
                f"channels. Put {lower[0]} first, or write {lower[0]}::{name}."
            )
        removed = sorted(
            v for v in first.removed if any(_takes(spec.version, v) for spec in either)
        )
        if removed:
            return f"{name} {', '.join(removed)} was removed by {first.channel}."
        if any(_takes(spec.version, str(r.version)) for spec in either for r in first.records):
            builds = sorted(
                {
                    f"{r.version}={r.build}"
                    for r in first.records
                    if any(_takes(spec.version, str(r.version)) for spec in either)
                }
            )
            return (
                f"No build of {name} matches {_words(wanted)}; available: "
                f"{', '.join(builds[-_MAX_SHOWN_VERSIONS:])}."
            )
        return f"{_words(wanted)} does not exist; available: {_versions(first.records)}."

    # Several requirements together

    async def _conflict(self, specs: Sequence[str], *, probe: bool) -> _Finding | None:
        """Return the smallest subset of `specs` without a solution, and why; None if all solve."""
        found = tuple(specs)
        if probe:
            if await self._answers(specs, self._constraints):
                return None
            found = await self._smallest(specs)
        reason = await self._propagate(found)
        if reason is not None or not probe:
            return reason
        return _Finding(
            requirements=found,
            reason=(
                f"{_list(map(_words, found))} exclude each other: every combination of versions "
                "leads to a conflict between their dependencies."
                if len(found) > 1
                else f"The dependencies of {_words(found[0])} exclude each other."
                if found
                else "The rules of this namespace leave no solution."
            ),
        )

    async def _answers(self, specs: Sequence[str], constraints: Sequence[str]) -> bool:
        """Return True if `specs` have a solution, or if that is not known within the time."""
        left = self._until - time.monotonic()
        if left <= 0:
            return True
        try:
            await self._question.ask(specs, constraints, seconds=min(_PROBE_SECONDS, left))
        except NoAnswerError:
            return False
        except TimeLimitError:
            return True
        return True

    async def _smallest(self, specs: Sequence[str]) -> tuple[str, ...]:
        """Find a minimal conflict by QuickXplain (Junker 2004): k log(n/k) solves for k of n."""

        async def search(background: list[str], changed: bool, rest: list[str]) -> list[str]:
            if changed and not await self._answers(background, self._constraints):
                return []
            if len(rest) <= 1:
                return rest
            half = len(rest) // 2
            left, right = rest[:half], rest[half:]
            of_right = await search(background + left, bool(left), right)
            of_left = await search(background + of_right, bool(of_right), left)
            return of_left + of_right

        found = await search([], False, list(specs))
        return tuple(spec for spec in specs if spec in found)

    async def _propagate(self, specs: Sequence[str]) -> _Finding | None:
        """Propagate the dependencies of every candidate until a name has no candidates left."""
        domains: dict[str, _Domain] = {}
        askers: dict[str, set[str]] = {}  # name -> names whose records may depend on it
        queue: list[str] = []

        def add(name: str, limit: _Limit) -> None:
            domain = domains.setdefault(name, _Domain())
            if any(
                held.spec == limit.spec and held.only_if_there <= limit.only_if_there
                for held in domain.limits
            ):
                return
            domain.limits.append(limit)
            domain.needed = domain.needed or not limit.only_if_there
            enqueue(name)

        def enqueue(name: str) -> None:
            if name not in queue:
                queue.append(name)

        for spec in specs:
            add(spec_name(spec), _Limit(spec=spec, path=(spec,), origins=(spec,)))
        for spec in self._constraints:
            path = (f"the rule “{spec}” of this namespace",)
            add(spec_name(spec), _Limit(spec=spec, path=path, origins=(), only_if_there=True))
        looked = 0
        while queue and looked < _MAX_NAMES and time.monotonic() < self._until + _PROBE_SECONDS:
            looked += 1
            name = queue.pop(0)
            domain = domains[name]
            if not domain.needed:
                continue
            if name.startswith("__"):
                for limit in domain.limits:
                    if not limit.only_if_there and not self._virtual_match(limit.spec):
                        return self._found([limit], self._virtual_reason(limit))
                continue
            tiers = await self._question.tiers(name)
            fitting = self._within(tiers, [limit.spec for limit in domain.limits])
            if not fitting:
                return await self._empty(name, domain.limits, tiers)
            left = [record for record in fitting if _barrier(record, domains) is None]
            if not left:
                return self._walled_in(name, fitting, domains)
            before = domain.left
            domain.keep(left)
            if before is not None and len(before) == len(left):
                continue
            for limit in self._implied(domain):
                add(spec_name(limit.spec), limit)
            for record in left:
                for entry in record.depends:
                    askers.setdefault(spec_name(entry), set()).add(name)
            for asker in sorted(askers.get(name, ())):
                enqueue(asker)
        return None

    def _implied(self, domain: _Domain) -> Iterator[_Limit]:
        """Yield the limits that every remaining candidate implies."""
        records = domain.left or []
        nearest = min(domain.limits, key=lambda limit: (limit.only_if_there, len(limit.path)))
        asked_for = nearest.path == (nearest.spec,)
        path = nearest.path if asked_for else (*nearest.path, _label(records))
        origins = tuple(
            dict.fromkeys(origin for limit in domain.limits for origin in limit.origins)
        )
        for only_if_there, key in ((False, "depends"), (True, "constrains")):
            common: dict[str, set[str]] = {}
            for index, record in enumerate(records):
                mine: dict[str, set[str]] = {}
                for entry in getattr(record, key):
                    mine.setdefault(spec_name(entry), set()).add(entry)
                if index == 0:
                    common = mine
                else:
                    common = {n: common[n] | mine[n] for n in common.keys() & mine.keys()}
                if not common:
                    break
            for name in sorted(common):
                yield _Limit(
                    spec=_OR.join(sorted(common[name])),
                    path=path,
                    origins=origins,
                    only_if_there=only_if_there,
                )

    def _walled_in(
        self,
        name: str,
        fitting: Sequence[rattler.RepoDataRecord],
        domains: Mapping[str, _Domain],
    ) -> _Finding:
        """Report that every record of `name` depends on something the other limits exclude."""
        chain: dict[str, None] = {}
        origins: dict[str, None] = dict.fromkeys(_origins(domains[name].limits))
        for record in sorted(fitting, key=_order, reverse=True):
            entry = _barrier(record, domains)
            if entry is None:
                continue
            wall = domains[spec_name(entry)]
            origins |= dict.fromkeys(_origins(wall.limits))
            chain[f"{name} {record.version} requires {entry}"] = None
            for limit in wall.limits:
                chain[" → ".join([*limit.path, _short(limit.spec)])] = None
        steps = list(chain)
        asked = _list([_words(origin) for origin in self._specs if origin in origins])
        return _Finding(
            requirements=tuple(origin for origin in self._specs if origin in origins),
            reason=(
                f"{asked} exclude each other: every possible {name} depends on something that "
                f"the others exclude ({'; '.join(steps[:3])})."
            ),
            chain=tuple(steps[:12]),
        )

    async def _empty(self, name: str, limits: Sequence[_Limit], tiers: Sequence[Tier]) -> _Finding:
        """Report that no record of `name` is left, with a minimal set of the limits on it."""
        needed = list(limits)
        for limit in reversed(limits):
            fewer = [held for held in needed if held is not limit]
            if not fewer or all(held.only_if_there for held in fewer):
                continue
            if not self._within(tiers, [held.spec for held in fewer]):
                needed = fewer
        if len(needed) > 1:
            said = _list([str(limit) for limit in needed])
            none = f"no {name} satisfies both" if len(needed) == 2 else f"no {name} satisfies all"
            return self._found(needed, f"{said}: {none}.")
        limit = needed[0]
        asked_for = limit.path == (limit.spec,)
        if name == _REVOKED:
            return self._found(needed, f"{_words(limit.path[-1])} was revoked by its channel.")
        if not any(tier.records for tier in tiers):
            return self._found(needed, f"{limit}, which no channel has.")
        reason = await self._nothing_fits(limit.spec, tiers)
        return self._found(needed, reason if asked_for else f"{limit}. {reason}")

    def _found(self, limits: Sequence[_Limit], reason: str) -> _Finding:
        origins = _origins(limits)
        chain = tuple(
            " → ".join(limit.path if limit.path == (limit.spec,) else [*limit.path, limit.spec])
            for limit in limits
        )
        return _Finding(
            requirements=tuple(spec for spec in self._specs if spec in origins),
            reason=reason,
            chain=chain,
        )

    # Records

    def _visible(self, tiers: Sequence[Tier], spec: str) -> list[rattler.RepoDataRecord]:
        return self._within(tiers, [spec])

    def _within(self, tiers: Sequence[Tier], specs: Sequence[str]) -> list[rattler.RepoDataRecord]:
        """Return the records that the solver may choose for all of `specs`, all of one name."""
        choices = [[_spec(text) for text in spec.split(_OR)] for spec in specs]
        named = [spec.partition("::")[0] for spec in specs if "::" in spec]
        for tier in tiers:
            if not tier.records:
                continue
            if not all(_is_channel(tier.channel, wanted) for wanted in named):
                continue
            return [
                record
                for record in tier.records
                if self._old_enough(record)
                and all(any(spec.matches(record) for spec in either) for either in choices)
            ]
        return []

    def _old_enough(self, record: rattler.RepoDataRecord) -> bool:
        if self._cutoff_ms is None:
            return True
        moment = record.indexed_timestamp or record.timestamp
        return moment is not None and moment.timestamp() <= self._cutoff_ms

    def _virtual_match(self, spec: str) -> bool:
        parsed = _spec(spec)
        for entry in self._question.virtual:
            name, version, build = entry.split("=", 2)
            if name == spec_name(spec) and parsed.matches(_virtual_record(name, version, build)):
                return True
        return False

    def _virtual_reason(self, limit: _Limit) -> str:
        name, platform = spec_name(limit.spec), self._question.platform
        if name in ("__win", "__osx", "__linux", "__unix") and not any(
            entry.startswith(f"{name}=") for entry in self._question.virtual
        ):
            return f"{limit}, which {platform} is not."
        parsed = _spec(limit.spec)
        wanted = "".join(c for c in (parsed.version or "").split(",")[0] if c in "0123456789.")
        wanted, build = wanted.strip("."), (parsed.build or "").strip("*")
        example = name + (f"={wanted or 1}={build}" if build else f"={wanted}" if wanted else "")
        has = next((v for v in self._question.virtual if v.startswith(f"{name}=")), "")
        which = "does not provide by default"
        if has:
            which = f"does not satisfy: it is assumed to have {has.removesuffix('=0')}"
        return (
            f"{limit}, which {platform} {which}. If your machines have it, declare it: "
            f"`virtual-packages: [{example}]`."
        )


def unsatisfiable(errors: Sequence[UnsatisfiableError]) -> UnsatisfiableError:
    """Combine the errors of several platforms into one; do not repeat what is the same."""
    if len(errors) == 1:
        return errors[0]
    return UnsatisfiableError(
        " ".join(error.message for error in errors),
        details={
            key: [item for error in errors for item in error.details.get(key, ())]
            for key in ("conflicts", "missing", "policy")
        },
    )


def _error(
    platform: str, missing: Sequence[dict[str, Any]], findings: Sequence[_Finding]
) -> UnsatisfiableError:
    sentences: list[str] = []
    for item in missing:
        sentence = f"No channel has {_words(item['requirement'])}"
        if item["note"]:
            sentence += f": {item['note']}"
        if item["similar"]:
            sentence += f"; did you mean {' or '.join(item['similar'])}?"
        sentences.append(sentence if sentence.endswith("?") else f"{sentence}.")
    sentences += [_sentence(finding.reason) for finding in findings]
    return UnsatisfiableError(
        f"On {platform}: {' '.join(sentences)}",
        details={
            "conflicts": [
                {
                    "requirements": list(finding.requirements),
                    "reason": finding.reason,
                    "chain": list(finding.chain),
                    "platform": platform,
                }
                for finding in findings
            ],
            "missing": list(missing),
        },
    )


def _barrier(record: rattler.RepoDataRecord, domains: Mapping[str, _Domain]) -> str | None:
    """Return a dependency of `record` that no remaining candidate satisfies, or None."""
    for entry in record.depends:
        domain = domains.get(spec_name(entry))
        if domain is not None and not domain.accepts(entry):
            return entry
    return None


def _origins(limits: Iterable[_Limit]) -> list[str]:
    return list(dict.fromkeys(origin for limit in limits for origin in limit.origins))


@lru_cache(maxsize=20_000)
def _spec(text: str) -> rattler.MatchSpec:
    return rattler.MatchSpec(text, strict=False)


@lru_cache(maxsize=20_000)
def spec_name(text: str) -> str:
    """Return the package name of a MatchSpec, or of alternatives joined by `_OR`."""
    matcher = _spec(text.split(_OR)[0]).name
    return str(matcher.normalized if matcher is not None else text)


@lru_cache(maxsize=1_000)
def _takes(wanted: str | None, version: str) -> bool:
    """Return True if the version part of a MatchSpec matches this version."""
    return wanted is None or VersionSpec(wanted).matches(rattler.Version(version))


def _virtual_record(name: str, version: str, build: str) -> rattler.PackageRecord:
    return rattler.PackageRecord(name, version, rattler.package.BuildString(build), 0, "noarch")


def _is_channel(url: str, wanted: str) -> bool:
    wanted = wanted.rstrip("/")
    return url == wanted or url.endswith(f"/{wanted}")


def _order(record: rattler.RepoDataRecord) -> Any:
    return (record.version, record.build_number)


def _versions(records: Iterable[rattler.RepoDataRecord]) -> str:
    found = {str(record.version): record.version for record in records}
    ordered = sorted(found, key=lambda text: found[text])
    if len(ordered) <= _MAX_SHOWN_VERSIONS:
        return ", ".join(ordered)
    return f"{ordered[0]}, {ordered[1]} ... {', '.join(ordered[-3:])} ({len(ordered)} versions)"


def _label(records: Sequence[rattler.RepoDataRecord]) -> str:
    """Return "numpy 1.26.4", or the range of versions if there are several."""
    name = records[0].name.normalized
    found = {str(record.version): record.version for record in records}
    ordered = sorted(found, key=lambda text: found[text])
    return f"{name} {ordered[0]}" if len(ordered) == 1 else f"{name} {ordered[0]} to {ordered[-1]}"


def _sentence(text: str) -> str:
    """Capitalize the first word, unless it is the name of a package."""
    return text[0].upper() + text[1:] if text.startswith(("you ask ", "the rule ")) else text


def _short(spec: str) -> str:
    """Return a spec with at most two of its alternatives."""
    either = spec.split(_OR)
    return (
        spec if len(either) <= 3 else f"{either[0]}, {either[1]} or one of {len(either) - 2} more"
    )


def _words(spec: str) -> str:
    """Return a spec for messages: without a trailing `*`."""
    return spec.removesuffix(" *")


def _list(items: Iterable[str]) -> str:
    *most, last = [*items]
    return f"{', '.join(most)} and {last}" if most else last
