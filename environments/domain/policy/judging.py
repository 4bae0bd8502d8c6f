"""Evaluation of all rules together on names, packages and locks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from packaging.utils import canonicalize_name

from condastore.errors import ChannelNotAllowedError, PolicyError, StoreError
from environments.domain.diff import shortest_chains
from environments.domain.linking import PathConflict
from environments.domain.lock import Lock, PlatformLock, required_name
from environments.domain.pip_requirements import DirectReference, direct_reference
from environments.domain.policy.package_specs import PackageSpec, package_spec
from environments.domain.policy.rules import (
    Channels,
    Check,
    MinimumAge,
    PathConflicts,
    PipSources,
    Rule,
)
from environments.domain.policy.subjects import Evidence, LockedPackage, Subject
from environments.domain.policy.verdicts import WHOLE, Effect, PackageKey, Ruling, Verdict
from environments.domain.records import Package
from environments.domain.specification import Specification

#: Number of verdicts in the message of an error; its details have all.
_SPELT_OUT = 10
#: Only the installation's rules can allow sources, so no approver can help.
_SOURCES_HINT = (
    "Ask an administrator of the installation to allow the source by a rule of the kind "
    "pip-sources, or remove it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All rules in force in one namespace. `version` identifies them and is part of solve keys."""

    rules: tuple[Rule, ...]
    version: str
    rulings: tuple[Ruling, ...] = ()
    #: Install scripts by sha256 of the package.
    scripts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: License by sha256, of packages whose own license differs from the record.
    own_licenses: Mapping[str, str] = field(default_factory=dict)

    @property
    def constraints(self) -> tuple[str, ...]:
        """MatchSpecs that join every solve."""
        return tuple(dict.fromkeys(spec for rule in self.rules for spec in rule.constraints))

    @property
    def required(self) -> tuple[str, ...]:
        """MatchSpecs that are added to every specification."""
        return tuple(dict.fromkeys(spec for rule in self.rules for spec in rule.added))

    @property
    def pypi_constraints(self) -> tuple[str, ...]:
        """PEP 508 constraints on every solve of PyPI packages."""
        return tuple(dict.fromkeys(text for rule in self.rules for text in rule.pypi_constraints))

    @property
    def pypi_age(self) -> timedelta:
        """Minimum age of wheels in the index that a solve considers.

        Rules that exempt names by a glob are applied by the verdicts instead.
        """
        return max((rule.age_of("") for rule in self._pypi_ages()), default=timedelta())

    @property
    def pypi_ages(self) -> Mapping[str, timedelta]:
        """Minimum ages of names that rules exempt; verdicts judge the other versions."""
        rules = self._pypi_ages()
        exempt = {spec.name for rule in rules for spec in rule.exempt if spec.manager != "conda"}
        found: dict[str, timedelta] = {}
        for name in sorted(exempt):
            held = [
                rule.age_of("")
                for rule in rules
                if not any(spec.concerns("pypi", name) for spec in rule.exempt)
            ]
            found[canonicalize_name(name)] = max(held, default=timedelta())
        return found

    def _pypi_ages(self) -> list[MinimumAge]:
        return [
            rule
            for rule in self.rules
            if isinstance(rule, MinimumAge)
            and rule.hides()
            and not any("*" in spec.name for spec in rule.exempt if spec.manager != "conda")
        ]

    def may_name(self, url: str) -> bool:
        """Whether a lock may name a wheel by this URL, which is not from an index, or must ask."""
        reference = DirectReference(kind="wheel", url=url)
        grants = [rule for rule in self.rules if isinstance(rule, PipSources)]
        return bool(grants) and not any(
            rule.effect is Effect.ENFORCE and rule.objection_to(reference) for rule in grants
        )

    @property
    def hides(self) -> bool:
        """Whether a solve must filter the channels by this policy."""
        return any(rule.hides() and _looks(rule) for rule in self.rules)

    @property
    def ages(self) -> bool:
        """Whether verdicts of this policy change with time alone."""
        return any(rule.ages for rule in self.rules)


