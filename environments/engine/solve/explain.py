"""Explain why a request has no solution: find the requirements that exclude each other."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import rattler

from condastore.errors import TimeLimitError, UnsatisfiableError
from environments.engine.solve.conflict_errors import (
    MAX_SHOWN_VERSIONS,
    Finding,
    abbreviated,
    conflict_error,
    joined,
    readable,
    release_label,
    version_range,
)
from environments.engine.solve.match_specs import (
    OR,
    is_channel,
    parsed_spec,
    spec_name,
    version_matches,
)

#: Time limits in seconds of one solve of a subset, and of all of them together.
_PROBE_SECONDS = 3.0
_PROBES_SECONDS = 12.0
_MAX_NAMES = 400  # names that are examined for one conflict
_REVOKED = "package_has_been_revoked"


class NoSolutionError(Exception):
    """rattler found that the requirements have no solution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The records of one name in one channel, and the versions that the channel removed."""

    channel: str
    records: tuple[rattler.RepoDataRecord, ...]
    removed: frozenset[str] = frozenset()


class SolverQueries(Protocol):
    """Queries that an explanation needs; `solve.RattlerPlatform` implements it."""

    platform: str
    channels: tuple[str, ...]
    cutoff: datetime | None
    deadline: float
    virtual: tuple[str, ...]

    async def solve(
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
    only_if_present: bool = False  # from `constrains`: no limit unless something needs the package

    def __str__(self) -> str:
        verb = "allows only" if self.only_if_present else "requires"
        through = f" (through {', '.join(self.path[1:])})" if len(self.path) > 1 else ""
        if self.path == (self.spec,):
            return f"you ask for {readable(self.spec)}"
        if not self.origins:
            return f"{self.path[0]} applies"
        return f"{readable(self.path[0])} {verb} {abbreviated(self.spec)}{through}"


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
            spec = parsed_spec(text)
            self.accepted[text] = any(spec.matches(record) for record in self.left)
        return self.accepted[text]


class Explainer:
    """Find the reasons of one platform's conflict, with a few short solves."""

    def __init__(
        self, queries: SolverQueries, specs: Sequence[str], *, constraints: Sequence[str] = ()
    ) -> None:
        self._queries = queries
        self._specs = tuple(dict.fromkeys(specs))
        self._constraints = tuple(constraints)
        self._until = min(time.monotonic() + _PROBES_SECONDS, queries.deadline)
        self._cutoff_ms = queries.cutoff.timestamp() if queries.cutoff is not None else None

    async def explain(self, *, probe: bool = True) -> UnsatisfiableError | TimeLimitError:
        """Return the error to raise. Without `probe`, no solves: report only direct reasons."""
        missing: list[dict[str, Any]] = []
        findings: list[Finding] = []
        rest: list[str] = []
        for spec in self._specs:
            fault = await self._unmet(spec)
            if fault is None:
                rest.append(spec)
            elif isinstance(fault, Finding):
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
                    f"{self._queries.platform}: the solver needed too much memory to find a "
                    "solution.",
                    hint="Give versions for more of the requirements, or ask for fewer packages.",
                )
            findings.append(
                Finding(
                    requirements=self._specs,
                    reason="No combination of versions satisfies these requirements together.",
                )
            )
        return conflict_error(self._queries.platform, missing, findings)

    # One requirement alone

    async def _unmet(self, spec: str) -> Finding | dict[str, Any] | None:
        """Return what is wrong with a requirement on its own; None if nothing is found."""
        name = spec_name(spec)
        if name.startswith("__"):
            if self._virtual_match(spec):
                return None
            limit = _Limit(spec=spec, path=(spec,), origins=(spec,))
            return self._found([limit], self._virtual_reason(limit))
        tiers = await self._queries.tiers(name)
        if not any(tier.records for tier in tiers):
            gone = sorted({version for tier in tiers for version in tier.removed})
            return await self._missing(spec, name, gone)
        left = self._visible(tiers, spec)
        if left:
            return None
        return Finding(requirements=(spec,), reason=await self._why_unsatisfied(spec, tiers))

    async def _missing(self, spec: str, name: str, gone: Sequence[str]) -> dict[str, Any]:
        names = await self._queries.names()
        other_platforms = await self._queries.platforms_with(name)
        similar = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
        known = set(names)
        for candidate in (f"python-{name}", f"py{name}", f"lib{name}", name.replace("_", "-")):
            if candidate in known and candidate not in similar:
                similar.append(candidate)
        note = ""
        if other_platforms:
            note = f"it exists only for {', '.join(other_platforms)}"
        elif gone:
            note = f"the channel removed it ({', '.join(gone)})"
        return {
            "requirement": spec,
            "platform": self._queries.platform,
            "channels": list(self._queries.channels),
            "similar": similar,
            "note": note,
        }

    async def _why_unsatisfied(self, wanted: str, tiers: Sequence[Tier]) -> str:
        """Say why no record satisfies `wanted`, whatever else is required."""
        name = spec_name(wanted)
        either = [parsed_spec(text) for text in wanted.split(OR)]
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
            limit = self._queries.cutoff.date().isoformat() if self._queries.cutoff else ""
            date = f"was published on {when.date().isoformat()}" if when else "has no date"
            return (
                f"{name} {newest.version} {date}; only packages published up to {limit} are "
                "allowed (exclude-newer)."
            )
        lower = [channel for channel, found in fitting.items() if found]
        if lower:
            return (
                f"{readable(wanted)} is only in the channel {lower[0]}; {first.channel} has a "
                f"higher priority and also has {name}, so strict channel priority ignores lower "
                f"channels. Put {lower[0]} first, or write {lower[0]}::{name}."
            )
        removed = sorted(
            v for v in first.removed if any(version_matches(spec.version, v) for spec in either)
        )
        if removed:
            return f"{name} {', '.join(removed)} was removed by {first.channel}."
        if any(
            version_matches(spec.version, str(r.version)) for spec in either for r in first.records
        ):
            builds = sorted(
                {
                    f"{r.version}={r.build}"
                    for r in first.records
                    if any(version_matches(spec.version, str(r.version)) for spec in either)
                }
            )
            return (
                f"No build of {name} matches {readable(wanted)}; available: "
                f"{', '.join(builds[-MAX_SHOWN_VERSIONS:])}."
            )
        return f"{readable(wanted)} does not exist; available: {version_range(first.records)}."

    # Several requirements together

    async def _conflict(self, specs: Sequence[str], *, probe: bool) -> Finding | None:
        """Return the smallest subset of `specs` without a solution, and why; None if all solve."""
        found = tuple(specs)
        if probe:
            if await self._is_solvable(specs, self._constraints):
                return None
            found = await self._smallest(specs)
        reason = await self._propagate(found)
        if reason is not None or not probe:
            return reason
        return Finding(
            requirements=found,
            reason=(
                f"{joined(map(readable, found))} exclude each other: every combination of versions "
                "leads to a conflict between their dependencies."
                if len(found) > 1
                else f"The dependencies of {readable(found[0])} exclude each other."
                if found
                else "The rules of this namespace leave no solution."
            ),
        )

    async def _is_solvable(self, specs: Sequence[str], constraints: Sequence[str]) -> bool:
        """Return True if `specs` have a solution, or if that is not known within the time."""
        left = self._until - time.monotonic()
        if left <= 0:
            return True
        try:
            await self._queries.solve(specs, constraints, seconds=min(_PROBE_SECONDS, left))
        except NoSolutionError:
            return False
        except TimeLimitError:
            return True
        return True

    async def _smallest(self, specs: Sequence[str]) -> tuple[str, ...]:
        """Find a minimal conflict by QuickXplain (Junker 2004): k log(n/k) solves for k of n."""

        async def search(background: list[str], changed: bool, rest: list[str]) -> list[str]:
            if changed and not await self._is_solvable(background, self._constraints):
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

    async def _propagate(self, specs: Sequence[str]) -> Finding | None:
        """Propagate the dependencies of every candidate until a name has no candidates left."""
        domains: dict[str, _Domain] = {}
        dependents: dict[str, set[str]] = {}  # name -> names whose records may depend on it
        queue: list[str] = []

        def add(name: str, limit: _Limit) -> None:
            domain = domains.setdefault(name, _Domain())
            if any(
                held.spec == limit.spec and held.only_if_present <= limit.only_if_present
                for held in domain.limits
            ):
                return
            domain.limits.append(limit)
            domain.needed = domain.needed or not limit.only_if_present
            enqueue(name)

        def enqueue(name: str) -> None:
            if name not in queue:
                queue.append(name)

        for spec in specs:
            add(spec_name(spec), _Limit(spec=spec, path=(spec,), origins=(spec,)))
        for spec in self._constraints:
            path = (f"the rule “{spec}” of this namespace",)
            add(spec_name(spec), _Limit(spec=spec, path=path, origins=(), only_if_present=True))
        examined = 0
        while queue and examined < _MAX_NAMES and time.monotonic() < self._until + _PROBE_SECONDS:
            examined += 1
            name = queue.pop(0)
            domain = domains[name]
            if not domain.needed:
                continue
            if name.startswith("__"):
                for limit in domain.limits:
                    if not limit.only_if_present and not self._virtual_match(limit.spec):
                        return self._found([limit], self._virtual_reason(limit))
                continue
            tiers = await self._queries.tiers(name)
            fitting = self._within(tiers, [limit.spec for limit in domain.limits])
            if not fitting:
                return await self._explain_empty(name, domain.limits, tiers)
            left = [record for record in fitting if _blocking_dependency(record, domains) is None]
            if not left:
                return self._all_blocked(name, fitting, domains)
            before = domain.left
            domain.keep(left)
            if before is not None and len(before) == len(left):
                continue
            for limit in self._implied(domain):
                add(spec_name(limit.spec), limit)
            for record in left:
                for entry in record.depends:
                    dependents.setdefault(spec_name(entry), set()).add(name)
            for dependent in sorted(dependents.get(name, ())):
                enqueue(dependent)
        return None

    def _implied(self, domain: _Domain) -> Iterator[_Limit]:
        """Yield the limits that every remaining candidate implies."""
        records = domain.left or []
        nearest = min(domain.limits, key=lambda limit: (limit.only_if_present, len(limit.path)))
        asked_for = nearest.path == (nearest.spec,)
        path = nearest.path if asked_for else (*nearest.path, release_label(records))
        origins = tuple(
            dict.fromkeys(origin for limit in domain.limits for origin in limit.origins)
        )
        for only_if_present, key in ((False, "depends"), (True, "constrains")):
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
                    spec=OR.join(sorted(common[name])),
                    path=path,
                    origins=origins,
                    only_if_present=only_if_present,
                )

    def _all_blocked(
        self,
        name: str,
        fitting: Sequence[rattler.RepoDataRecord],
        domains: Mapping[str, _Domain],
    ) -> Finding:
        """Report that every record of `name` depends on something the other limits exclude."""
        chain: dict[str, None] = {}
        origins: dict[str, None] = dict.fromkeys(_origins(domains[name].limits))
        for record in sorted(fitting, key=_order, reverse=True):
            entry = _blocking_dependency(record, domains)
            if entry is None:
                continue
            wall = domains[spec_name(entry)]
            origins |= dict.fromkeys(_origins(wall.limits))
            chain[f"{name} {record.version} requires {entry}"] = None
            for limit in wall.limits:
                chain[" → ".join([*limit.path, abbreviated(limit.spec)])] = None
        steps = list(chain)
        requested = joined([readable(origin) for origin in self._specs if origin in origins])
        return Finding(
            requirements=tuple(origin for origin in self._specs if origin in origins),
            reason=(
                f"{requested} exclude each other: every possible {name} depends on something that "
                f"the others exclude ({'; '.join(steps[:3])})."
            ),
            chain=tuple(steps[:12]),
        )

    async def _explain_empty(
        self, name: str, limits: Sequence[_Limit], tiers: Sequence[Tier]
    ) -> Finding:
        """Report that no record of `name` is left, with a minimal set of the limits on it."""
        needed = list(limits)
        for limit in reversed(limits):
            fewer = [held for held in needed if held is not limit]
            if not fewer or all(held.only_if_present for held in fewer):
                continue
            if not self._within(tiers, [held.spec for held in fewer]):
                needed = fewer
        if len(needed) > 1:
            said = joined([str(limit) for limit in needed])
            none = f"no {name} satisfies both" if len(needed) == 2 else f"no {name} satisfies all"
            return self._found(needed, f"{said}: {none}.")
        limit = needed[0]
        asked_for = limit.path == (limit.spec,)
        if name == _REVOKED:
            return self._found(needed, f"{readable(limit.path[-1])} was revoked by its channel.")
        if not any(tier.records for tier in tiers):
            return self._found(needed, f"{limit}, which no channel has.")
        reason = await self._why_unsatisfied(limit.spec, tiers)
        return self._found(needed, reason if asked_for else f"{limit}. {reason}")

    def _found(self, limits: Sequence[_Limit], reason: str) -> Finding:
        origins = _origins(limits)
        chain = tuple(
            " → ".join(limit.path if limit.path == (limit.spec,) else [*limit.path, limit.spec])
            for limit in limits
        )
        return Finding(
            requirements=tuple(spec for spec in self._specs if spec in origins),
            reason=reason,
            chain=chain,
        )

    # Records

    def _visible(self, tiers: Sequence[Tier], spec: str) -> list[rattler.RepoDataRecord]:
        return self._within(tiers, [spec])

    def _within(self, tiers: Sequence[Tier], specs: Sequence[str]) -> list[rattler.RepoDataRecord]:
        """Return the records that the solver may choose for all of `specs`, all of one name."""
        choices = [[parsed_spec(text) for text in spec.split(OR)] for spec in specs]
        named = [spec.partition("::")[0] for spec in specs if "::" in spec]
        for tier in tiers:
            if not tier.records:
                continue
            if not all(is_channel(tier.channel, requested) for requested in named):
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
        parsed = parsed_spec(spec)
        for entry in self._queries.virtual:
            name, version, build = entry.split("=", 2)
            if name == spec_name(spec) and parsed.matches(_virtual_record(name, version, build)):
                return True
        return False

    def _virtual_reason(self, limit: _Limit) -> str:
        name, platform = spec_name(limit.spec), self._queries.platform
        if name in ("__win", "__osx", "__linux", "__unix") and not any(
            entry.startswith(f"{name}=") for entry in self._queries.virtual
        ):
            return f"{limit}, which {platform} is not."
        parsed = parsed_spec(limit.spec)
        requested = "".join(c for c in (parsed.version or "").split(",")[0] if c in "0123456789.")
        requested, build = requested.strip("."), (parsed.build or "").strip("*")
        example = name + (
            f"={requested or 1}={build}" if build else f"={requested}" if requested else ""
        )
        has = next((v for v in self._queries.virtual if v.startswith(f"{name}=")), "")
        which = "does not provide by default"
        if has:
            which = f"does not satisfy: it is assumed to have {has.removesuffix('=0')}"
        return (
            f"{limit}, which {platform} {which}. If your machines have it, declare it: "
            f"`virtual-packages: [{example}]`."
        )


def _blocking_dependency(
    record: rattler.RepoDataRecord, domains: Mapping[str, _Domain]
) -> str | None:
    """Return a dependency of `record` that no remaining candidate satisfies, or None."""
    for entry in record.depends:
        domain = domains.get(spec_name(entry))
        if domain is not None and not domain.accepts(entry):
            return entry
    return None


def _origins(limits: Iterable[_Limit]) -> list[str]:
    return list(dict.fromkeys(origin for limit in limits for origin in limit.origins))


def _virtual_record(name: str, version: str, build: str) -> rattler.PackageRecord:
    return rattler.PackageRecord(name, version, rattler.package.BuildString(build), 0, "noarch")


def _order(record: rattler.RepoDataRecord) -> Any:
    return (record.version, record.build_number)
