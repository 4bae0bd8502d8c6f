"""The Node interface, and the lookup of rows by their ids."""

from __future__ import annotations

from typing import Any

import strawberry
from django.core.exceptions import ValidationError
from django.db.models import (
    QuerySet,
)
from strawberry import ID

from condastore.errors import NotFoundError


@strawberry.interface(description="Object with an id.")
class Node:
    id: ID = strawberry.field(description="Id of the object.")


def find(rows: QuerySet[Any], pk: object, what: str) -> Any:
    """The row with this id; NotFoundError where there is none, or where the id is no id."""
    try:
        found = rows.filter(pk=pk).first() if len(str(pk)) < 40 else None
    except (ValueError, OverflowError, ValidationError):
        found = None
    if found is None:
        raise NotFoundError(f"There is no such {what}.", where="id")
    return found
