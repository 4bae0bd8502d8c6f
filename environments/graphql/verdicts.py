"""Policy verdicts on a lock."""

from __future__ import annotations

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


def verdicts_of(row: Any) -> list[Verdict]:
    return [
        Verdict(
            rule=one.get("rule", ""),
            effect=one.get("effect", Effect.WARN.value),
            subject=one.get("subject", ""),
            reason=one.get("reason", ""),
            chain=list(one.get("chain", ())),
        )
        for one in row.verdicts
    ]
