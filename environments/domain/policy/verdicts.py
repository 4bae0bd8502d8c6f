"""What does a rule say of a package, and what have people decided on it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class Effect(StrEnum):
    ENFORCE = "enforce"  # refuse
    ASK = "ask"  # hold for approval
    WARN = "warn"


#: The manager of a verdict on a whole lock (its size, what it lacks); the name is the rule's.
WHOLE = "rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageKey:
    """The one thing that a decision is about: a package's file, or (`rule`) what a rule says."""

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
    """What a rule says of one package, channel or lock, with the reason."""

    rule: str
    effect: Effect
    subject: str
    reason: str
    chain: tuple[str, ...] = ()  # of names: from what was asked for to the package
    package: PackageKey | None = None  # never None where the effect is ASK
    policy: str = ""  # the version of the policy that said so
    decision: int | None = None  # the rejecting decision, where that is the reason

    @property
    def sentence(self) -> str:
        """The reason, with the way that led to the package."""
        if len(self.chain) < 2:
            return self.reason
        return f"{self.reason.rstrip('.')}; it is needed through {' → '.join(self.chain)}."

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
        """What `to_json` gave, also that of older releases."""
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
    """What people decided of packages: of these bytes (`sha256`), or of all that `spec` matches.

    `manager` is "conda", "pypi", or "rule" for what the rule `name` says of whole locks.
    """

    id: int
    approved: bool
    manager: str
    name: str = ""
    spec: str = ""
    channel: str = ""  # base URL; "" is any
    sha256: str = ""
    reason: str = ""
    everywhere: bool = False  # of the whole installation: a namespace cannot loosen it
