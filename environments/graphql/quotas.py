"""Quotas of a namespace and their use."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import strawberry
from django.db.models import Expression, Subquery
from strawberry import Info

from environments.graphql.scalars import BigInt
from environments.operations import quotas


@strawberry.enum(description="What a quota limits.")
class QuotaKind(Enum):
    BYTES = strawberry.enum_value(
        "bytes", description="Bytes on disk; files shared between namespaces count by their share."
    )
    ENVIRONMENTS = strawberry.enum_value("environments", description="Number of environments.")
    BUILDS_AT_ONCE = strawberry.enum_value(
        "builds_at_once", description="Number of unfinished builds."
    )
    BUILDS_A_DAY = strawberry.enum_value(
        "builds_a_day", description="Number of builds submitted within 24 hours."
    )


@strawberry.type(description="One quota of a namespace and its use.")
class Quota:
    kind: QuotaKind = strawberry.field(description="What the quota limits.")
    used: BigInt = strawberry.field(description="Amount in use.")
    limit: BigInt | None = strawberry.field(description="Limit; null means no limit.")
    near: bool = strawberry.field(description="True when at least 80 % of the limit is used.")

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
    if not namespace.pk:  # the outline of a namespace that the caller may not see
        return []
    found = namespace.__dict__
    counted = all(name in found for name in USED)
    uses = quotas.uses_of(namespace) if counted else quotas.usage(namespace)
    return [Quota.of(use) for use in uses]
