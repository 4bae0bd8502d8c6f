"""How much may a namespace hold and ask for, and how much does it?"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import strawberry
from django.db.models import Expression, Subquery
from strawberry import Info

from environments.graphql.packages import BigInt
from environments.operations import quotas


@strawberry.enum(description="What a quota limits. BYTES: on the disk, shared ones by their share.")
class QuotaKind(Enum):
    BYTES = "bytes"
    ENVIRONMENTS = "environments"
    BUILDS_AT_ONCE = "builds_at_once"
    BUILDS_A_DAY = "builds_a_day"


@strawberry.type(description="How much of one quota of a namespace is used.")
class Quota:
    kind: QuotaKind
    used: BigInt
    limit: BigInt | None = strawberry.field(description="Null where there is none.")
    near: bool = strawberry.field(description="At 80 % of the limit, or beyond.")

    @classmethod
    def of(cls, use: quotas.Use) -> Quota:
        return cls(
            kind=QuotaKind(use.kind.name),
            used=BigInt(use.used),
            limit=None if use.limit is None else BigInt(use.limit),
            near=use.is_near(),
        )


def _used(kind: str) -> Callable[[Info], Expression | Subquery]:
    return lambda info: quotas.used(kind)


#: Annotations of the namespaces of a list: so many lists, so many queries, however long they are.
USED = {f"used_{kind.name}": _used(kind.name) for kind in quotas.KINDS}


def quotas_of(namespace: Any) -> list[Quota]:
    found = namespace.__dict__
    counted = all(name in found for name in USED)
    uses = quotas.uses_of(namespace) if counted else quotas.usage(namespace)
    return [Quota.of(use) for use in uses]