def _looks(rule: Rule) -> bool:
    """Whether the rule can object to single packages that a solver may choose."""
    if isinstance(rule, Channels):
        return bool(rule.packages) or rule.effect is Effect.ASK
    return type(rule).check is not Rule.check


class Objection(NamedTuple):
    """Objection of one rule to one package, after decisions of people."""

    rule: Rule
    effect: Effect
    text: str  # follows the package's name
    decision: int | None = None


class Screen:
    """A policy prepared for many packages; results are cached by name."""

    def __init__(
        self, policy: Policy, evidence: Evidence, *, rules: Sequence[Rule] | None = None
    ) -> None:
        self.policy = policy
        self._evidence = evidence
        self._rules = policy.rules if rules is None else rules
        self._checks: dict[tuple[str, str], tuple[tuple[Rule, Check], ...]] = {}
        self._rulings: dict[tuple[str, str], tuple[tuple[Ruling, PackageSpec], ...]] = {}
        self._by_digest: dict[str, list[Ruling]] = {}
        self._by_spec: list[tuple[Ruling, PackageSpec]] = []
        for ruling in policy.rulings:
            if ruling.sha256:
                self._by_digest.setdefault(ruling.sha256, []).append(ruling)
            elif ruling.manager != WHOLE and (spec := _ruled(ruling)) is not None:
                self._by_spec.append((ruling, spec))

    def checks(self, manager: str, name: str) -> tuple[tuple[Rule, Check], ...]:
        """Return the checks of rules that concern this name; usually none or few."""
        found = self._checks.get((manager, name))
        if found is None:
            polls = ((rule, rule.check(manager, name, self._evidence)) for rule in self._rules)
            found = tuple((rule, check) for rule, check in polls if check is not None)
            self._checks[manager, name] = found
        return found

    def objections(self, subject: Subject) -> list[Objection]:
        """Return all objections, in the order of the rules."""
        return [*self.found(subject)]

    def found(self, subject: Subject) -> Iterator[Objection]:
        """Yield objections in the order of the rules, evaluated lazily."""
        for rule, check in self.checks(subject.manager, subject.name):
            objection = self.decided(rule, subject, check(subject))
            if objection is not None:
                yield objection

    def decided(self, rule: Rule, subject: Subject, text: str) -> Objection | None:
        """Return the objection that remains of `text` after decisions of people, or None."""
        if not text:
            return None
        effect, decision = rule.effect, None
        if effect is Effect.ASK:
            ruling = self.ruling(subject)
            if ruling is not None and ruling.approved:
                return None
            if ruling is not None:
                effect, decision = Effect.ENFORCE, ruling.id
                text = f"{text}, and was rejected: {ruling.reason}"
        return Objection(rule, effect, text, decision)

    def ruling(self, subject: Subject) -> Ruling | None:
        """Return the decision in force for a package.

        The newest counts. Decisions of the installation and of the namespace both apply:
        a rejection by either is final.
        """
        if not self._by_digest and not self._by_spec:
            return None
        manager, name = subject.manager, subject.name
        specs = self._rulings.get((manager, name))
        if specs is None:
            specs = tuple(pair for pair in self._by_spec if pair[1].concerns(manager, name))
            self._rulings[manager, name] = specs
        covering = [
            ruling
            for ruling in self._by_digest.get(subject.sha256, ())
            if ruling.manager == manager and ruling.channel in ("", subject.channel)
        ]
        covering += [
            ruling
            for ruling, spec in specs
            if ruling.channel in ("", subject.channel) and spec.takes(subject)
        ]
        return _holding(covering)

    def whole_ruling(self, rule: Rule) -> Ruling | None:
        return _holding(
            [
                ruling
                for ruling in self.policy.rulings
                if ruling.manager == WHOLE and ruling.name == rule.name
            ]
        )


