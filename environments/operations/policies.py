"""Rules of the installation and of namespaces: who may change them, and what a change would do.

Each change makes a version of the whole policy, with who made it and why. It acts at once: on the
next solve, on builds that wait for a decision, on what is judged from now on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count, F, Max, QuerySet, Sum
from django.utils import timezone

from accounts.access import Actor, require, require_superuser
from accounts.roles import Perm
from condastore.errors import (
    ConflictError,
    FaultError,
    InvalidInputError,
    LimitError,
    NotFoundError,
    RuleError,
    StoreError,
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
    AuditEvent,
    CondaRecord,
    Environment,
    LockConflicts,
    LockedConda,
    LockedPypi,
    Namespace,
    Policy,
    PolicyRule,
    PolicyVersion,
    PypiRecord,
    audited,
)
from environments.operations.approvals import reconsider
from environments.services import folders
from environments.services.policies import (
    assemble,
    built_in,
    holding,
    recalls_in_force,
    rule_of,
    rulings_of,
)

#: Rules of one policy. Each name of a solve is held against each.
MOST_RULES = 500


# --- reading --------------------------------------------------------------------------------------


def find_policy(actor: Actor, namespace: Namespace | None) -> Policy:
    """The policy of a namespace that the actor sees, or of the installation.

    Raises:
        NotFoundError: also for what the actor may not see. One without rules is there.
    """
    if namespace is None and not actor.signed_in:
        raise NotFoundError("There is no such policy.")
    if (
        namespace is not None
        and not Namespace.objects.visible_to(actor).filter(pk=namespace.pk).exists()
    ):
        raise NotFoundError("There is no such policy.")
    found = Policy.objects.filter(namespace=namespace).first()
    return found or Policy(namespace=namespace)


def find_rule(actor: Actor, key: object) -> PolicyRule:
    known = str(key).isdecimal() and len(str(key)) <= 18
    rows = PolicyRule.objects.visible_to(actor).select_related("policy__namespace")
    found = rows.filter(pk=int(str(key))).first() if known else None
    if found is None:
        raise NotFoundError("There is no such rule.")
    rule: PolicyRule = found
    return rule


def may_change(actor: Actor, namespace: Namespace | None) -> bool:
    if namespace is None:
        return actor.is_superuser
    return Namespace.objects.with_perm(actor, Perm.MANAGE).filter(pk=namespace.pk).exists()


def _require(actor: Actor, namespace: Namespace | None) -> None:
    if namespace is None:
        require_superuser(actor)
    else:
        require(actor, Perm.MANAGE, namespace)


# --- changing -------------------------------------------------------------------------------------


@audited()
def add_rule(
    *,
    actor: Actor,
    namespace: Namespace | None,
    kind: str,
    effect: str,
    name: str,
    settings: Mapping[str, Any],
    enabled: bool = True,
    position: int | None = None,
    comment: str = "",
    version: int | None = None,
) -> PolicyRule:
    """Add a rule to a namespace, or with None to the whole installation.

    Args:
        position: from 0; None is the end.
        version: of the policy that the change rests on; ConflictError where it is another now.
    """
    _require(actor, namespace)
    parse_rule(kind=kind, effect=effect, name=name, settings=settings)
    policy = _next_version(Policy.of(namespace), version)
    if policy.rules.count() >= MOST_RULES:
        raise LimitError(f"A policy has at most {MOST_RULES} rules.")
    last = policy.rules.aggregate(last=Max("position"))["last"]
    rule = PolicyRule(
        policy=policy,
        position=0 if last is None else last + 1,
        kind=kind,
        effect=effect,
        name=name.strip(),
        settings=dict(settings),
        enabled=enabled,
    )
    _save(rule)
    if position is not None:
        _place(rule, position)
    _keep_version(
        actor, policy, "add-rule", f"added “{rule.name}”", comment, {"after": _json(rule)}
    )
    return rule


@audited()
def change_rule(
    *,
    actor: Actor,
    rule: PolicyRule,
    effect: str | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    enabled: bool | None = None,
    comment: str = "",
    version: int | None = None,
) -> PolicyRule:
    """What is None stays as it is."""
    _require(actor, rule.policy.namespace)
    policy = _next_version(rule.policy, version)
    rule = _current(rule, policy)
    before = _json(rule)
    rule.effect = rule.effect if effect is None else effect
    rule.name = rule.name if name is None else name.strip()
    rule.settings = rule.settings if settings is None else dict(settings)
    rule.enabled = rule.enabled if enabled is None else enabled
    parse_rule(kind=rule.kind, effect=rule.effect, name=rule.name, settings=rule.settings)
    _save(rule)
    changes = {"before": before, "after": _json(rule)}
    _keep_version(actor, policy, "change-rule", f"changed “{rule.name}”", comment, changes)
    return rule


@audited()
def remove_rule(
    *, actor: Actor, rule: PolicyRule, comment: str = "", version: int | None = None
) -> None:
    _require(actor, rule.policy.namespace)
    policy = _next_version(rule.policy, version)
    rule = _current(rule, policy)
    before = _json(rule)
    rule.delete()
    _keep_version(
        actor, policy, "remove-rule", f"removed “{rule.name}”", comment, {"before": before}
    )


@audited()
def move_rule(
    *,
    actor: Actor,
    rule: PolicyRule,
    position: int,
    comment: str = "",
    version: int | None = None,
) -> PolicyRule:
    """Rules are told in their order; what is allowed does not depend on it."""
    _require(actor, rule.policy.namespace)
    policy = _next_version(rule.policy, version)
    rule = _current(rule, policy)
    before = rule.position
    _place(rule, position)
    changes = {"rule": rule.name, "before": before, "after": rule.position}
    _keep_version(actor, policy, "move-rule", f"moved “{rule.name}”", comment, changes, acts=False)
    return rule


def find_version(actor: Actor, namespace: Namespace | None, number: int) -> PolicyVersion:
    policy = find_policy(actor, namespace)
    rows = PolicyVersion.objects.filter(policy=policy.pk or 0, number=number)
    version: PolicyVersion | None = rows.select_related("policy__namespace").first()
    if version is None:
        raise NotFoundError(
            f"The {policy} has no version {number}.",
            where="number",
            hint="See them with `condastore policy history`.",
        )
    return version


@audited()
def restore_version(
    *, actor: Actor, restored: PolicyVersion, comment: str = "", version: int | None = None
) -> Policy:
    """Make the rules of an older version those of a new one; rules that stay keep their ids.

    Raises:
        RuleError: what the older version says is no rule any more, all of it.
        ConflictError: the rules are the same now.
    """
    _require(actor, restored.policy.namespace)
    _refuse_unreadable(restored.rules)
    policy = _next_version(restored.policy, version)
    rows = list(policy.rules.order_by("position", "pk"))
    before = [_json(row) for row in rows]
    if before == restored.rules:
        raise ConflictError(
            f"The rules of the {policy} are those of version {restored.number} already."
        )
    held = {row.name: row for row in rows}
    wanted = {rule["name"] for rule in restored.rules}
    policy.rules.exclude(name__in=wanted).delete()
    for position, rule in enumerate(restored.rules):
        row = held.get(rule["name"]) or PolicyRule(policy=policy, name=rule["name"])
        row.position = position
        for key in ("kind", "effect", "enabled", "settings"):
            setattr(row, key, rule[key])
        row.save()
    changes = {"restored": restored.number, "before": before, "after": restored.rules}
    _keep_version(
        actor, policy, "restore-version", f"restored version {restored.number}", comment, changes
    )
    return policy


def _refuse_unreadable(rules: Sequence[Mapping[str, Any]]) -> None:
    faults: list[StoreError] = []
    for rule in rules:
        try:
            parse_rule(**{key: rule[key] for key in ("kind", "effect", "name", "settings")})
        except RuleError as error:
            faults += [
                FaultError(fault.message, where=f"{rule['name']}: {fault.where}", hint=fault.hint)
                for fault in error.faults
            ]
    if faults:
        raise RuleError(faults)


def _next_version(policy: Policy, expected: int | None) -> Policy:
    """Take the next number: whoever changes the same policy meanwhile waits here."""
    same = Policy.objects.filter(pk=policy.pk)
    if expected is not None:
        same = same.filter(version=expected)
    taken = same.update(version=F("version") + 1)
    policy = Policy.objects.select_related("namespace").get(pk=policy.pk)
    if not taken:
        raise ConflictError(
            f"The {policy} is at version {policy.version} now; you saw version {expected}.",
            hint="Look at it again, and repeat the change if it still makes sense.",
        )
    return policy


def _current(rule: PolicyRule, policy: Policy) -> PolicyRule:
    found = PolicyRule.objects.filter(pk=rule.pk, policy=policy).first()
    if found is None:
        raise NotFoundError(f"The rule “{rule.name}” is no more.")
    found.policy = policy
    current: PolicyRule = found
    return current


def _save(rule: PolicyRule) -> None:
    try:
        with transaction.atomic():
            rule.save()
    except IntegrityError:
        raise ConflictError(
            f"There is a rule “{rule.name}” already.", where="name", hint="Choose another name."
        ) from None


def _place(rule: PolicyRule, position: int) -> None:
    others = [other for other in rule.policy.rules.order_by("position", "pk") if other != rule]
    others.insert(max(0, position), rule)
    for index, each in enumerate(others):
        each.position = index
    PolicyRule.objects.bulk_update(others, ["position"])


def _json(rule: PolicyRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "kind": rule.kind,
        "effect": rule.effect,
        "enabled": rule.enabled,
        "settings": rule.settings,
    }


def _keep_version(
    actor: Actor,
    policy: Policy,
    action: str,
    change: str,
    comment: str,
    changes: Mapping[str, Any],
    *,
    acts: bool = True,
) -> None:
    PolicyVersion.objects.create(
        policy=policy,
        number=policy.version,
        rules=[_json(rule) for rule in policy.rules.order_by("position", "pk")],
        change=change[:200],
        comment=comment.strip()[:2000],
        changed_by=actor.account,
    )
    if acts:
        reconsider(policy.namespace)
    details = {**changes, "version": policy.version, "comment": comment.strip()[:500]}
    AuditEvent.record(actor, f"policy.{action}", policy, details)


# --- trying ---------------------------------------------------------------------------------------

#: Environments whose packages and chains are told; all are counted.
TOLD = 50
TOLD_PACKAGES = 5
_BATCH = 500
#: Packages up to which the database picks the locks that hold them.
_FEW = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a rule would say of one package of an environment's current build."""

    rule: str
    effect: Effect
    package: str  # "numpy 2.4.0", or a platform where the rule is about the whole
    reason: str
    chain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    environment: Environment  # with its namespace and current build
    effect: Effect  # the gravest
    hits: tuple[Hit, ...]  # the first of them
    packages: int  # in all


