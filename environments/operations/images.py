"""What the registry gives: an environment's container images, by tag and by digest."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from accounts.access import Actor, require
from accounts.roles import Perm
from environments import blobs, images, platforms
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.errors import (
    ArtifactFailedError,
    DamagedError,
    NotFoundError,
    UnavailableError,
)
from environments.domain.images import (
    ARCHITECTURES,
    INDEX,
    MANIFEST,
    Compression,
    Descriptor,
    index_json,
)
from environments.domain.lifecycle import FINISHED, SERVED
from environments.domain.on_demand import OnDemand
from environments.engine.images.remote import Login, Reference, Repository
from environments.models import (
    Artifact,
    AuditEvent,
    BaseImage,
    Blob,
    Build,
    BuildTag,
    Environment,
    ImageBlob,
    ImageIndex,
    Namespace,
)
from environments.models.images import base_name
from environments.models.recalls import RecalledLock, refuse_recalled
from environments.operations import queueing
from environments.operations.environments import find_environment, submit_to

#: Seconds between two looks at an image that is made.
LOOK = 0.2
LATEST, LOCK, ZSTD = "latest", "lock-", "-zstd"
_LOCK = re.compile(r"lock-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Bytes that belong to an image, and a build through which they may be had."""

    blob: Blob
    media_type: str
    build: Build


def repositories(actor: Actor, *, after: str = "", limit: int = 100) -> list[str]:
    """`namespace/environment` of those with an image to pull, in the order of names."""
    pulled = Build.objects.filter(state__in=SERVED, deleted_at=None).exclude(lock=None)
    found = Environment.objects.visible_to(actor).filter(pk__in=pulled.values("environment"))
    namespace, _, name = after.partition("/")
    if after:
        later = found.filter(namespace__name=namespace, name__gt=name)
        found = later | found.filter(namespace__name__gt=namespace)
    rows = found.order_by("namespace__name", "name").values_list("namespace__name", "name")
    return [f"{space}/{one}" for space, one in rows[:limit]]


def find_repository(actor: Actor, namespace: str, name: str) -> Environment:
    """Raises NotFoundError, also for what the actor may not see."""
    return find_environment(actor, namespace, name)


def tags(actor: Actor, environment: Environment) -> list[str]:
    """Numbers, tags, `latest` (the current build) and `lock-DIGEST`, sorted as text."""
    builds = _served(actor, environment)
    found = {str(number) for number in builds.values_list("number", flat=True)}
    found |= {f"{LOCK}{digest}" for digest in builds.values_list("lock__digest", flat=True)}
    named = BuildTag.objects.filter(environment=environment, build__in=builds)
    found |= set(named.values_list("name", flat=True))
    if environment.current_id and builds.filter(pk=environment.current_id).exists():
        found.add(LATEST)
    return sorted(found)


def _served(actor: Actor, environment: Environment) -> QuerySet[Build]:
    visible = Build.objects.visible_to(actor).filter(environment=environment, state__in=SERVED)
    return visible.exclude(lock=None)


def find_tagged(actor: Actor, environment: Environment, tag: str) -> tuple[Build, Compression]:
    """The build that `tag` means, and how its layers are compressed (`TAG-zstd`).

    Raises:
        NotFoundError: no build that can be pulled has this tag.
    """
    if (found := _tagged(actor, environment, tag)) is not None:
        return found, "gzip"
    short = tag.removesuffix(ZSTD)
    if short != tag and (found := _tagged(actor, environment, short)) is not None:
        return found, "zstd"
    raise NotFoundError(f"{environment} has no image {tag!r:.200}.")


def _tagged(actor: Actor, environment: Environment, tag: str) -> Build | None:
    builds = _served(actor, environment).select_related("lock", "specification")
    builds = builds.select_related("environment__namespace", "lock", "specification")
    if tag.isdecimal():
        return builds.filter(number=int(tag)).first() if len(tag) < 10 else None
    if found := _LOCK.fullmatch(tag):
        return builds.filter(lock__digest=found[1]).order_by("-number").first()
    named = builds.filter(tags__name=tag, tags__environment=environment).first()
    if named is None and tag == LATEST:
        return builds.filter(pk=environment.current_id or 0).first()
    return named


def request_images(
    *, actor: Actor, build: Build, compression: Compression = "gzip"
) -> list[Artifact]:
    """The build's images, one for each platform; made by a worker unless they are there.

    Raises:
        NotFoundError: its lock is for no platform that containers run on.
        RecalledError: it holds a package that was called back.
    """
    require(actor, Perm.DOWNLOAD, build)
    refuse_recalled(build)
    assert build.lock is not None, "found among those that have one"
    known = [one for one in build.lock.platforms if one in ARCHITECTURES]
    wanted = [one for one in known if _has_base(build, one)] or known[:1]
    if not wanted:
        raise NotFoundError(
            f"{build} has no image: its lock is for {', '.join(build.lock.platforms)}.",
            hint=f"Containers run on: {', '.join(ARCHITECTURES)}.",
        )
    return [_wanted(build, platform, compression) for platform in wanted]


