"""Permissions of the caller, annotated on rows of a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.models import (
    BooleanField,
    Case,
    When,
)
from strawberry import Info

from accounts.access import may
from accounts.roles import Perm
from environments.graphql.fields import actor_of
from environments.models.namespaces import held


def may_annotation(perm: Perm, *, through: str = "") -> Callable[[Info], Case]:
    """Annotate whether the actor has `perm` in the namespace, or in the one `through` leads to."""

    def expression(info: Info) -> Case:
        allowed = When(held(actor_of(info), perm, through=through), then=True)
        return Case(allowed, default=False, output_field=BooleanField())

    return expression


def allowed(row: Any, info: Info, perm: Perm, guarded: Any) -> bool:
    """Return the annotation, or query it when the row was not read with it."""
    annotation = f"may_{perm}"
    if annotation in row.__dict__:
        return bool(row.__dict__[annotation])
    return may(actor_of(info), perm, guarded)
