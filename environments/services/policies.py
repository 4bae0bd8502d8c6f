"""The policy in force for a namespace, and the evidence about packages that it is evaluated with.

Nothing is cached between calls, so a changed rule, decision or recall takes effect at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from condastore.errors import PolicyError, StoreError
from condastore.statements import KEY, MOMENT, Lookup
from environments.domain.lifecycle import SERVED
from environments.domain.linking import PathConflict
from environments.domain.lock import Lock, PlatformLock
from environments.domain.policy import (
    PATH_CONFLICTS,
    PIP_SOURCES,
    UNLISTED,
    Channels,
    Effect,
    InstallScripts,
    Known,
    Licenses,
    PipSources,
    Policy,
    Recalled,
    Rule,
    Ruling,
    Sighting,
    Verdict,
    judge_conflicts,
    judge_lock,
    package_spec,
    parse_rule,
)
from environments.domain.specification import Specification
from environments.domain.urls import canonical_or_same
from environments.engine.channels.first_seen import FirstSeen
from environments.models import (
    Build,
    CondaRecord,
    Decision,
    LockConflicts,
    LockRow,
    Namespace,
    PolicyRule,
    PypiRecord,
    Recall,
)
from environments.services import folders

if TYPE_CHECKING:
    from datetime import datetime

#: Name of the rule made from settings.ALLOWED_CHANNELS; it precedes all others.
CHANNELS_RULE = "channels-allowed"
_BATCH = 500
#: Queries of each submission and each solve, prepared so that their SQL is compiled once.
_RULES = Lookup(
    PolicyRule,
    own=("id", "policy_id", "position", "kind", "effect", "name", "settings"),
    policy=("id", "namespace_id"),
)
_DECISIONS = Lookup(
    Decision,
    own=(
        "id",
        "approved",
        "manager",
        "name",
        "spec",
        "channel",
        "sha256",
        "reason",
        "namespace_id",
    ),
)
_RECALLS = Lookup(Recall, own=("id", "manager", "spec", "sha256", "reason"))


def _stand_in(namespace: Namespace | None) -> Namespace | None:
    return None if namespace is None else Namespace(pk=KEY)


def _value(namespace: Namespace | None) -> dict[Any, Any]:
    return {} if namespace is None else {KEY: namespace.pk}


def policy_of(namespace: Namespace | None) -> Policy:
    """Return the policy in force: rules of the installation, then of the namespace.

    Decisions and recalls in force are included.
    """
    now = timezone.now()
    rows = _RULES.all(
        ("rules", namespace is None),
        lambda: PolicyRule.objects.filter(enabled=True).filter(
            Q(policy__namespace=None) | Q(policy__namespace=_stand_in(namespace))
        ),
        _value(namespace),
    )
    # Rules of the installation first; within each policy by position.
    ordered = sorted(rows, key=lambda row: (row.policy.namespace_id is not None, row.position))
    everywhere = [rule_of(row) for row in ordered if row.policy.namespace_id is None]
    everywhere = applicable_rules(everywhere, namespace)
    own = {rule.kind for rule in everywhere}
    return assemble(
        [*everywhere, *(rule_of(row) for row in ordered if row.policy.namespace_id is not None)],
        rulings_of(namespace, now),
        recalled=recalls_in_force(),
        built_in=built_in(own),
    )


def applicable_rules(rules: Sequence[Rule], namespace: Namespace | None) -> list[Rule]:
    """Return the installation's rules that apply to a namespace, with `pip-sources` rules
    merged."""
    name = namespace.name if namespace is not None else ""
    found = [rule for rule in rules if rule.applies_to(name)]
    grants = [rule for rule in found if isinstance(rule, PipSources)]
    if not grants:
        return found
    merged = PipSources.merged(grants)
    return [*(rule for rule in found if not isinstance(rule, PipSources)), merged]


def built_in(kinds: Collection[str]) -> tuple[Rule, ...]:
    """Return the default rules that apply without being configured.

    Args:
        kinds: kinds of the installation's own rules; each replaces the default of its kind.
    """
    found: list[Rule] = []
    if tuple(settings.ALLOWED_CHANNELS) != ("*",):
        allow = tuple(settings.ALLOWED_CHANNELS)
        found.append(Channels(name=CHANNELS_RULE, effect=Effect.ENFORCE, allow=allow))
    built_ins = (UNLISTED, PIP_SOURCES, PATH_CONFLICTS)
    found += [rule for rule in built_ins if rule.kind not in kinds]
    return tuple(found)


def assemble(
    rules: Sequence[Rule],
    rulings: Sequence[Ruling] = (),
    *,
    recalled: Rule | None = None,
    built_in: Sequence[Rule] = (),
) -> Policy:
    """Build a policy: built-in rules, then recalls, then `rules`."""
    first = [*built_in]
    if recalled is not None:
        first.append(recalled)
    indexes = tuple(canonical_or_same(url) for url in settings.PYPI_INDEX_URLS)
    every = tuple(
        replace(rule, configured=indexes) if isinstance(rule, PipSources) else rule
        for rule in (*first, *rules)
    )
    kinds = {rule.kind for rule in every}
    scripts = _scripted() if InstallScripts.kind in kinds else {}
    licenses = _own_licenses([rule for rule in every if isinstance(rule, Licenses)])
    # repr() of a rule contains all of its settings in one canonical form.
    content = repr((every, tuple(rulings), sorted(scripts), sorted(licenses.items())))
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Policy(
        rules=every,
        version=version,
        rulings=tuple(rulings),
        scripts=scripts,
        own_licenses=licenses,
    )


def rule_of(row: PolicyRule) -> Rule:
    return parse_rule(kind=row.kind, effect=row.effect, name=row.name, settings=row.settings)


def rulings_of(namespace: Namespace | None, now: datetime) -> tuple[Ruling, ...]:
    rows = _DECISIONS.all(
        ("decisions", namespace is None),
        lambda: (
            Decision.objects.in_force(MOMENT).for_namespace(_stand_in(namespace)).order_by("pk")
        ),
        {**_value(namespace), MOMENT: now},
    )
    return tuple(
        Ruling(
            id=row.pk,
            approved=row.approved,
            manager=row.manager,
            name=row.name,
            spec=row.spec,
            channel=canonical_or_same(row.channel),
            sha256=row.sha256,
            reason=row.reason,
            everywhere=row.namespace_id is None,
        )
        for row in rows
    )


def recalls_in_force() -> Rule | None:
    rows = _RECALLS.all(("recalls",), lambda: Recall.objects.active().order_by("pk"), {})
    if not rows:
        return None
    return Recalled(
        name="recall",
        effect=Effect.ENFORCE,
        specs=tuple(
            (package_spec(f"{row.manager}:{row.spec}", wide=True), row.reason)
            for row in rows
            if row.spec
        ),
        digests=tuple((row.sha256, row.reason) for row in rows if row.sha256 and not row.spec),
    )


def _scripted() -> dict[str, tuple[str, ...]]:
    """Return packages known to have install scripts, by sha256; few of all records."""
    rows = CondaRecord.objects.filter(link_scripts__isnull=False).exclude(link_scripts=[])
    return {sha: tuple(found or ()) for sha, found in rows.values_list("sha256", "link_scripts")}


def _own_licenses(rules: Sequence[Licenses]) -> dict[str, str]:
    """Return licenses found inside packages to which a rule objects, by sha256.

    Licenses without an objection are left out: they change no verdict, but would change the version
    of the policy and so invalidate each stored solve.
    """
    found: dict[str, str] = {}
    if not rules:
        return found
    for model in (CondaRecord, PypiRecord):
        rows = model.objects.filter(own_license__isnull=False)
        for sha256, own in rows.values_list("sha256", "own_license"):
            if any(rule.objection_to(own or "") for rule in rules):
                found[sha256] = own or ""
    return found


def judge(policy: Policy, lock: Lock, specification: Specification) -> tuple[Verdict, ...]:
    """Evaluate a lock with all evidence this installation has now; see `judge_lock`.

    Raises:
        PolicyError: lists every refused package.
    """
    return judge_lock(policy, lock, specification, evidence=evidence_for(policy, lock))


def judge_paths(
    policy: Policy,
    part: PlatformLock,
    conflicts: Sequence[PathConflict],
    specification: Specification,
) -> tuple[Verdict, ...]:
    """Evaluate path conflicts with the evidence this installation has now; see `judge_conflicts`.

    Raises:
        PolicyError: lists every refused package.
    """
    if not conflicts:
        return ()
    now = timezone.now().timestamp()
    return judge_conflicts(policy, part, conflicts, specification, evidence=Known(now=now))


def refuse_paths(build: Build, platform: str) -> None:
    """Refuse files made from a build's lock for another platform if they break path-conflict rules.

    A build is evaluated with the packages of its own platform, as only those are fetched for it.
    Conflicts on other platforms are known once a file was made for them. No approval request is
    opened: a rule that asks refuses until the packages are approved.

    Raises:
        PolicyError: a rule of the namespace refuses packages that replace files of others.
    """
    if build.lock is None or platform == build.platform:
        return
    conflicts = LockConflicts.of(build.lock, platform)
    part = build.lock.value().on(platform) if conflicts else None
    if part is None:
        return
    policy = policy_of(build.environment.namespace)
    verdicts = judge_paths(policy, part, conflicts, build.specification.value())
    requested = [verdict for verdict in verdicts if verdict.effect is Effect.ASK]
    if requested:
        raise PolicyError(
            f"For {platform}: " + " ".join(verdict.sentence for verdict in requested),
            details={"verdicts": [verdict.to_json() for verdict in requested]},
        )


def refuse_paths_everywhere(lock: LockRow, platform: str) -> None:
    """Refuse to make a file of a lock if every namespace with a build of it refuses the file.

    Raises:
        PolicyError: the refusal for the oldest build.
    """
    refusal: PolicyError | None = None
    judged: set[int] = set()
    builds = Build.objects.filter(lock=lock, state__in=SERVED, deleted_at=None).order_by("pk")
    for build in builds.select_related("environment__namespace", "specification", "lock"):
        if build.environment.namespace_id in judged:
            continue
        judged.add(build.environment.namespace_id)
        try:
            refuse_paths(build, platform)
        except PolicyError as error:
            refusal = refusal or error
        else:
            return
    if refusal is not None:
        raise refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Verdicts of a namespace's policy on a build that is copied into it from another namespace."""

    build: Build
    verdicts: tuple[Verdict, ...] = ()
    refusal: StoreError | None = None  # PolicyError or ChannelNotAllowedError

    @property
    def asks(self) -> bool:
        """True if the build needs approval."""
        return any(verdict.effect is Effect.ASK for verdict in self.verdicts)

    @property
    def allowed(self) -> bool:
        return self.refusal is None and not self.asks