def _has_base(build: Build, platform: str) -> bool:
    """Whether an image of this platform has something to lie on, or a registry to ask for it."""
    name = base_name(build.environment.namespace)
    if name == BaseImage.OWN and platform == platforms.own_platform():
        return True
    return "/" in name or BaseImage.objects.current(name, platform) is not None


def _wanted(build: Build, platform: str, compression: Compression) -> Artifact:
    more = {"compression": compression}
    artifact = Artifact.wanted(build, ArtifactKind.IMAGE, platform, more=more)
    if artifact.state == ArtifactState.READY and not _whole(artifact):
        artifact.again()
    if artifact.state == ArtifactState.QUEUED:
        images.finish_at_once(artifact)
    if artifact.state == ArtifactState.QUEUED and artifact.message_sent_at is None:
        queueing.queue_artifact(artifact)
    return artifact


def _whole(artifact: Artifact) -> bool:
    damaged = ImageBlob.objects.filter(artifact=artifact, blob__damaged_at__isnull=False)
    kept = artifact.blob is not None and blobs.is_whole(artifact.blob)
    return kept and not damaged.exists()


def manifest_of(build: Build, made: Sequence[Artifact]) -> Content:
    """What a tag leads to: the image, or an index of those of several platforms.

    Raises:
        ArtifactFailedError: one of them could not be made.
    """
    for artifact in made:
        if artifact.state == ArtifactState.FAILED:
            failure = artifact.failure or {}
            raise ArtifactFailedError(
                f"The image of {build} could not be made: {failure.get('message', '')}",
                hint=failure.get("hint") or None,
            )
    ready = {one.platform: one.blob for one in made if one.blob is not None}
    assert len(ready) == len(made), "waited for"
    if len(ready) == 1:
        [blob] = ready.values()
        return Content(blob=blob, media_type=MANIFEST, build=build)
    assert build.lock is not None, "it has images"
    document = index_json(
        {
            platform: Descriptor(media_type=MANIFEST, sha256=blob.sha256, size=blob.size)
            for platform, blob in sorted(ready.items())
        },
        {"io.condastore.lock": f"sha256:{build.lock.digest}"},
    )
    blob = blobs.keep_bytes(document, folder=blobs.blobs_folder())
    ImageIndex.objects.get_or_create(lock=build.lock, blob=blob)
    return Content(blob=blob, media_type=INDEX, build=build)


def find_content(
    actor: Actor, environment: Environment, sha256: str, *, kinds: Iterable[str] = ()
) -> Content:
    """What an image of this environment refers to by this digest.

    The same bytes may be of many images: one that the actor may have is enough.

    Args:
        kinds: media types, where only these are meant.
    Raises:
        NotFoundError: no image of this environment refers to it.
        RecalledError: those that do hold a package that was called back.
        DamagedError: the bytes are gone; they are made again when the image is asked for.
    """
    require(actor, Perm.DOWNLOAD, environment)
    served = _served(actor, environment)
    locks = served.order_by().values("lock")
    parts = ImageBlob.objects.filter(blob__sha256=sha256, artifact__lock__in=locks)
    indexes = ImageIndex.objects.filter(blob__sha256=sha256, lock__in=locks)
    found = [
        (row.blob, row.media_type, row.artifact.lock_id)
        for row in parts.select_related("blob", "artifact")[:1000]
    ]
    found += [(row.blob, INDEX, row.lock_id) for row in indexes.select_related("blob")]
    found = [one for one in found if not kinds or one[1] in kinds]
    if not found:
        raise NotFoundError(f"No image of {environment} has sha256:{sha256}.")
    among = {lock for _, _, lock in found}
    recalled = set(
        RecalledLock.objects.active().filter(lock__in=among).values_list("lock", flat=True)
    )
    allowed = [one for one in found if one[2] not in recalled]
    blob, media_type, lock = (allowed or found)[0]
    build = (
        served.filter(lock=lock)
        .select_related("environment__namespace")
        .order_by("-number")
        .first()
    )
    assert build is not None, "its lock was found through one"
    if not allowed:
        refuse_recalled(build)
    if not blobs.is_whole(blob):
        raise DamagedError(f"A part of an image of {environment} is gone.")
    return Content(blob=blob, media_type=media_type, build=build)


