"""Type of the files that are generated from a build's lock."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import strawberry
from django.db.models import Prefetch
from django.urls import reverse
from strawberry import Info

from environments.domain.artifacts import FORMS, ArtifactKind, ArtifactState, variant_of
from environments.graphql.fields import absolute
from environments.graphql.nodes import Node, ids_of
from environments.graphql.packages import Failure, Progress
from environments.graphql.scalars import BigInt
from environments.models import Artifact, Build, LockRow


@strawberry.type(
    name="Artifact",
    description="File generated from a lock, such as an archive or an image; builds "
    "with the same lock share it.",
)
class ArtifactNode(Node):
    kind: ArtifactKind = strawberry.field(description="Format of the file.")
    platform: str = strawberry.field(description="Platform the file is for, such as linux-64.")
    state: ArtifactState = strawberry.field(description="State of the file's generation.")
    file_name: str = strawberry.field(description="Name of the file when it is downloaded.")
    url: str = strawberry.field(
        description="Download URL; a request waits until the file is ready."
    )
    size: BigInt | None = strawberry.field(
        description="Size of the file, in bytes; null until it is ready."
    )
    sha256: str | None = strawberry.field(
        description="SHA-256 digest of the file, in hexadecimal; null until it is ready."
    )
    attempt: int = strawberry.field(description="Number of attempts to generate the file.")
    progress: Progress | None = strawberry.field(
        description="Progress of the running generation; null while none runs."
    )
    failure: Failure | None = strawberry.field(
        description="Why the last attempt failed; null if it did not."
    )
    seconds: float = strawberry.field(description="Time that the generation took, in seconds.")
    created_at: datetime = strawberry.field(description="When the file was first requested.")
    finished_at: datetime | None = strawberry.field(
        description="When the generation finished; null until then."
    )


def of_locks() -> Prefetch[str, Any, str]:
    """What was made of the lock of each build of a list."""
    made = Artifact.objects.select_related("blob").order_by("kind", "platform", "-recipe")
    rows = LockRow.objects.only("pk").prefetch_related(
        Prefetch("artifacts", made, to_attr="made_artifacts")
    )
    # Separate from the lock: a second prefetch of a relation reuses the rows of the first.
    return Prefetch("lock", rows, to_attr="lock_made")


def artifacts_of(info: Info, build: Any, namespace: str, environment: str) -> list[ArtifactNode]:
    """Those of this build's variables: another specification may have given the same lock."""
    if build.lock_id is None:
        return []
    if "lock_made" in build.__dict__:
        rows = build.lock_made.made_artifacts
    else:
        rows = Artifact.objects.filter(lock=build.lock_id).select_related("blob")
        rows = rows.order_by("kind", "platform", "-recipe")
    path = (namespace, environment, build.number)
    variant = _variant(build)
    return [_node(info, row, path) for row in rows if _is_current(row, variant)]


def has_artifact(build: Any, row: Artifact) -> bool:
    """Return whether an artifact of the build's lock is one of the build."""
    return _is_current(row, _variant(build))


def _is_current(row: Artifact, variant: str) -> bool:
    return row.variant == variant and row.recipe == FORMS[ArtifactKind(row.kind)].recipe


def _variant(build: Any) -> str:
    held = build.__dict__
    if "variables_set" in held:
        return variant_of(held["variables_set"] or {})
    return variant_of(dict(build.specification.value().variables))


def artifact_of(info: Info, build: Build, row: Artifact) -> ArtifactNode:
    environment = build.environment
    return _node(info, row, (environment.namespace.name, environment.name, build.number))


def _node(info: Info, row: Artifact, path: tuple[str, str, int]) -> ArtifactNode:
    name = FORMS[ArtifactKind(row.kind)].file_name
    blob = row.blob
    return ArtifactNode(
        **ids_of("Artifact", row),
        kind=ArtifactKind(row.kind),
        platform=row.platform,
        state=ArtifactState(row.state),
        file_name=name,
        url=f"{absolute(info, reverse('download', args=[*path, name]))}?platform={row.platform}",
        size=BigInt(blob.size) if blob else None,
        sha256=blob.sha256 if blob else None,
        attempt=row.attempt,
        progress=Progress.of(row.progress),
        failure=Failure.of(row.failure),
        seconds=row.seconds,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
