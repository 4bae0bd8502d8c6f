"""Verdicts of rules and decisions of people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class Effect(StrEnum):
    ENFORCE = "enforce"  # refuse
    ASK = "ask"  # hold for approval
    WARN = "warn"


#: Manager of verdicts on a whole lock (size, missing packages); the name is that of the rule.
WHOLE = "rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageKey:
    """Subject of a decision: a package file, or (`rule`) the verdict of a rule."""

    manager: str  # "conda", "pypi", or "rule"
    name: str
    version: str = ""
    build: str = ""
    channel: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Verdict of a rule on one package, channel or lock, with the reason."""

    rule: str
    effect: Effect
    subject: str
    reason: str
    chain: tuple[str, ...] = ()  # names from the requested package to this one
    package: PackageKey | None = None  # never None if the effect is ASK
    policy: str = ""  # version of the policy
    decision: int | None = None  # the rejecting decision, if that is the reason

    @property
    def sentence(self) -> str:
        """The reason, with the dependency chain of the package."""
        if len(self.chain) < 2:
            return self.reason
        return f"{self.reason.rstrip('.')}; required through {' → '.join(self.chain)}."

    def to_json(self) -> dict[str, object]:
        package = self.package
        return {
            "rule": self.rule,
            "effect": self.effect.value,
            "subject": self.subject,
            "reason": self.reason,
            "chain": list(self.chain),
            "policy": self.policy,
            "decision": self.decision,
            "package": None
            if package is None
            else {
                "manager": package.manager,
                "name": package.name,
                "version": package.version,
                "build": package.build,
                "channel": package.channel,
                "sha256": package.sha256,
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Parse the result of `to_json`, also of older releases."""
        package = content.get("package")
        return cls(
            rule=content["rule"],
            effect=Effect(content["effect"]),
            subject=content["subject"],
            reason=content["reason"],
            chain=tuple(content.get("chain", ())),
            package=PackageKey(**package) if package else None,
            policy=content.get("policy", ""),
            decision=content.get("decision"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """Decision on packages: on these bytes (`sha256`), or on all that `spec` matches.

    `manager` is "conda", "pypi", or "rule" for verdicts of the rule `name` on whole locks.
    """

    id: int
    approved: bool
    manager: str
    name: str = ""
    spec: str = ""
    channel: str = ""  # base URL; "" is any
    sha256: str = ""
    reason: str = ""
    everywhere: bool = False  # of the installation: a namespace cannot override it
