"""Kinds of rules, and the parser that reads one as people write it."""

from __future__ import annotations

from collections.abc import Mapping

from condastore.errors import FaultError, RuleError
from environments.domain.names import did_you_mean, printable
from environments.domain.policy.reading import Settings
from environments.domain.policy.rules.age import MinimumAge
from environments.domain.policy.rules.base import Check, Rule
from environments.domain.policy.rules.channels import UNLISTED, Channels, UnlistedPackages
from environments.domain.policy.rules.contents import (
    PATH_CONFLICTS,
    InstallScripts,
    PathConflicts,
    Size,
)
from environments.domain.policy.rules.license import Licenses
from environments.domain.policy.rules.packages import (
    Constraints,
    PackagesAllowed,
    PackagesDenied,
    Pins,
    Recalled,
    Required,
)
from environments.domain.policy.rules.pypi import PIP_SOURCES, PipSources, Pypi
from environments.domain.policy.verdicts import Effect

__all__ = [
    "KINDS",
    "PATH_CONFLICTS",
    "PIP_SOURCES",
    "UNLISTED",
    "Channels",
    "Check",
    "InstallScripts",
    "Licenses",
    "MinimumAge",
    "PathConflicts",
    "PipSources",
    "Recalled",
    "Required",
    "Rule",
    "Size",
    "UnlistedPackages",
    "parse_rule",
]

#: The kinds that people write, in the order in which they are offered.
KINDS: Mapping[str, type[Rule]] = {
    kind.kind: kind
    for kind in (
        Channels,
        PackagesDenied,
        PackagesAllowed,
        Licenses,
        MinimumAge,
        Constraints,
        Pins,
        Required,
        InstallScripts,
        Size,
        Pypi,
        PipSources,
        UnlistedPackages,
        PathConflicts,
    )
}


def parse_rule(*, kind: str, effect: str, name: str, settings: object) -> Rule:
    """Parse a rule as people write it.

    Args:
        settings: the JSON object of the kind.

    Raises:
        RuleError: with every fault and the key of each.
    """
    reading = Settings(settings)
    faults: list[FaultError] = []
    known = KINDS.get(kind)
    if known is None:
        hint = did_you_mean(kind, KINDS) or f"Use one of {', '.join(KINDS)}."
        faults.append(
            FaultError(f"{printable(kind)} is not a kind of rule.", where="kind", hint=hint)
        )
    if effect not in {each.value for each in Effect}:
        hint = "Use enforce (refuse), ask (hold for approval) or warn."
        message = f"{printable(effect)} is not an effect."
        faults.append(FaultError(message, where="effect", hint=hint))
    if not name.strip() or len(name) > 100 or not name.isprintable():
        message = "The name of a rule must have 1 to 100 printable characters."
        faults.append(FaultError(message, where="name"))
    if known is None:
        raise RuleError(faults)
    because = reading.text("reason")
    fields = known.read(reading)
    try:
        reading.finish()
    except RuleError as error:
        raise RuleError([*faults, *error.faults]) from None
    if faults:
        raise RuleError(faults)
    return known(name=name.strip(), effect=Effect(effect), because=because, **fields)
