"""Scalars of the schema that GraphQL itself does not have."""

from __future__ import annotations

from typing import NewType

import strawberry

#: Integer beyond GraphQL's 32 bits; `condastore.schema` gives its parser and description.
BigInt = NewType("BigInt", int)
BIG_INT = strawberry.scalar(
    name="BigInt",
    description="A whole number, of bytes for instance, that may need more than 32 bits.",
    serialize=int,
    parse_value=int,
)