@dataclass(slots=True, kw_only=True)
class Simulation:
    """What would become of the current builds."""

    environments: int = 0
    packages: int = 0  # distinct ones that were judged
    counts: dict[Effect, int] = field(default_factory=dict)  # by the gravest effect
    touched: list[Touched] = field(default_factory=list)  # the first, by name
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
    """A rule as it might be written."""

    kind: str
    effect: str
    name: str
    settings: Mapping[str, Any]


def simulate(
    *,
    actor: Actor,
    namespace: Namespace | None,
    drafts: Sequence[Draft] = (),
    told: int = TOLD,
) -> Simulation:
    """Hold rules against all current environments of a namespace, or of the installation.

    Args:
        drafts: the rules to try; none means those that are in force.
        told: how many environments to tell of, with packages and chains.
    Memory: what the distinct packages need, whatever the number of environments.
    """
    _require(actor, namespace)
    started = time.monotonic()
    if drafts:
        if len(drafts) > MOST_RULES:
            raise InvalidInputError(f"At most {MOST_RULES} rules are tried at a time.")
        rules = [
            parse_rule(kind=d.kind, effect=d.effect, name=d.name, settings=d.settings)
            for d in drafts
        ]
    else:
        rules = rules_in_force(namespace)
    simulation = Simulation()
    places = Environment.objects.present().exclude(current=None)
    if namespace is not None:
        places = places.filter(namespace=namespace)
    trial = _Trial(rules, places)
    simulation.packages = trial.packages
    slim = (
        places.select_related("namespace", "current__lock")
        .only(
            *("name", "namespace__name", "current__number", "current__specification"),
            *("current__lock__platforms", "current__lock__channels"),
        )
        .order_by("namespace__name", "name")
    )
    for batch in _batches(slim):
        found = trial.look(batch)
        for place in batch:
            simulation.environments += 1
            objections = found.get(place.pk)
            if not objections:
                continue
            gravest = min((each.effect for each in objections), key=_GRAVITY.index)
            simulation.counts[gravest] = simulation.counts.get(gravest, 0) + 1
            if len(simulation.touched) < told:
                simulation.touched.append(_touched(place, gravest, objections))
    simulation.seconds = time.monotonic() - started
    return simulation


