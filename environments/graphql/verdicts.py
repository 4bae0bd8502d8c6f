"""Policy verdicts on a lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import strawberry

from environments.domain.policy import Effect


@strawberry.type(description="Result of a policy rule for a package or channel.")
class Verdict:
    rule: str = strawberry.field(description="Name of the rule.")
    effect: str = strawberry.field(description="Effect of the rule.")
    subject: str = strawberry.field(description="Package or channel concerned.")
    reason: str = strawberry.field(description="Reason that the rule gives.")
    chain: list[str] = strawberry.field(
        description="Dependency chain from a requested package to the subject."
    )


def verdict_of(stored: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `domain.policy.Verdict.to_json` stored."""
    return Verdict(
        rule=stored.get("rule", ""),
        effect=stored.get("effect", Effect.WARN.value),
        subject=stored.get("subject", ""),
        reason=stored.get("reason", ""),
        chain=list(stored.get("chain", ())),
    )


def verdicts_of(row: Any) -> list[Verdict]:
    return [verdict_of(one) for one in row.verdicts]
