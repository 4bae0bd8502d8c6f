"""Simulate rules: evaluate them against the current builds of a namespace or the installation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import Count, QuerySet, Sum
from django.utils import timezone

from accounts.access import Actor
from condastore.errors import (
    InvalidInputError,
)
from environments.domain.diff import shortest_chains
from environments.domain.linking import PathConflict
from environments.domain.policy import (
    Effect,
    Known,
    LockedPackage,
    Rule,
    Screen,
    Sighting,
    UnlistedPackages,
    parse_rule,
)
from environments.domain.policy.rules import Channels, PathConflicts, Required, Size
from environments.domain.records import CondaPackage, PypiPackage
from environments.engine.channels.first_seen import FirstSeen
from environments.models import (
    CondaRecord,
    Environment,
    LockConflicts,
    LockedConda,
    LockedPypi,
    Namespace,
    PypiRecord,
)
from environments.operations.policies import MAX_RULES, require_policy_access, rules_in_force
from environments.services import folders
from environments.services.policies import (
    assemble,
    rulings_of,
)

#: Environments reported with packages and chains; all of them are counted.
REPORTED_ENVIRONMENTS = 50
REPORTED_PACKAGES = 5
_BATCH = 500
#: Up to this number of packages the query filters by package; above it the result is filtered here.
_MAX_QUERY_PACKAGES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """Verdict of one rule on one package of an environment's current build."""

    rule: str
    effect: Effect
    package: str  # "numpy 2.4.0", or a platform if the rule is about the whole lock
    reason: str
    chain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AffectedEnvironment:
    environment: Environment  # with its namespace and current build
    effect: Effect  # the most severe
    hits: tuple[Hit, ...]  # the first ones
    packages: int  # number of all packages with a verdict


