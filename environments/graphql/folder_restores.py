"""Type of the missing prefix folder of a READY build."""

from __future__ import annotations

from typing import Any

import strawberry
from django.db.models import OuterRef, Subquery

from environments.graphql.packages import Failure
from environments.models import FolderRestore

STATE = Subquery(
    FolderRestore.objects.missing().order_by().filter(prefix=OuterRef("prefix")).values("state")[:1]
)
FAILURE = Subquery(
    FolderRestore.objects.missing()
    .order_by()
    .filter(prefix=OuterRef("prefix"))
    .values("failure")[:1]
)


@strawberry.type(
    name="MissingFolder",
    description="State of relinking the missing prefix of a READY build.",
)
class MissingFolder:
    state: str = strawberry.field(description="State of the relinking.")
    failure: Failure | None = strawberry.field(
        description="Why the last attempt failed; null if it did not."
    )


def missing_state(build: Any) -> str | None:
    """The state of linking the build's folder again; None if the folder is there."""
    if "folder_state" in build.__dict__:
        state: str | None = build.__dict__["folder_state"]
        return state
    rows = FolderRestore.objects.missing().filter(prefix=build.prefix_id)
    return rows.values_list("state", flat=True).first()


def missing_folder(build: Any) -> MissingFolder | None:
    state = missing_state(build)
    if state is None:
        return None
    failure: dict[str, Any] | None = build.__dict__.get("folder_failure")
    if "folder_failure" not in build.__dict__:
        rows = FolderRestore.objects.missing().filter(prefix=build.prefix_id)
        failure = rows.values_list("failure", flat=True).first()
    return MissingFolder(state=state, failure=Failure.of(failure))
