"""Operations on container images: find tags and contents, build on demand, push."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.access import Actor, may, require
from accounts.roles import Perm
from condastore import row_changes
from condastore.errors import (
    AccessDeniedError,
    ArtifactFailedError,
    ChannelNotAllowedError,
    DamagedError,
    InvalidInputError,
    NotFoundError,
    PolicyError,
    RecalledError,
    RejectedError,
    StoreError,
    UnavailableError,
)
from environments.domain.artifacts import ArtifactState
from environments.domain.images import (
    EMPTY,
    EMPTY_CONTENT,
    ENVELOPE,
    INDEX,
    MANIFEST,
    STATEMENT,
    Compression,
    Descriptor,
    referrer_json,
)
from environments.domain.lifecycle import FINISHED, SERVED, BuildState
from environments.domain.on_demand import OnDemand
from environments.domain.provenance import PREDICATE
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
    ImageStatement,
    Namespace,
    audited,
)
from environments.models.recalls import RecalledLock, refuse_recalled
from environments.operations import queueing, served_builds
from environments.operations.environments import find_environment, submit_to
from environments.operations.provenance import image_provenance
from environments.operations.served_builds import Asking
from environments.services import blobs, image_pushes
from environments.services.image_builder import registry_login
from environments.services.image_manifests import Content, images_of, manifest_of
from environments.services.image_pushes import PushResult

LATEST, LOCK, ZSTD = "latest", "lock-", "-zstd"
_LOCK = re.compile(r"lock-([0-9a-f]{64})")
#: Valid tags; others are rejected without a query.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
#: Number of builds with the same image whose statements are listed, newest first.
MAX_STATEMENTS = 20
#: Codes of failures by policy.
_REFUSED = frozenset(
    one.code for one in (PolicyError, RecalledError, RejectedError, ChannelNotAllowedError)
)
#: Pause after a failed build before the same image is built again, however often it is pulled.
REST = Artifact.REST


def repositories(actor: Actor, *, after: str = "", limit: int = 100) -> list[str]:
    """Return `namespace/environment` of environments with images, sorted by name."""
    pulled = Build.objects.filter(state__in=SERVED, deleted_at=None).exclude(lock=None)
    found = Environment.objects.visible_to(actor).filter(pk__in=pulled.values("environment"))
    namespace, _, name = after.partition("/")
    if after:
        later = found.filter(namespace__name=namespace, name__gt=name)
        found = later | found.filter(namespace__name__gt=namespace)
    rows = found.order_by("namespace__name", "name").values_list("namespace__name", "name")
    return [f"{space}/{one}" for space, one in rows[:limit]]


def find_repository(actor: Actor, namespace: str, name: str) -> Environment:
    """Raises NotFoundError, also for environments the actor may not see."""
    return find_environment(actor, namespace, name)


def tags(actor: Actor, environment: Environment) -> list[str]:
    """Return build numbers, tags, `latest` (the current build) and `lock-DIGEST`, sorted."""
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
    """Return the build that `tag` refers to, and the compression (`TAG-zstd`).

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
    if not _TAG.fullmatch(tag):
        return None
    builds = _served(actor, environment)
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
    """Return the build's images, one for each platform; missing ones are queued.

    Raises:
        NotFoundError: the lock has no platform that containers support.
        RecalledError: it holds a recalled package.
    """
    require(actor, Perm.DOWNLOAD, build)
    refuse_recalled(build)
    made = images_of(build, compression=compression)
    for artifact in made:
        if artifact.state == ArtifactState.QUEUED and artifact.message_sent_at is None:
            queueing.queue(artifact)
    return made


def served_content(
    asking: Asking, namespace: str, environment: str, sha256: str, *, kinds: Iterable[str] = ()
) -> Content | None:
    """Find content like `find_content` with a single query, if nothing is in the way.

    None means: call `find_content`, which also covers image indexes, and explains refusals.
    """
    part = served_builds.served_blob(asking, namespace, environment, sha256)
    if part is None or (kinds and part.media_type not in kinds) or not blobs.is_intact(part.blob):
        return None
    build = None
    if (
        kinds
        and (build := served_builds.served_image(asking, namespace, environment, part)) is None
    ):
        return None  # changed between the two reads
    return Content(blob=part.blob, media_type=part.media_type, build=build)


