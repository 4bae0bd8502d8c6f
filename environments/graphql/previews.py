"""Previews: solves without a build."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import strawberry_django
from django.db.models import (
    QuerySet,
)
from strawberry import ID, Info

from environments.graphql.builds import lock_of
from environments.graphql.fields import Column, actor_of, column, computed, described, field
from environments.graphql.nodes import Node, id_field, key_field, register_model
from environments.graphql.packages import (
    Failure,
    LockDiff,
    compared,
)
from environments.graphql.specifications import LockNode
from environments.graphql.verdicts import Verdict, verdicts_of
from environments.models import (
    Build,
    Preview,
)
from environments.models.previews import PreviewQuerySet, PreviewState


@strawberry_django.type(
    Preview,
    name="Preview",
    field_cls=Column,
    description="Solve of a specification without a build.",
)
class PreviewNode(Node):
    id: ID = id_field("Preview")
    database_id: str = key_field()
    state: PreviewState = column("State of the preview.")
    created_at: datetime = column("When the preview was requested.")
    finished_at: datetime | None = column("When the solve finished; null until then.")
    lock: LockNode | None = column("Lock that the solve found; null until it is solved.")
    failure: Failure | None = computed(
        lambda preview: Failure.of(preview.failure),
        description="Why the solve failed; null if it did not.",
    )
    warnings: list[str] = column(
        "Parts of the specification that were accepted but are probably mistakes."
    )
    verdicts: list[Verdict] = computed(
        verdicts_of,
        only=["verdicts"],
        description="Policy verdicts on the lock; a verdict with effect ASK would hold "
        "a build for approval.",
    )

    @classmethod
    def get_queryset(
        cls, queryset: PreviewQuerySet, info: Info, **kwargs: Any
    ) -> QuerySet[Preview]:
        return queryset.visible_to(actor_of(info))

    @field(
        only=["lock", "environment"],
        description="Changes compared with the environment's current build; null until solved.",
    )
    def diff(
        self: Any,
        info: Info,
        platform: Annotated[
            str | None,
            described("Platform to compare; null means the platform of the current build."),
        ] = None,
    ) -> LockDiff | None:
        if self.lock is None:
            return None
        visible = Build.objects.visible_to(actor_of(info))
        current = None
        if self.environment_id is not None:
            current = visible.filter(pk=self.environment.current_id).first()
        prefer = [current.platform] if current else []
        return compared(lock_of(current), self.lock.value(), platform, prefer=prefer)


register_model("Preview", PreviewNode, lambda info: Preview.objects.all())
