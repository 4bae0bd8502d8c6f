"""How long do the builds of a namespace stay?"""

from __future__ import annotations

from typing import Any

import strawberry

from environments.operations import retention


@strawberry.type(description="How long builds stay, as the rules act: null where there is none.")
class Retention:
    keep_last: int | None = strawberry.field(description="Newest builds of each environment.")
    keep_days: int | None = strawberry.field(description="Days that each build stays.")
    delete_days: int | None = strawberry.field(
        description="Days after which an archived build is deleted."
    )
    keep_tagged: bool

    @classmethod
    def of(cls, namespace: Any) -> Retention:
        rules = retention.rules_of(namespace)
        return cls(
            keep_last=rules.keep_last,
            keep_days=rules.keep_days,
            delete_days=rules.delete_days,
            keep_tagged=rules.keep_tagged,
        )
