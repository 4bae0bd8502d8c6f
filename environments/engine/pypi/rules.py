"""Resolution of the PyPI part within a namespace's policy.

uv gets the policy as constraints where constraints can express it. Versions that the policy refuses
for other reasons are excluded one by one, and uv runs again. If the policy leaves no solution, the
first solution is returned: the verdicts on the lock then refuse it, or hold it for approval.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from condastore.errors import PypiError
from environments.domain.policy import Effect, Known, LockedPackage, Objection, Screen
from environments.domain.records import PypiPackage
from environments.engine.solve.policy_view import Rules

Packages = tuple[PypiPackage, ...]
#: Resolves the requirements with additional constraints (PEP 508).
Resolve = Callable[[Sequence[str]], Packages]

_MAX_ATTEMPTS = 8


def resolve_within_policy(
    resolve: Resolve, rules: Rules, *, log: Callable[[str], None]
) -> Packages:
    """Return a solution that the policy allows, else one that needs approval, else the first.

    Raises:
        PypiError: there is no solution without the policy either.
    """
    hiding = [rule for rule in rules.policy.rules if rule.hides()]
    policy = rules.policy
    known = Known(now=rules.now, found_scripts=policy.scripts, own_licenses=policy.own_licenses)
    screen = Screen(rules.policy, known, rules=hiding)
    first: Packages | None = None
    for effects in ({Effect.ENFORCE, Effect.ASK}, {Effect.ENFORCE}):
        constraints = [*rules.policy.pypi_constraints]
        for _ in range(_MAX_ATTEMPTS):
            try:
                found = resolve(constraints)
            except PypiError:
                if not constraints:
                    raise
                break
            first = found if first is None else first
            against = list(_avoidable(screen, found, effects))
            if not against:
                return found
            for package, objection in against:
                log(
                    f"{package.name} {package.version} {objection.text} "
                    f"(rule “{objection.rule.name}”); trying another version."
                )
                constraints.append(_without(package, objection))
    return resolve(()) if first is None else first


def _avoidable(
    screen: Screen, packages: Packages, effects: Collection[Effect]
) -> Iterator[tuple[PypiPackage, Objection]]:
    """Yield packages with an objection that another version may avoid."""
    for package in packages:
        subject = LockedPackage(package)
        for objection in screen.objections(subject):
            if objection.effect not in effects:
                continue
            if objection.rule.ages and subject.indexed is None:
                continue  # only the verdicts know when it was first seen
            if objection.effect is Effect.ASK and objection.rule.check_name("pypi", package.name):
                continue  # every version needs the same decision
            yield package, objection
            break


def _without(package: PypiPackage, objection: Objection) -> str:
    if objection.rule.check_name("pypi", package.name):
        return f"{package.name}<0"  # excludes every version, and so the packages that need it
    return f"{package.name}!={package.version}"