@dataclass(slots=True, kw_only=True)
class Simulation:
    """Result of evaluating rules against the current builds."""

    environments: int = 0
    packages: int = 0  # distinct packages that were evaluated
    counts: dict[Effect, int] = field(default_factory=dict)  # by the most severe effect
    affected: list[AffectedEnvironment] = field(default_factory=list)  # the first, by name
    seconds: float = 0.0

    @property
    def blocked(self) -> int:
        return self.counts.get(Effect.ENFORCE, 0)

    @property
    def asked(self) -> int:
        return self.counts.get(Effect.ASK, 0)

    @property
    def warned(self) -> int:
        return self.counts.get(Effect.WARN, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A rule that is not saved yet."""

    kind: str
    effect: str
    name: str
    settings: Mapping[str, Any]


def simulate(
    *,
    actor: Actor,
    namespace: Namespace | None,
    drafts: Sequence[Draft] = (),
    limit: int = REPORTED_ENVIRONMENTS,
) -> Simulation:
    """Evaluate rules against all current builds of a namespace, or of the installation.

    Memory grows with the number of distinct packages, not of environments.

    Args:
        drafts: rules to try; empty means the rules in force.
        limit: number of environments to report with packages and chains.
    """
    require_policy_access(actor, namespace)
    started = time.monotonic()
    if drafts:
        if len(drafts) > MAX_RULES:
            raise InvalidInputError(f"At most {MAX_RULES} rules can be simulated at a time.")
        rules = [
            parse_rule(kind=d.kind, effect=d.effect, name=d.name, settings=d.settings)
            for d in drafts
        ]
    else:
        rules = rules_in_force(namespace)
    simulation = Simulation()
    environments = Environment.objects.present().exclude(current=None)
    if namespace is not None:
        environments = environments.filter(namespace=namespace)
    evaluation = _Evaluation(rules, environments)
    simulation.packages = evaluation.packages
    slim = (
        environments.select_related("namespace", "current__lock")
        .only(
            *("name", "namespace__name", "current__number", "current__specification"),
            *("current__lock__platforms", "current__lock__channels"),
        )
        .order_by("namespace__name", "name")
    )
    for batch in _batches(slim):
        found = evaluation.objections_to(batch)
        for environment in batch:
            simulation.environments += 1
            objections = found.get(environment.pk)
            if not objections:
                continue
            most_severe = min((each.effect for each in objections), key=_SEVERITY.index)
            simulation.counts[most_severe] = simulation.counts.get(most_severe, 0) + 1
            if len(simulation.affected) < limit:
                simulation.affected.append(_affected(environment, most_severe, objections))
    simulation.seconds = time.monotonic() - started
    return simulation


_SEVERITY = (Effect.ENFORCE, Effect.ASK, Effect.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objection:
    """Objection of a rule to one package, or to one platform of a lock."""

    rule: str
    effect: Effect
    package: str
    name: str  # of the package; "" for the whole lock
    text: str


def _batches(rows: QuerySet[Environment]) -> Iterator[list[Environment]]:
    batch: list[Environment] = []
    for row in rows.iterator(chunk_size=_BATCH):
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _Evaluation:
    """Evaluate each distinct package once, then match environments by primary keys only."""

    def __init__(self, rules: Sequence[Rule], environments: QuerySet[Environment]) -> None:
        self._policy = assemble(rules)
        self._now = timezone.now()
        self._channels = [rule for rule in rules if isinstance(rule, Channels)]
        self._refused: dict[str, list[Rule]] = {}  # channel -> rules that refuse it
        self._asked: dict[tuple[str, int], LockedPackage] = {}  # packages a decision may cover
        self.packages = 0
        locks = environments.order_by().values("current__lock")
        self._bad = {
            "conda": self._judge("conda", CondaRecord, LockedConda, locks),
            "pypi": self._judge("pypi", PypiRecord, LockedPypi, locks),
        }
        self._sizes = [rule for rule in rules if isinstance(rule, Size)]
        self._paths = [rule for rule in rules if isinstance(rule, PathConflicts)]
        self._required = self._required_keys([rule for rule in rules if isinstance(rule, Required)])
        self._decided: tuple[int, Screen | None] = (0, None)

    def _judge(
        self, manager: str, model: Any, locked: Any, locks: Any
    ) -> dict[int, list[_Objection]]:
        rows = model.objects.filter(pk__in=locked.objects.filter(lock__in=locks).values("package"))
        if model is CondaRecord and not self._policy.ages:
            # `record` is most of a row's bytes, and only age rules need it.
            rows = rows.defer("record")
        polls = FirstSeen(folders.data() / folders.SEEN)
        seen: dict[tuple[str, str], Sighting] = {}
        scripts: dict[str, tuple[str, ...]] = {}
        licenses: dict[str, str] = {}
        known = Known(
            now=self._now.timestamp(), seen=seen, found_scripts=scripts, own_licenses=licenses
        )
        # Skip the rule about unlisted packages for listed ones, which are most of them.
        of_listed = [rule for rule in self._policy.rules if rule.kind != UnlistedPackages.kind]
        listed, unlisted = (
            Screen(self._policy, known, rules=of_listed),
            Screen(self._policy, known),
        )
        found: dict[int, list[_Objection]] = {}
        for row in rows.order_by().iterator(chunk_size=2_000):
            self.packages += 1
            screen = unlisted if row.listed is False else listed
            if not self._channels and not screen.checks(manager, row.name):
                continue
            subject = LockedPackage(_value(row, whole=self._policy.ages))
            seen.clear()
            scripts.clear()
            licenses.clear()
            if row.own_license:
                licenses[row.sha256] = row.own_license
            if self._policy.ages:
                seen[subject.channel, row.sha256] = _seen(row, subject, polls)
            if isinstance(row, CondaRecord) and row.link_scripts:
                scripts[row.sha256] = tuple(row.link_scripts)
            label = f"{subject.name} {subject.version}"
            objections = [(each.rule, each.text) for each in screen.objections(subject)]
            objections += [
                (rule, f"comes from {subject.channel}, which is not allowed")
                for rule in self._refusing(subject)
            ]
            if not objections:
                continue
            found[row.pk] = [
                _Objection(
                    rule=rule.name, effect=rule.effect, package=label, name=subject.name, text=text
                )
                for rule, text in objections
            ]
            if any(rule.effect is Effect.ASK for rule, _ in objections):
                self._asked[manager, row.pk] = subject
        return found

    def _refusing(self, subject: LockedPackage) -> list[Rule]:
        """Return the rules that refuse the subject's channel."""
        channel = subject.channel
        if not channel:
            return []
        if channel not in self._refused:
            refusing = (rule for rule in self._channels if any(rule.refused_channels((channel,))))
            self._refused[channel] = [*refusing]
        return self._refused[channel]

    def _required_keys(
        self, rules: Sequence[Required]
    ) -> list[tuple[Required, str, set[int], set[int]]]:
        """Return the keys of the records that satisfy each spec of each rule."""
        found = []
        for rule in rules:
            for spec in rule.packages:
                conda = {
                    row.pk
                    for row in CondaRecord.objects.filter(name=spec.name).defer("record")
                    if spec.matches(LockedPackage(_value(row, whole=False)))
                }
                pypi = {
                    row.pk
                    for row in PypiRecord.objects.filter(name=spec.name)
                    if spec.matches(LockedPackage(_value(row, whole=False)))
                }
                found.append((rule, spec.text, conda, pypi))
        return found

    def objections_to(self, batch: Sequence[Environment]) -> dict[int, list[_Objection]]:
        """Return the objections to the current build of each environment, by environment id."""
        locks = {each.current.lock_id for each in batch if each.current} - {None}
        held: dict[int, dict[tuple[str, int], None]] = {}  # lock -> packages with objections
        for manager, model in (("conda", LockedConda), ("pypi", LockedPypi)):
            bad = self._bad[manager]
            if not bad:
                continue
            rows: Any = model.objects.order_by().filter(lock__in=locks)
            if len(bad) <= _MAX_QUERY_PACKAGES:
                rows = rows.filter(package__in=list(bad))
            for lock, package in rows.values_list("lock", "package").iterator(chunk_size=10_000):
                if package in bad:
                    held.setdefault(lock, {})[manager, package] = None
        whole: dict[int, list[_Objection]] = {}
        for lock, objection in self._lock_objections(batch, locks):
            whole.setdefault(lock, []).append(objection)
        found: dict[int, list[_Objection]] = {}
        for environment in batch:
            lock = environment.current.lock_id or 0 if environment.current else 0
            if lock in held or lock in whole:
                mine = self._undecided(environment, held.get(lock, {}))
                mine += whole.get(lock, [])
                if mine:
                    found[environment.pk] = mine
        return found

    def _undecided(
        self, environment: Environment, packages: Iterable[tuple[str, int]]
    ) -> list[_Objection]:
        """Return the objections left after applying the active decisions of the namespace."""
        if not self._asked:
            return [each for key in packages for each in self._bad[key[0]][key[1]]]
        if self._decided[0] != environment.namespace_id:  # the query is ordered by namespace
            rulings = rulings_of(environment.namespace, self._now)
            decided = replace(self._policy, rulings=rulings)
            known = Known(now=self._now.timestamp())
            self._decided = (environment.namespace_id, Screen(decided, known) if rulings else None)
        screen = self._decided[1]
        found: list[_Objection] = []
        for key in packages:
            objection = self._bad[key[0]][key[1]]
            ruling = screen.ruling(self._asked[key]) if screen and key in self._asked else None
            for each in objection:
                if ruling is None or each.effect is not Effect.ASK:
                    found.append(each)
                elif not ruling.approved:
                    found.append(replace(each, effect=Effect.ENFORCE))
        return found

    def _lock_objections(
        self, batch: Sequence[Environment], locks: set[Any]
    ) -> Iterator[tuple[int, _Objection]]:
        if self._sizes:
            sums: dict[tuple[int, str], tuple[int, int]] = {}
            for model in (LockedConda, LockedPypi):
                held: Any = model
                grouped = (
                    held.objects.order_by()
                    .filter(lock__in=locks)
                    .values_list("lock", "platform")
                    .annotate(Sum("package__size"), Count("pk"))
                )
                for lock, platform, size, count in grouped:
                    before = sums.get((lock, platform), (0, 0))
                    sums[lock, platform] = (before[0] + size, before[1] + count)
            for (lock, platform), (size, count) in sums.items():
                for rule in self._sizes:
                    for text in rule.check_totals(platform, size, count):
                        yield lock, _whole(rule, platform, text)
        if self._paths:
            for row in LockConflicts.objects.filter(lock__in=locks).select_related("lock"):
                for objection in self._path_objections(row):
                    yield row.lock_id, objection
        for required, spec, conda, pypi in self._required:
            have: set[tuple[int, str]] = set()
            for model, keys in ((LockedConda, conda), (LockedPypi, pypi)):
                if keys:
                    held = model
                    rows = held.objects.order_by().filter(lock__in=locks, package__in=keys)
                    have.update(rows.values_list("lock", "platform"))
            for lock_row in {p.current.lock for p in batch if p.current and p.current.lock}:
                for platform in lock_row.platforms:
                    if (lock_row.pk, platform) not in have:
                        text = f"{spec} is missing on {platform}"
                        yield lock_row.pk, _whole(required, platform, text)

    def _path_objections(self, row: LockConflicts) -> Iterator[_Objection]:
        """Yield objections to packages that replace files of others."""
        part = row.lock.value().on(row.platform)
        by_winner: dict[str, list[PathConflict]] = {}
        for conflict in map(PathConflict.from_json, row.conflicts):
            by_winner.setdefault(conflict.winner, []).append(conflict)
        for package in part.conda if part else ():
            mine = by_winner.get(f"{package.name}-{package.version}-{package.build}", ())
            for rule in self._paths:
                if text := rule.check_conflicts(LockedPackage(package), mine):
                    yield _Objection(
                        rule=rule.name,
                        effect=rule.effect,
                        package=f"{package.name} {package.version}",
                        name=package.name,
                        text=text,
                    )


def _whole(rule: Rule, platform: str, text: str) -> _Objection:
    return _Objection(rule=rule.name, effect=rule.effect, package=platform, name="", text=text)


def _value(row: CondaRecord | PypiRecord, *, whole: bool) -> CondaPackage | PypiPackage:
    """Return the row as a package; `whole` includes `record`, which is expensive to parse."""
    if isinstance(row, PypiRecord) or whole:
        return row.value()
    return CondaPackage(
        name=row.name,
        version=row.version,
        build=row.build,
        build_number=row.build_number,
        subdir=row.subdir,
        channel=row.channel,
        file_name=row.file_name,
        url=row.url,
        sha256=row.sha256,
        md5=row.md5,
        size=row.size,
        license=row.license,
        timestamp=row.timestamp,
        noarch=row.noarch,
        depends=(),
        constrains=(),
        record={},
        listed=row.listed is not False,
    )


def _seen(row: CondaRecord | PypiRecord, subject: LockedPackage, looks: FirstSeen) -> Sighting:
    at = row.first_seen_at.timestamp()
    found = looks.sighting(subject.channel, subject.subdir, subject.sha256)
    if found is None:
        return Sighting(at=at, baseline=False)
    return Sighting(at=min(at, found.at), baseline=found.baseline)


def _affected(
    environment: Environment, most_severe: Effect, objections: Sequence[_Objection]
) -> AffectedEnvironment:
    """Return the report of one environment; its lock is loaded only for the reported packages."""
    shown = sorted(objections, key=lambda each: (_SEVERITY.index(each.effect), each.package))
    shown = shown[:REPORTED_PACKAGES]
    build = environment.current
    chains: dict[str, tuple[str, ...]] = {}
    if build is not None and build.lock is not None and any(each.name for each in shown):
        requested = build.specification.value()
        for part in build.lock.value():
            roots = (
                *requested.dependencies.get(part.platform, ()),
                *requested.pip.get(part.platform, ()),
            )
            for name, chain in shortest_chains(part, roots).items():
                chains.setdefault(name, chain)
    return AffectedEnvironment(
        environment=environment,
        effect=most_severe,
        hits=tuple(
            Hit(
                rule=each.rule,
                effect=each.effect,
                package=each.package,
                reason=f"{each.package} {each.text}" if each.name else each.text,
                chain=chains.get(each.name, ()),
            )
            for each in shown
        ),
        packages=len({each.package for each in objections}),
    )
