"""What an organisation allows: rules, and what each says of a specification or a lock.

A rule looks at the names asked for (before the solve) and at every record of the lock (after it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from environments.domain.errors import ChannelNotAllowedError, PolicyError
from environments.domain.lock import Lock
from environments.domain.names import channel_allowed
from environments.domain.specification import Specification


class Effect(StrEnum):
    ENFORCE = "enforce"  # refuse
    ASK = "ask"  # hold for approval
    WARN = "warn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a rule says of one package or channel, with the reason."""

    rule: str
    effect: Effect
    subject: str
    reason: str
    chain: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "rule": self.rule,
            "effect": self.effect.value,
            "subject": self.subject,
            "reason": self.reason,
            "chain": list(self.chain),
        }


class Rule(Protocol):
    @property
    def name(self) -> str: ...
    def judge_names(self, specification: Specification) -> Iterator[Verdict]: ...
    def judge_lock(self, lock: Lock) -> Iterator[Verdict]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """An ordered set of rules. `version` is part of what a stored solve depends on."""

    rules: tuple[Rule, ...]
    version: str
    constraints: tuple[str, ...] = ()  # MatchSpecs that join every solve


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelsAllowed:
    """Only channels whose URL fits one of the patterns."""

    patterns: tuple[str, ...]
    name: str = "channels-allowed"

    def judge_names(self, specification: Specification) -> Iterator[Verdict]:
        yield from self._judge(specification.channels)

    def judge_lock(self, lock: Lock) -> Iterator[Verdict]:
        yield from self._judge(sorted({package.channel for part in lock for package in part.conda}))

    def _judge(self, channels: Sequence[str]) -> Iterator[Verdict]:
        for url in channels:
            if not channel_allowed(url, self.patterns):
                yield Verdict(
                    rule=self.name,
                    effect=Effect.ENFORCE,
                    subject=url,
                    reason=f"The channel {url} is not allowed here.",
                )


def judge_names(policy: Policy, specification: Specification) -> tuple[Verdict, ...]:
    """Verdicts on what was asked for; raises the refusals, all of them in one error."""
    verdicts = [v for rule in policy.rules for v in rule.judge_names(specification)]
    return _refuse_enforced(verdicts)


def judge_lock(policy: Policy, lock: Lock) -> tuple[Verdict, ...]:
    """Verdicts on every record of a lock, also of one that a user brought."""
    verdicts = [v for rule in policy.rules for v in rule.judge_lock(lock)]
    return _refuse_enforced(verdicts)


def _refuse_enforced(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    refused = [verdict for verdict in verdicts if verdict.effect is Effect.ENFORCE]
    if refused:
        kind = (
            ChannelNotAllowedError
            if all(verdict.rule == "channels-allowed" for verdict in refused)
            else PolicyError
        )
        raise kind(
            " ".join(verdict.reason for verdict in refused),
            details={"verdicts": [verdict.to_json() for verdict in refused]},
        )
    return tuple(verdicts)