def _holding(covering: Sequence[Ruling]) -> Ruling | None:
    newest: dict[bool, Ruling] = {}
    for ruling in sorted(covering, key=lambda ruling: ruling.id):
        newest[ruling.everywhere] = ruling
    return min(newest.values(), key=lambda ruling: ruling.approved, default=None)


def _ruled(ruling: Ruling) -> PackageSpec | None:
    text = ruling.spec or ruling.name
    if ruling.manager and not text.startswith(f"{ruling.manager}:"):
        text = f"{ruling.manager}:{text}"
    try:
        return package_spec(text, wide=not ruling.approved)
    except StoreError:  # validated when it was decided; an invalid spec matches nothing
        return None


def judge_names(policy: Policy, specification: Specification) -> tuple[Verdict, ...]:
    """Judge the requested names, before a solve: objections that hold for every version.

    Raises:
        PolicyError: with all refusals.
    """
    verdicts = list(_of_channels(policy, specification.channels))
    for manager, requested in (("conda", specification.dependencies), ("pypi", specification.pip)):
        names = {required_name(text) for specs in requested.values() for text in specs}
        for name in sorted(names - {""}):
            for rule in policy.rules:
                if rule.effect is Effect.ASK or not (text := rule.check_name(manager, name)):
                    continue
                verdicts.append(_verdict(policy, Objection(rule, rule.effect, text), name, (name,)))
    by_sources = list(_of_sources(policy, specification))
    others = any(verdict.effect is Effect.ENFORCE for verdict in verdicts)
    return _refuse_enforced([*verdicts, *by_sources], hint=None if others else _SOURCES_HINT)


def _of_sources(policy: Policy, specification: Specification) -> Iterator[Verdict]:
    """Judge the sources that a pip part names itself; ASK is judged in the lock."""
    direct = {
        required_name(text): reference
        for texts in specification.pip.values()
        for text in texts
        if (reference := direct_reference(text)) is not None
    }
    urls = {url: None for options in specification.pip_options.values() for url in options.urls}
    if not direct and not urls:
        return
    for rule in policy.rules:
        for subject, sentence in rule.refused_sources(direct, tuple(urls)):
            # No package can be held for a decision on an index.
            effect = Effect.ENFORCE if rule.effect is Effect.ASK else rule.effect
            yield Verdict(
                rule=rule.name,
                effect=effect,
                subject=subject,
                reason=f"{sentence} {_source(rule)}.",
                package=PackageKey(manager="pypi", name=required_name(subject)),
                policy=policy.version,
            )


def judge_lock(
    policy: Policy, lock: Lock, specification: Specification, *, evidence: Evidence
) -> tuple[Verdict, ...]:
    """Judge every package of every platform of a lock, dependencies included.

    Approved packages have no verdict; rejected packages are refused. A package that several
    platforms share has one verdict.

    Raises:
        PolicyError: with all refusals.
    """
    used = sorted({package.channel for part in lock for package in part.conda})
    verdicts = list(_of_channels(policy, tuple(used)))
    screen = Screen(policy, evidence)
    said: set[tuple[str, PackageKey]] = set()
    for part in lock:
        chains: Mapping[str, tuple[str, ...]] | None = None
        packages: tuple[Package, ...] = (*part.conda, *part.pypi)
        for package in packages:
            subject = LockedPackage(package)
            for objection in screen.objections(subject):
                key = key_of(subject)
                if (objection.rule.name, key) in said:
                    continue
                said.add((objection.rule.name, key))
                if chains is None:
                    chains = shortest_chains(part, _roots(policy, specification, part.platform))
                chain = chains.get(subject.name, ())
                verdicts.append(_verdict(policy, objection, str(key), chain, key))
        verdicts += _of_whole(screen, part)
    return _refuse_enforced(verdicts)