def rules_in_force(namespace: Namespace | None) -> list[Rule]:
    """Of the installation (None), or of a namespace, in which both hold."""
    rows = PolicyRule.objects.filter(enabled=True, policy__namespace=None)
    found = holding([rule_of(row) for row in rows], namespace)
    rules = built_in({rule.kind for rule in found})
    if namespace is not None:
        own = PolicyRule.objects.filter(enabled=True, policy__namespace=namespace)
        found += [rule_of(row) for row in own]
    return [*assemble(found, recalled=recalls_in_force(), built_in=rules).rules]


def built_in_rules() -> tuple[Rule, ...]:
    """The rules that hold everywhere without having been written."""
    rows = PolicyRule.objects.filter(enabled=True, policy__namespace=None)
    return built_in(set(rows.values_list("kind", flat=True)))


_GRAVITY = (Effect.ENFORCE, Effect.ASK, Effect.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Against:
    """What a rule has against one package, or against one platform of a lock."""

    rule: str
    effect: Effect
    package: str
    name: str  # of the package, "" for the whole
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


class _Trial:
    """Judges each distinct package once; then only numbers are compared."""

    def __init__(self, rules: Sequence[Rule], places: QuerySet[Environment]) -> None:
        self._policy = assemble(rules)
        self._now = timezone.now()
        self._channels = [rule for rule in rules if isinstance(rule, Channels)]
        self._refused: dict[str, list[Rule]] = {}  # channel -> the rules that refuse it
        self._asked: dict[tuple[str, int], LockedPackage] = {}  # what a decision may be about
        self.packages = 0
        locks = places.order_by().values("current__lock")
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
    ) -> dict[int, list[_Against]]:
        rows = model.objects.filter(pk__in=locked.objects.filter(lock__in=locks).values("package"))
        if model is CondaRecord and not self._policy.ages:
            # The channel's own words are the most of a row, and only the age is in them alone.
            rows = rows.defer("record")
        looks = FirstSeen(folders.data() / folders.SEEN)
        seen: dict[tuple[str, str], Sighting] = {}
        scripts: dict[str, tuple[str, ...]] = {}
        licenses: dict[str, str] = {}
        known = Known(
            now=self._now.timestamp(), seen=seen, found_scripts=scripts, own_licenses=licenses
        )
        # Most packages are listed: the rule that looks at the others need not look at those.
        of_listed = [rule for rule in self._policy.rules if rule.kind != UnlistedPackages.kind]
        listed, unlisted = (
            Screen(self._policy, known, rules=of_listed),
            Screen(self._policy, known),
        )
        found: dict[int, list[_Against]] = {}
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
                seen[subject.channel, row.sha256] = _seen(row, subject, looks)
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
                _Against(
                    rule=rule.name, effect=rule.effect, package=label, name=subject.name, text=text
                )
                for rule, text in objections
            ]
            if any(rule.effect is Effect.ASK for rule, _ in objections):
                self._asked[manager, row.pk] = subject
        return found

    def _refusing(self, subject: LockedPackage) -> list[Rule]:
        """The rules that refuse the subject's channel as a whole."""
        channel = subject.channel
        if not channel:
            return []
        if channel not in self._refused:
            refusing = (rule for rule in self._channels if any(rule.of_channels((channel,))))
            self._refused[channel] = [*refusing]
        return self._refused[channel]

    def _required_keys(
        self, rules: Sequence[Required]
    ) -> list[tuple[Required, str, set[int], set[int]]]:
        """For each spec of each rule, the keys of the records that satisfy it."""
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

    def look(self, batch: Sequence[Environment]) -> dict[int, list[_Against]]:
        """Environment -> what there is against its current build."""
        locks = {place.current.lock_id for place in batch if place.current} - {None}
        held: dict[int, dict[tuple[str, int], None]] = {}  # lock -> the packages objected to
        for manager, model in (("conda", LockedConda), ("pypi", LockedPypi)):
            bad = self._bad[manager]
            if not bad:
                continue
            rows: Any = model.objects.order_by().filter(lock__in=locks)
            if len(bad) <= _FEW:
                rows = rows.filter(package__in=list(bad))
            for lock, package in rows.values_list("lock", "package").iterator(chunk_size=10_000):
                if package in bad:
                    held.setdefault(lock, {})[manager, package] = None
        whole: dict[int, list[_Against]] = {}
        for lock, against in self._of_whole(batch, locks):
            whole.setdefault(lock, []).append(against)
        found: dict[int, list[_Against]] = {}
        for place in batch:
            lock = place.current.lock_id or 0 if place.current else 0
            if lock in held or lock in whole:
                mine = self._undecided(place, held.get(lock, {}))
                mine += whole.get(lock, [])
                if mine:
                    found[place.pk] = mine
        return found

    def _undecided(self, place: Environment, packages: Iterable[tuple[str, int]]) -> list[_Against]:
        """What is left where the decisions in force in the place's namespace are counted."""
        if not self._asked:
            return [each for key in packages for each in self._bad[key[0]][key[1]]]
        if self._decided[0] != place.namespace_id:  # places come sorted by namespace
            rulings = rulings_of(place.namespace, self._now)
            decided = replace(self._policy, rulings=rulings)
            known = Known(now=self._now.timestamp())
            self._decided = (place.namespace_id, Screen(decided, known) if rulings else None)
        screen = self._decided[1]
        found: list[_Against] = []
        for key in packages:
            against = self._bad[key[0]][key[1]]
            ruling = screen.ruling(self._asked[key]) if screen and key in self._asked else None
            for each in against:
                if ruling is None or each.effect is not Effect.ASK:
                    found.append(each)
                elif not ruling.approved:
                    found.append(replace(each, effect=Effect.ENFORCE))
        return found

    def _of_whole(
        self, batch: Sequence[Environment], locks: set[Any]
    ) -> Iterator[tuple[int, _Against]]:
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
                    for text in rule.of_sums(platform, size, count):
                        yield lock, _whole(rule, platform, text)
        if self._paths:
            for row in LockConflicts.objects.filter(lock__in=locks).select_related("lock"):
                for against in self._of_paths(row):
                    yield row.lock_id, against
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

    def _of_paths(self, row: LockConflicts) -> Iterator[_Against]:
        """What the rules have against packages that replace files of others."""
        part = row.lock.value().on(row.platform)
        by_winner: dict[str, list[PathConflict]] = {}
        for conflict in map(PathConflict.from_json, row.conflicts):
            by_winner.setdefault(conflict.winner, []).append(conflict)
        for package in part.conda if part else ():
            mine = by_winner.get(f"{package.name}-{package.version}-{package.build}", ())
            for rule in self._paths:
                if text := rule.of_conflicts(LockedPackage(package), mine):
                    yield _Against(
                        rule=rule.name,
                        effect=rule.effect,
                        package=f"{package.name} {package.version}",
                        name=package.name,
                        text=text,
                    )


def _whole(rule: Rule, platform: str, text: str) -> _Against:
    return _Against(rule=rule.name, effect=rule.effect, package=platform, name="", text=text)


def _value(row: CondaRecord | PypiRecord, *, whole: bool) -> CondaPackage | PypiPackage:
    """The row as a package; `whole`: with the channel's own words, which take longest to read."""
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


def _touched(place: Environment, gravest: Effect, objections: Sequence[_Against]) -> Touched:
    """With the chains of the packages that are told of: the lock is read for those only."""
    shown = sorted(objections, key=lambda each: (_GRAVITY.index(each.effect), each.package))
    shown = shown[:TOLD_PACKAGES]
    build = place.current
    chains: dict[str, tuple[str, ...]] = {}
    if build is not None and build.lock is not None and any(each.name for each in shown):
        asked = build.specification.value()
        for part in build.lock.value():
            roots = (*asked.dependencies.get(part.platform, ()), *asked.pip.get(part.platform, ()))
            for name, chain in shortest_chains(part, roots).items():
                chains.setdefault(name, chain)
    return Touched(
        environment=place,
        effect=gravest,
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