def judge_arrivals(namespace: Namespace, builds: Sequence[Build]) -> list[Arrival]:
    """Evaluate builds of other namespaces with the policy of `namespace`.

    Recalls are excluded: they apply in every namespace already, and may be undone.
    """
    policy = policy_of(namespace)
    policy = replace(
        policy, rules=tuple(rule for rule in policy.rules if not isinstance(rule, Recalled))
    )
    found: dict[tuple[int, int], Arrival] = {}
    for build in builds:
        key = (build.lock_id or 0, build.specification_id)
        if key in found or build.lock is None:
            continue
        try:
            lock, specification = build.lock.value(), build.specification.value()
            verdicts = judge(policy, lock, specification)
            for part in lock:
                conflicts = LockConflicts.of(build.lock, part.platform)
                verdicts += judge_paths(policy, part, conflicts, specification)
        except StoreError as error:
            found[key] = Arrival(build=build, refusal=error)
        else:
            found[key] = Arrival(build=build, verdicts=verdicts)
    return [
        replace(arrival, build=build)
        for build in builds
        if (arrival := found.get((build.lock_id or 0, build.specification_id))) is not None
    ]


def evidence_for(policy: Policy, lock: Lock) -> Known:
    """Return when each package of `lock` was first seen, and its known install scripts."""
    now = timezone.now().timestamp()
    seen: dict[tuple[str, str], Sighting] = {}
    if policy.ages:
        for model, columns, digests in (
            (CondaRecord, ("channel",), sorted({p.sha256 for part in lock for p in part.conda})),
            (PypiRecord, (), sorted({p.sha256 for part in lock for p in part.pypi})),
        ):
            for start in range(0, len(digests), _BATCH):
                batch = model.objects.filter(sha256__in=digests[start : start + _BATCH])
                for sha256, moment, *rest in batch.values_list("sha256", "first_seen_at", *columns):
                    channel = canonical_or_same(rest[0]) if rest else ""
                    _add_sighting(
                        seen, channel, sha256, Sighting(at=moment.timestamp(), baseline=False)
                    )
        polls = FirstSeen(folders.data() / folders.SEEN)
        for package in (package for part in lock for package in part.conda):
            channel = canonical_or_same(package.channel)
            known = polls.sighting(channel, package.subdir, package.sha256)
            if known is not None:
                _add_sighting(seen, channel, package.sha256, known)
    return Known(now=now, seen=seen, found_scripts=policy.scripts, own_licenses=policy.own_licenses)


def _add_sighting(
    seen: dict[tuple[str, str], Sighting], channel: str, sha256: str, found: Sighting
) -> None:
    """Keep the earliest sighting; a baseline sighting (present at the first read) stays
    baseline."""
    held = seen.get((channel, sha256))
    if held is not None:
        found = Sighting(at=min(held.at, found.at), baseline=held.baseline or found.baseline)
    seen[channel, sha256] = found