def served_manifest(
    asking: Asking, namespace: str, environment: str, tag: str, *, compression: Compression
) -> Content | None:
    """Return the manifest of a tag with two queries, if it is ready.

    None means: call `find_tagged` and `request_images`, which also build images and explain
    refusals.
    """
    if tag == "current" or not _TAG.fullmatch(tag):
        return None
    build = served_builds.served_build(asking, namespace, environment, tag, of_registry=True)
    image = None if build is None else served_builds.ready_image(build, compression)
    if image is None or image.blob is None or not blobs.is_intact(image.blob):
        return None
    return Content(blob=image.blob, media_type=MANIFEST, build=build)


def find_content(
    actor: Actor, environment: Environment, sha256: str, *, kinds: Iterable[str] = ()
) -> Content:
    """Return the content with this digest that an image of the environment refers to.

    Many images may share the content; one that the actor may download is enough.

    Args:
        kinds: accepted media types; empty accepts all.
    Raises:
        NotFoundError: no image of this environment refers to it.
        RecalledError: the images that refer to it hold a recalled package.
        DamagedError: the bytes are missing; they are made again when the image is requested.
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
    found += _statement_contents(served, sha256)
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
    assert build is not None, "the query found its lock through a build"
    if not allowed:
        refuse_recalled(build)
    if not blobs.is_intact(blob):
        raise DamagedError(f"A part of an image of {environment} is missing from the blob store.")
    return Content(blob=blob, media_type=media_type, build=build)


def _statement_contents(served: QuerySet[Build], sha256: str) -> list[tuple[Any, str, int]]:
    """Return the statements that builds of this environment make about their images."""
    named = Q(manifest__sha256=sha256) | Q(envelope__sha256=sha256) | Q(empty__sha256=sha256)
    rows = ImageStatement.objects.filter(named, build__in=served.order_by().values("pk"))
    found = []
    for row in rows.select_related("manifest", "envelope", "empty", "build")[:100]:
        parts = ((row.manifest, MANIFEST), (row.envelope, ENVELOPE), (row.empty, EMPTY))
        lock = row.build.lock_id
        found += [(blob, kind, lock) for blob, kind in parts if blob.sha256 == sha256 and lock]
    return found


def referrers(actor: Actor, environment: Environment, sha256: str) -> list[dict[str, Any]]:
    """Return descriptors of the documents that refer to an image; empty for an unknown image.

    These are its SBOM, and a provenance statement of each build with this image.
    """
    require(actor, Perm.DOWNLOAD, environment)
    served = _served(actor, environment).exclude(lock__in=_recalled())
    locks = served.order_by().values("lock")
    same = ImageBlob.objects.filter(blob__sha256=sha256, artifact__lock__in=locks)
    of_image = same.filter(media_type=MANIFEST, artifact_type="")
    rows = ImageBlob.objects.filter(artifact__in=of_image.values("artifact"), media_type=MANIFEST)
    told = rows.exclude(artifact_type="").filter(blob__damaged_at=None)
    found = {
        row.blob.sha256: (row.blob, row.artifact_type)
        for row in told.select_related("blob").order_by("artifact_type", "pk")
    }
    for statement in _statements(served, sha256):
        found[statement.manifest.sha256] = (statement.manifest, STATEMENT)
    return [
        Descriptor(media_type=MANIFEST, sha256=blob.sha256, size=blob.size).to_json(
            artifactType=artifact_type, annotations=document.get("annotations") or {}
        )
        for blob, artifact_type in found.values()
        if (document := _document(blob)) is not None
    ]


def _document(blob: Blob) -> dict[str, Any] | None:
    """Return None if the bytes are missing: it is reported, and made again with the image."""
    try:
        document: dict[str, Any] = json.loads(blobs.read(blob, 0, blob.size))
    except DamagedError:
        return None
    return document


def _statements(served: QuerySet[Build], sha256: str) -> list[ImageStatement]:
    """Return the builds' statements about this image; missing ones are made now."""
    locks = served.order_by().values("lock")
    indexes = ImageIndex.objects.filter(blob__sha256=sha256, lock__in=locks)
    index = indexes.select_related("blob").first()
    digests, media_type = {sha256}, MANIFEST
    if index is not None:
        listed = (_document(index.blob) or {}).get("manifests", ())
        digests = {str(one["digest"]).removeprefix("sha256:") for one in listed}
        media_type = INDEX
    images = Artifact.objects.filter(blob__sha256__in=digests, lock__in=locks)
    made = {(one.lock_id, one.options.get("specification", "")) for one in images.order_by()}
    if not made:
        return []
    among = Q(pk__in=())
    for lock, specification in made:
        among |= Q(lock=lock, specification__digest=specification)
    builds = served.filter(among).select_related("environment__namespace", "lock", "specification")
    return [
        _statement(build, sha256, media_type)
        for build in builds.order_by("-number")[:MAX_STATEMENTS]
    ]


