"""What an organisation allows: rules, and what they say of a name, a package, a whole lock."""

from environments.domain.policy.judging import (
    Objection,
    Policy,
    Screen,
    judge_conflicts,
    judge_lock,
    judge_names,
    key_of,
)
from environments.domain.policy.package_specs import PackageSpec, package_spec
from environments.domain.policy.rules import (
    KINDS,
    PATH_CONFLICTS,
    PIP_SOURCES,
    UNLISTED,
    Channels,
    InstallScripts,
    Licenses,
    PathConflicts,
    PipSources,
    Recalled,
    Rule,
    UnlistedPackages,
    parse_rule,
)
from environments.domain.policy.subjects import Evidence, Known, LockedPackage, Sighting, Subject
from environments.domain.policy.verdicts import WHOLE, Effect, PackageKey, Ruling, Verdict

__all__ = [
    "KINDS",
    "PATH_CONFLICTS",
    "PIP_SOURCES",
    "UNLISTED",
    "WHOLE",
    "Channels",
    "Effect",
    "Evidence",
    "InstallScripts",
    "Known",
    "Licenses",
    "LockedPackage",
    "Objection",
    "PackageKey",
    "PackageSpec",
    "PathConflicts",
    "PipSources",
    "Policy",
    "Recalled",
    "Rule",
    "Ruling",
    "Screen",
    "Sighting",
    "Subject",
    "UnlistedPackages",
    "Verdict",
    "judge_conflicts",
    "judge_lock",
    "judge_names",
    "key_of",
    "package_spec",
    "parse_rule",
]
