"""How is an answer from PyPI led past what the rules refuse? uv is told before it looks, and after.

What a constraint can say, it is told at once. What else the rules have against its answer is left
out of the next question, version by version. Where the rules leave no answer, the first one is
given: the verdicts on the lock say what is against it, or hold it for a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from condastore.errors import PypiError
from environments.domain.policy import Effect, Known, LockedPackage, Objection, Screen
from environments.domain.records import PypiPackage
from environments.engine.solve.policy_view import Rules

Packages = tuple[PypiPackage, ...]
#: Answers to the requirements, of what these constraints (PEP 508) leave.
Resolve = Callable[[Sequence[str]], Packages]

_MOST_LOOKS = 8


def led_by_rules(resolve: Resolve, rules: Rules, *, log: Callable[[str], None]) -> Packages:
    """An answer that the rules allow; or that needs a decision; or what there is without them.

    Raises:
        PypiError: there is no answer without the rules either.
    """
    hiding = [rule for rule in rules.policy.rules if rule.hides()]
    policy = rules.policy
    known = Known(now=rules.now, found_scripts=policy.scripts, own_licenses=policy.own_licenses)
    screen = Screen(rules.policy, known, rules=hiding)
    first: Packages | None = None
    for effects in ({Effect.ENFORCE, Effect.ASK}, {Effect.ENFORCE}):
        told = [*rules.policy.pypi_constraints]
        for _ in range(_MOST_LOOKS):
            try:
                found = resolve(told)
            except PypiError:
                if not told:
                    raise
                break
            first = found if first is None else first
            against = list(_avoidable(screen, found, effects))
            if not against:
                return found
            for package, objection in against:
                log(
                    f"{package.name} {package.version} {objection.text} "
                    f"(rule “{objection.rule.name}”); looking for another."
                )
                told.append(_without(package, objection))
    return resolve(()) if first is None else first


def _avoidable(
    screen: Screen, packages: Packages, effects: Collection[Effect]
) -> Iterator[tuple[PypiPackage, Objection]]:
    """What the rules have against packages, where another answer may be better."""
    for package in packages:
        subject = LockedPackage(package)
        for objection in screen.objections(subject):
            if objection.effect not in effects:
                continue
            if objection.rule.ages and subject.indexed is None:
                continue  # when it was first seen is known to the verdicts only
            if objection.effect is Effect.ASK and objection.rule.of_name("pypi", package.name):
                continue  # each version needs the same decision
            yield package, objection
            break


def _without(package: PypiPackage, objection: Objection) -> str:
    if objection.rule.of_name("pypi", package.name):
        return f"{package.name}<0"  # no version at all: what needs it is to be passed over
    return f"{package.name}!={package.version}"
