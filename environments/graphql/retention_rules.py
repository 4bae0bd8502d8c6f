"""Retention rules that are in force in a namespace."""

from __future__ import annotations

from typing import Any

import strawberry

from environments.operations import retention


@strawberry.type(description="Retention rules in force in a namespace; null means no such rule.")
class Retention:
    keep_last: int | None = strawberry.field(
        description="Number of newest builds of each environment that are kept."
    )
    keep_days: int | None = strawberry.field(description="Number of days that each build is kept.")
    delete_days: int | None = strawberry.field(
        description="Number of days after which an archived build is deleted."
    )
    keep_tagged: bool = strawberry.field(description="True when builds with a tag are always kept.")

    @classmethod
    def of(cls, namespace: Any) -> Retention:
        rules = retention.rules_of(namespace)
        return cls(
            keep_last=rules.keep_last,
            keep_days=rules.keep_days,
            delete_days=rules.delete_days,
            keep_tagged=rules.keep_tagged,
        )