def _statement(build: Build, sha256: str, media_type: str) -> ImageStatement:
    parts = ("manifest", "envelope", "empty")
    rows = ImageStatement.objects.filter(build=build, subject=sha256)
    row = rows.select_related(*parts).first()
    if row is not None and all(blobs.is_intact(getattr(row, name)) for name in parts):
        return row
    folder = blobs.blobs_folder()
    subject = Blob.objects.get(sha256=sha256)
    envelope = blobs.add_bytes(image_provenance(build, sha256).encode(), folder=folder)
    empty = blobs.add_bytes(EMPTY_CONTENT, folder=folder)
    document = referrer_json(
        Descriptor(media_type=media_type, sha256=sha256, size=subject.size),
        Descriptor(media_type=EMPTY, sha256=empty.sha256, size=empty.size),
        Descriptor(media_type=ENVELOPE, sha256=envelope.sha256, size=envelope.size),
        {
            "in-toto.io/predicate-type": PREDICATE,
            "io.condastore.build": f"{build.environment}:{build.number}",
        },
        artifact_type=STATEMENT,
    )
    manifest = blobs.add_bytes(document, folder=folder)
    told = {"manifest": manifest, "envelope": envelope, "empty": empty}
    row, _ = ImageStatement.objects.update_or_create(build=build, subject=sha256, defaults=told)
    return row


# --- on demand ------------------------------------------------------------------------------------


def on_demand(actor: Actor, path: str) -> Environment:
    """Return the environment of these packages if the actor may see it.

    Raises:
        InvalidInputError: `path` names no packages.
        NotFoundError: it was never requested, or the actor may not see it.
    """
    wanted = OnDemand.parse(path)
    try:
        return find_environment(actor, settings.ON_DEMAND_NAMESPACE, wanted.name)
    except NotFoundError as error:
        raise NotFoundError(f"The image dynamic/{path:.200} does not exist yet.") from error


def build_on_demand(actor: Actor, path: str) -> Build:
    """Return a build of these packages; submit one if none succeeded.

    Raises:
        NotFoundError: the actor may not build images on demand.
        StoreError: the submission was refused, for example by policy or quota.
    """
    wanted = OnDemand.parse(path)
    name = settings.ON_DEMAND_NAMESPACE
    namespace = Namespace.objects.with_perm(actor, Perm.DOWNLOAD).filter(name=name).first()
    if namespace is None:
        raise NotFoundError(f"The image dynamic/{path:.200} does not exist yet.")
    found = Environment.objects.visible_to(actor).filter(namespace=namespace, name=wanted.name)
    builds = Build.objects.filter(environment__in=found, deleted_at=None).order_by("-number")
    usable = builds.filter(state__in=SERVED).exclude(lock__in=_recalled()).first()
    under_way = builds.exclude(state__in=FINISHED).first()
    just_now = builds.filter(state=BuildState.FAILED, finished_at__gt=timezone.now() - REST).first()
    if (build := usable or under_way or just_now) is not None:
        return build
    return submit_to(
        actor=actor,
        namespace=namespace,
        name=wanted.name,
        specification=wanted.specification,
        description=f"On demand: {path:.200}",
    ).build