def referrers(actor: Actor, environment: Environment, sha256: str) -> list[dict[str, Any]]:
    """Descriptors of what is told of an image: of none where there is no such image."""
    require(actor, Perm.DOWNLOAD, environment)
    locks = _served(actor, environment).order_by().values("lock")
    recalled = RecalledLock.objects.active().values("lock")
    of_image = ImageBlob.objects.filter(blob__sha256=sha256, artifact__lock__in=locks)
    rows = ImageBlob.objects.filter(artifact__in=of_image.values("artifact"))
    told = rows.filter(media_type=MANIFEST).exclude(artifact_type="")
    told = told.exclude(artifact__lock__in=recalled)
    descriptors = {
        row.blob.sha256: {
            **Descriptor(media_type=MANIFEST, sha256=row.blob.sha256, size=row.blob.size).to_json(),
            "artifactType": row.artifact_type,
        }
        for row in told.select_related("blob").order_by("artifact_type", "pk")
    }
    return list(descriptors.values())


# --- on demand ------------------------------------------------------------------------------------


def on_demand(actor: Actor, path: str) -> Environment:
    """The environment of these packages, as far as the actor may see it.

    Raises:
        InvalidInputError: `path` names no packages.
        NotFoundError: it was never asked for, or is not the actor's to see.
    """
    wanted = OnDemand.parse(path)
    try:
        return find_environment(actor, settings.ON_DEMAND_NAMESPACE, wanted.name)
    except NotFoundError as error:
        raise NotFoundError(f"There is no image dynamic/{path:.200} yet.") from error


def build_on_demand(actor: Actor, path: str) -> Build:
    """A build of these packages, submitted where there is none that came to a good end.

    Raises:
        NotFoundError: images on demand are not for the actor.
        StoreError: what submitting a build says: policy, quota, ...
    """
    wanted = OnDemand.parse(path)
    name = settings.ON_DEMAND_NAMESPACE
    namespace = Namespace.objects.with_perm(actor, Perm.DOWNLOAD).filter(name=name).first()
    if namespace is None:
        raise NotFoundError(f"There is no image dynamic/{path:.200} yet.")
    found = Environment.objects.visible_to(actor).filter(namespace=namespace, name=wanted.name)
    builds = Build.objects.filter(environment__in=found, deleted_at=None).order_by("-number")
    usable = builds.filter(state__in=SERVED).exclude(lock__in=_recalled()).first()
    under_way = builds.exclude(state__in=FINISHED).first()
    if (build := usable or under_way) is not None:
        return build
    return submit_to(
        actor=actor,
        namespace=namespace,
        name=wanted.name,
        specification=wanted.specification,
        description=f"On demand: {path:.200}",
    ).build


def _recalled() -> QuerySet[RecalledLock, Any]:
    return RecalledLock.objects.active().values("lock")


# --- pushing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Blobs, and bytes of them, that were sent; and blobs that were there already."""

    sent: int
    sent_bytes: int
    there: int


def _await(made: Sequence[Artifact]) -> None:
    deadline = time.monotonic() + settings.ARTIFACT_TIME_LIMIT.total_seconds()
    for artifact in made:
        artifact.refresh_from_db()
        while artifact.state in (ArtifactState.QUEUED, ArtifactState.MAKING):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    "The image is still being made.", hint="Push it again in a while."
                )
            time.sleep(LOOK)
            artifact.refresh_from_db()


def push_image(
    *, actor: Actor, environment: Environment, tag: str, to: str, login: str = ""
) -> Pushed:
    """Send an image to another registry: blobs that are missing there, then its manifests.

    Raises:
        NotFoundError: there is no such tag.
        InvalidInputError: `to` names no image.
        AccessDeniedError, UnavailableError: what the other registry says.
    """
    require(actor, Perm.DOWNLOAD, environment)
    reference = Reference.parse(to)
    build, compression = find_tagged(actor, environment, tag)
    made = request_images(actor=actor, build=build, compression=compression)
    _await(made)
    top = manifest_of(build, made)
    sent = sent_bytes = there = 0
    signed_in = Login.parse(login) if login else None
    with Repository(reference, actions="pull,push", login=signed_in) as repository:
        for artifact in made:
            parts = ImageBlob.objects.filter(artifact=artifact, artifact_type="")
            for part in parts.exclude(media_type=MANIFEST).select_related("blob"):
                blob = part.blob
                if repository.push_blob(blob.sha256, blob.size, partial(blobs.parts, blob.sha256)):
                    sent, sent_bytes = sent + 1, sent_bytes + blob.size
                else:
                    there += 1
            if artifact.blob is not None and top.media_type == INDEX:
                document = b"".join(blobs.parts(artifact.blob.sha256))
                repository.push_manifest(f"sha256:{artifact.blob.sha256}", document, MANIFEST)
        document = b"".join(blobs.parts(top.blob.sha256))
        repository.push_manifest(reference.tag, document, top.media_type)
    change = {"tag": tag, "to": str(reference), "sent": sent}
    with transaction.atomic():
        AuditEvent.record(actor, "image.push", build, change)
    return Pushed(sent=sent, sent_bytes=sent_bytes, there=there)