def judge_conflicts(
    policy: Policy,
    part: PlatformLock,
    conflicts: Sequence[PathConflict],
    specification: Specification,
    *,
    evidence: Evidence,
) -> tuple[Verdict, ...]:
    """Judge the packages that replace files of others: one verdict per package and rule.

    Raises:
        PolicyError: with all refusals.
    """
    if not conflicts:
        return ()
    screen = Screen(policy, evidence)
    by_winner: dict[str, list[PathConflict]] = {}
    for conflict in conflicts:
        by_winner.setdefault(conflict.winner, []).append(conflict)
    chains = shortest_chains(part, _roots(policy, specification, part.platform))
    verdicts: list[Verdict] = []
    for package in part.conda:
        mine = by_winner.get(f"{package.name}-{package.version}-{package.build}", ())
        subject = LockedPackage(package)
        for rule in policy.rules:
            if not isinstance(rule, PathConflicts):
                continue
            objection = screen.decided(rule, subject, rule.check_conflicts(subject, mine))
            if objection is not None:
                key = key_of(subject)
                chain = chains.get(subject.name, ())
                verdicts.append(_verdict(policy, objection, str(key), chain, key))
    return _refuse_enforced(verdicts)


def key_of(subject: LockedPackage) -> PackageKey:
    return PackageKey(
        manager=subject.manager,
        name=subject.name,
        version=subject.version,
        build=subject.build,
        channel=subject.channel,
        sha256=subject.sha256,
    )


def _roots(policy: Policy, specification: Specification, platform: str) -> tuple[str, ...]:
    return (
        *specification.dependencies.get(platform, ()),
        *specification.pip.get(platform, ()),
        *policy.required,
    )


def _of_channels(policy: Policy, channels: tuple[str, ...]) -> Iterator[Verdict]:
    for rule in policy.rules:
        for url, reason in rule.refused_channels(channels):
            yield Verdict(
                rule=rule.name,
                effect=rule.effect,
                subject=url,
                reason=f"{reason} ({rule.because})" if rule.because else reason,
                policy=policy.version,
            )


def _of_whole(screen: Screen, part: PlatformLock) -> Iterator[Verdict]:
    for rule in screen.policy.rules:
        sentences = list(rule.check_lock(part))
        ruling = screen.whole_ruling(rule) if sentences and rule.effect is Effect.ASK else None
        if ruling is not None and ruling.approved:
            continue
        for sentence in sentences:
            rejected = f", and was rejected: {ruling.reason}" if ruling else ""
            yield Verdict(
                rule=rule.name,
                effect=Effect.ENFORCE if ruling else rule.effect,
                subject=part.platform,
                reason=f"{sentence}{rejected} {_source(rule)}.",
                package=PackageKey(manager=WHOLE, name=rule.name),
                policy=screen.policy.version,
                decision=ruling.id if ruling else None,
            )


def _verdict(
    policy: Policy,
    objection: Objection,
    subject: str,
    chain: tuple[str, ...],
    package: PackageKey | None = None,
) -> Verdict:
    return Verdict(
        rule=objection.rule.name,
        effect=objection.effect,
        subject=subject,
        reason=f"{subject} {objection.text} {_source(objection.rule)}.",
        chain=chain,
        package=package,
        policy=policy.version,
        decision=objection.decision,
    )


def _source(rule: Rule) -> str:
    return f"(rule “{rule.name}”{': ' + rule.because.rstrip('.') if rule.because else ''})"


def _refuse_enforced(
    verdicts: Sequence[Verdict], *, hint: str | None = None
) -> tuple[Verdict, ...]:
    refused = [verdict for verdict in verdicts if verdict.effect is Effect.ENFORCE]
    if refused:
        # A verdict without a package is about a channel.
        channels_only = all(
            verdict.package is None and "://" in verdict.subject for verdict in refused
        )
        kind = ChannelNotAllowedError if channels_only else PolicyError
        more = f" And {len(refused) - _SPELT_OUT} more." if len(refused) > _SPELT_OUT else ""
        raise kind(
            " ".join(verdict.sentence for verdict in refused[:_SPELT_OUT]) + more,
            hint=hint,
            details={"verdicts": [verdict.to_json() for verdict in refused]},
        )
    return tuple(verdicts)
