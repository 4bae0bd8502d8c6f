"""Signed provenance statements of builds: lock files, artifacts and images."""

from __future__ import annotations

import hashlib
import uuid

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor, require
from accounts.roles import Perm
from condastore import __version__
from condastore.errors import ConflictError
from environments.domain.artifacts import FORMS as ARTIFACTS
from environments.domain.artifacts import ArtifactKind, ArtifactState, variant_of
from environments.domain.provenance import Origin, Subject, envelope, statement
from environments.models import Artifact, Build, LockConflicts, PolicyVersion, SolveRow
from environments.models.recalls import refuse_recalled
from environments.operations.downloads import FORMS, LockFile, platform_of
from environments.services import signing


def provenance(*, actor: Actor, build: Build) -> str:
    """Return the statement of a build about its lock files and existing artifacts.

    Raises:
        NotFoundError: the build has no lock.
        RecalledError: it holds a recalled package.
    """
    require(actor, Perm.DOWNLOAD, build)
    platform_of(build)
    refuse_recalled(build)
    assert build.lock is not None, "a build with a platform has a lock"
    payload = statement(_origin(build), build.lock.value(), [*_locks(build), *_artifacts(build)])
    return envelope(payload, key_id=signing.key_id(), sign=signing.sign)


def image_provenance(build: Build, sha256: str) -> str:
    """Return the statement of a build about its container image; access was checked before."""
    assert build.lock is not None, "a build with an image has a lock"
    origin = _origin(build)
    subject = Subject(name=origin.build, sha256=sha256)
    payload = statement(origin, build.lock.value(), [subject])
    return envelope(payload, key_id=signing.key_id(), sign=signing.sign)


def _origin(build: Build) -> Origin:
    environment = build.environment
    until = build.finished_at or timezone.now()
    solves = SolveRow.objects.filter(specification=build.specification_id, lock=build.lock_id)
    solved = solves.filter(created_at__lte=until).order_by("-created_at").first()
    return Origin(
        build=f"{environment.namespace.name}/{environment.name}:{build.number}",
        builder=settings.PUBLIC_URL.rstrip("/")
        or uuid.uuid5(uuid.NAMESPACE_OID, signing.key_id()).urn,
        version=__version__,
        specification=build.source,
        specification_digest=build.specification.digest,
        platform=build.platform,
        channel_state=solved.channel_state if solved else "",
        policy=_policy(build),
        conflicts=LockConflicts.of(build.lock_id or 0, build.platform),
        started=build.created_at,
        finished=build.finished_at,
    )


def _policy(build: Build) -> dict[str, int]:
    """Return the policy versions in force when the build finished."""
    namespace = build.environment.namespace
    versions = PolicyVersion.objects.filter(
        Q(policy__namespace=None) | Q(policy__namespace=namespace),
        changed_at__lte=build.finished_at or timezone.now(),
    )
    found: dict[str, int] = {}
    for version in versions.select_related("policy").order_by("number"):
        found["installation" if version.policy.namespace_id is None else namespace.name] = (
            version.number
        )
    return found


def _locks(build: Build) -> list[Subject]:
    assert build.lock is not None
    subjects = []
    for name, form in FORMS.items():
        for platform in build.lock.platforms if form.one_platform else [build.platform]:
            file = LockFile(build=build, name=name, platform=platform)
            try:
                content = file.text().encode()
            except ConflictError:  # the format cannot express this lock
                continue
            subjects.append(Subject(name=file.file_name, sha256=_sha256(content)))
    return subjects


def _artifacts(build: Build) -> list[Subject]:
    created = Artifact.objects.filter(
        lock=build.lock_id,
        state=ArtifactState.READY,
        variant=variant_of(dict(build.specification.value().variables)),
        blob__damaged_at=None,
    )
    environment = build.environment
    stem = f"{environment.namespace.name}-{environment.name}-{build.number}"
    return [
        Subject(
            name=f"{stem}-{artifact.platform}-{ARTIFACTS[ArtifactKind(artifact.kind)].file_name}",
            sha256=artifact.blob.sha256,
        )
        for artifact in created.select_related("blob")
        if artifact.blob and artifact.recipe == ARTIFACTS[ArtifactKind(artifact.kind)].recipe
    ]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
