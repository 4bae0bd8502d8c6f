"""Operations on artifacts: large files made from the lock of a build, such as archives."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore.errors import NotFoundError
from environments.domain.artifacts import FORMS, ArtifactKind, ArtifactState
from environments.models import Artifact, AuditEvent, Blob, Build, Namespace, audited
from environments.models.recalls import refuse_recalled
from environments.operations import queueing
from environments.operations.downloads import platform_of, require_served
from environments.services import blobs
from environments.services.policies import refuse_paths

KIND_OF = {form.file_name: kind for kind, form in FORMS.items()}


@transaction.atomic
def create_artifact(
    *, actor: Actor, build: Build, kind: ArtifactKind, platform: str = ""
) -> Artifact:
    """Queue an artifact of the build's lock, unless it exists or is in progress.

    One artifact serves all builds and namespaces that have the same lock.

    Args:
        platform: "" means the platform of the build's folder.
    Raises:
        NotFoundError: the build has no lock, or none for the platform.
        ConflictError: the build is held, or was never READY.
        RecalledError: the lock holds a recalled package.
        PolicyError: packages for another platform replace files of others, and a rule refuses that.
    """
    require(actor, Perm.DOWNLOAD, build)
    chosen = platform_of(build, platform)
    require_served(build)
    refuse_recalled(build)
    refuse_paths(build, chosen)
    artifact = Artifact.wanted(build, kind, chosen)
    if artifact.state == ArtifactState.READY and not (
        artifact.blob and blobs.is_intact(artifact.blob)
    ):
        artifact.again()
    if artifact.state == ArtifactState.QUEUED and artifact.message_sent_at is None:
        queueing.queue(artifact)
    return artifact


@audited()
def set_eager_artifacts(
    *, actor: Actor, namespace: Namespace, kinds: Sequence[ArtifactKind]
) -> Namespace:
    """Set which artifacts of each new build are made without a request."""
    require(actor, Perm.MANAGE, namespace)
    before = list(namespace.eager_artifacts)
    namespace.eager_artifacts = sorted({kind.value for kind in kinds})
    Namespace.objects.filter(pk=namespace.pk).update(eager_artifacts=namespace.eager_artifacts)
    change = {"before": before, "after": namespace.eager_artifacts}
    AuditEvent.record(actor, "namespace.eager-artifacts", namespace, change)
    return namespace


def find_kind(name: str) -> ArtifactKind:
    """Raises NotFoundError that lists the available files."""
    if name not in KIND_OF:
        raise NotFoundError(
            f"A build has no file {name!r}.", hint=f"Available files: {', '.join(KIND_OF)}."
        )
    return KIND_OF[name]


def file_name(build: Build, artifact: Artifact) -> str:
    """Return the download name, such as `research-ml-12-linux-64-env.tar.gz`."""
    environment = build.environment
    form = FORMS[ArtifactKind(artifact.kind)]
    return (
        f"{environment.namespace.name}-{environment.name}-{build.number}"
        f"-{artifact.platform}-{form.file_name}"
    )


def used(blob: Blob) -> None:
    """Record the use of a blob."""
    now = timezone.now()
    if blob.used_at < now - blobs.touch_interval() or blob.removing_at is not None:
        Blob.objects.filter(pk=blob.pk).update(used_at=now, removing_at=None)