def refusal_of(build: Build) -> StoreError | None:
    """Return why a build that a pull waits for gives no image, as far as is known now."""
    if build.state == BuildState.HELD:
        event = build.events.filter(state=BuildState.HELD).order_by("-pk").first()
        why = event.message if event else "waits for approval"
        return PolicyError(f"{build} {why}.", hint="Pull it again after that is decided.")
    if build.state in SERVED or not build.finished:
        return None
    failure = build.failure or {}
    message, hint = failure.get("message", f"it is {build.state}"), failure.get("hint") or None
    kind = PolicyError if failure.get("code") in _REFUSED else ArtifactFailedError
    return kind(f"{build} could not be built: {message}", hint=hint)


def _recalled() -> QuerySet[RecalledLock, Any]:
    return RecalledLock.objects.active().values("lock")


# --- pushing --------------------------------------------------------------------------------------


def _await(made: Sequence[Artifact]) -> None:
    deadline = time.monotonic() + settings.ARTIFACT_TIME_LIMIT.total_seconds()
    for artifact in made:
        with row_changes.Watch(row_changes.topic_of(artifact)) as watch:
            artifact.refresh_from_db()
            while artifact.state in (ArtifactState.QUEUED, ArtifactState.MAKING):
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        "The image is still being built.", hint="Push it again in a moment."
                    )
                watch.wait()
                artifact.refresh_from_db()


def push_image(
    *, actor: Actor, environment: Environment, tag: str, to: str, login: str = ""
) -> PushResult:
    """Send an image to another registry: missing blobs first, then the manifests.

    Raises:
        NotFoundError: the environment has no such tag.
        InvalidInputError: `to` is not an image reference.
        AddressRefusedError: pushes to the registry's address are not allowed.
        AccessDeniedError, UnavailableError: the registry's answer.
    """
    require(actor, Perm.DOWNLOAD, environment)
    reference = Reference.parse(to)
    build, compression = find_tagged(actor, environment, tag)
    made = request_images(actor=actor, build=build, compression=compression)
    _await(made)
    top = manifest_of(build, made)
    own = (
        registry_login(environment.namespace, reference)
        if _may_use_logins(actor, environment)
        else None
    )
    signed_in = Login.parse(login) if login else own
    within = image_pushes.push_guard()
    with Repository(reference, actions="pull,push", login=signed_in, within=within) as repository:
        done = image_pushes.send_image(top, made, repository)
    change = {"tag": tag, "to": str(reference), "sent": done.sent}
    with transaction.atomic():
        AuditEvent.record(actor, "image.push", build, change)
    return done


def _may_use_logins(actor: Actor, environment: Environment) -> bool:
    """Return whether the actor may use the registry logins of the namespace."""
    return may(actor, Perm.MANAGE, environment.namespace)


# --- base images ----------------------------------------------------------------------------------


@audited()
def set_base_image(*, actor: Actor, namespace: Namespace, name: str) -> Namespace:
    """Set the base image of the namespace's images; "" means the installation's default.

    Raises:
        AccessDeniedError: administrators have not allowed it.
        InvalidInputError: it is not an image reference, or no such image was loaded.
    """
    require(actor, Perm.MANAGE, namespace)
    name = name.strip()
    allowed = settings.BASE_IMAGES_ALLOWED
    if name and not actor.is_superuser and not any(fnmatchcase(name, one) for one in allowed):
        raise AccessDeniedError(
            f"{name!r:.200} is not among the base images that namespaces may choose.",
            hint=f"Available: {', '.join(allowed)}."
            if allowed
            else "Ask an administrator to allow it (CONDASTORE_BASE_IMAGES_ALLOWED).",
        )
    if "/" in name:
        Reference.parse(name)
    elif name and name != BaseImage.OWN and not BaseImage.objects.filter(name=name).exists():
        raise InvalidInputError(
            f"No base image was loaded as {name!r:.200}.",
            where="base",
            hint="An administrator loads one: condastore manage base_image load FILE --name NAME.",
        )
    if len(name) > 300:
        raise InvalidInputError("A reference has at most 300 characters.", where="base")
    namespace.refresh_from_db()
    before = namespace.base_image
    Namespace.objects.filter(pk=namespace.pk).update(base_image=name)
    change = {"before": before, "after": name}
    AuditEvent.record(actor, "namespace.base-image", namespace, change)
    namespace.refresh_from_db()
    return namespace
