"""Builds that may be given away, found by one statement.

It answers all that stands in the way of a download at once: the names, the rights, the state, and
recalls. Where it finds nothing, the caller asks one by one, and learns what to say.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

from django.db.models import Exists, F, OuterRef, QuerySet, Subquery, TextField
from django.db.models.fields.json import KT
from django.db.models.functions import Cast

from accounts.access import Actor, kind_of, stand_in, values_for
from accounts.authentication import TokenClaim
from accounts.roles import Perm
from condastore.statements import KEY, NUMBER, Lookup, word
from environments.domain.artifacts import FORMS, ArtifactKind, ArtifactState
from environments.domain.images import ARCHITECTURES, Compression
from environments.domain.lifecycle import SERVED
from environments.models import (
    Artifact,
    BaseImage,
    Blob,
    Build,
    BuildTag,
    ImageBlob,
)
from environments.models.images import base_name
from environments.models.recalls import RecalledLock

_LOCK = re.compile(r"lock-([0-9a-f]{64})")
_BUILD = ("id", "environment_id", "number", "state", "lock_id", "specification_id", "platform")
_ENVIRONMENT = ("id", "namespace_id", "name", "current_id", "used_at")
_NAMESPACE = ("id", "name", "public", "base_image")


#: Who asks: an actor, or what a signed word says of one; the statement proves it in passing.
Asking = Actor | TokenClaim


def _actor(asking: Asking) -> Actor:
    return asking.actor if isinstance(asking, TokenClaim) else asking


def _kind(asking: Asking) -> tuple[Hashable, ...]:
    claimed = asking.kind if isinstance(asking, TokenClaim) else ()
    return (*kind_of(_actor(asking)), *claimed)


def _served(asking: Asking) -> QuerySet[Build]:
    """Builds that may be downloaded by an actor of this kind, of the repository that is named."""
    builds = Build.objects.with_perm(stand_in(_actor(asking)), Perm.DOWNLOAD)
    if isinstance(asking, TokenClaim):
        builds = builds.filter(asking.proof())
    recalled = RecalledLock.objects.active().filter(lock=OuterRef("lock"))
    return builds.order_by().filter(
        ~Exists(recalled),
        environment__namespace__name=word("namespace"),
        environment__name=word("environment"),
        state__in=sorted(SERVED),
        lock__isnull=False,
    )


def _values(asking: Asking, namespace: str, environment: str, **words: Any) -> dict[Any, Any]:
    named = {"namespace": namespace, "environment": environment, **words}
    claimed = asking.values() if isinstance(asking, TokenClaim) else {}
    values = values_for(_actor(asking)) | claimed
    return values | {word(name): value for name, value in named.items()}


_LOCKED_BUILD: Lookup[Build] = Lookup(
    Build,
    own=_BUILD,
    environment=_ENVIRONMENT,
    environment__namespace=_NAMESPACE,
    lock=("id", "digest", "claims", "platforms"),
    specification=("id", "digest"),
)


def served_build(
    asking: Asking, namespace: str, environment: str, reference: str, *, of_registry: bool = False
) -> Build | None:
    """The build, with its lock and specification, if who asks may download it now.

    Args:
        reference: a number, a tag, or `current`; others are not found here.
        of_registry: also `lock-DIGEST`, and `latest` for the current build where no tag has that
            name.
    """
    values = _values(asking, namespace, environment)
    kind: str
    found: dict[str, Any]
    conditions: list[Any] = []
    if reference in ("", "current"):
        kind, found = "current", {"pk": F("environment__current")}
    elif reference.isdecimal():
        if len(reference) > 9:
            return None
        kind, found = "number", {"number": NUMBER}
        values[NUMBER] = int(reference)
    elif of_registry and reference == "latest":
        named = BuildTag.objects.filter(environment=OuterRef("environment"), name="latest")
        kind, found = "latest", {"pk": F("environment__current")}
        conditions = [~Exists(named)]
    elif of_registry and (digest := _LOCK.fullmatch(reference)):
        kind, found = "lock", {"lock__digest": word("lock")}
        values[word("lock")] = digest[1]
    else:
        kind, found = "tag", {"tags__name": word("tag"), "tags__environment": F("environment")}
        values[word("tag")] = reference
    return _LOCKED_BUILD.first(
        ("served build", kind, *_kind(asking)),
        lambda: _served(asking).filter(*conditions, **found).order_by("-number"),
        values,
    )


_IMAGE_BLOB: Lookup[ImageBlob] = Lookup(
    ImageBlob,
    own=("id", "artifact_id", "blob_id", "media_type", "artifact_type"),
    blob=[field.attname for field in Blob._meta.concrete_fields],
)


def served_blob(asking: Asking, namespace: str, environment: str, sha256: str) -> ImageBlob | None:
    """A part of an image of these builds, if who asks may have it now."""
    return _IMAGE_BLOB.first(
        ("served blob", *_kind(asking)),
        lambda: ImageBlob.objects.order_by().filter(
            blob__sha256=word("digest"),
            blob__damaged_at=None,
            artifact__lock__in=_served(asking).values("lock"),
        ),
        _values(asking, namespace, environment, digest=sha256),
    )


_IMAGE_BUILD: Lookup[Build] = Lookup(
    Build, own=_BUILD, environment=_ENVIRONMENT, environment__namespace=_NAMESPACE
)


def served_image(asking: Asking, namespace: str, environment: str, part: ImageBlob) -> Build | None:
    """The newest of these builds with the image of `part`."""
    return _IMAGE_BUILD.first(
        ("served image", *_kind(asking)),
        lambda: _served(asking).filter(lock__artifacts=NUMBER).order_by("-number"),
        _values(asking, namespace, environment) | {NUMBER: part.artifact_id},
    )


_IMAGE: Lookup[Artifact] = Lookup(
    Artifact,
    own=("id", "lock_id", "kind", "platform", "state", "blob_id"),
    blob=[field.attname for field in Blob._meta.concrete_fields],
)


def ready_image(build: Build, compression: Compression) -> Artifact | None:
    """The image of a build that `served_build` found, if it is ready, whole, and its only one.

    Of a lock for several platforms that containers run on, nothing is found here: it has an index.
    """
    assert build.lock is not None, "found among those that have one"
    platforms = [one for one in build.lock.platforms if one in ARCHITECTURES]
    if len(platforms) != 1:
        return None
    values = {
        KEY: build.lock_id,
        word("platform"): platforms[0],
        word("specification"): build.specification.digest,
        word("compression"): compression,
        word("base"): base_name(build.environment.namespace),
    }
    return _IMAGE.first(("ready image",), _ready_images, values)


def _option(name: str) -> Cast:
    """An option as text: an exact lookup of a JSON key would encode what it is compared with."""
    return Cast(KT(f"options__{name}"), TextField())


def _ready_images() -> QuerySet[Artifact]:
    """Images by what they are made from (`image_options`); the specification says the variables."""
    bases = BaseImage.objects.filter(name=word("base"), platform=word("platform"))
    damaged = ImageBlob.objects.filter(artifact=OuterRef("pk"), blob__damaged_at__isnull=False)
    return (
        Artifact.objects.order_by()
        .alias(
            of=_option("specification"),
            packed=_option("compression"),
            on=_option("base"),
        )
        .filter(
            ~Exists(damaged),
            lock=KEY,
            kind=ArtifactKind.IMAGE,
            platform=word("platform"),
            recipe=FORMS[ArtifactKind.IMAGE].recipe,
            state=ArtifactState.READY,
            blob__damaged_at=None,
            of=word("specification"),
            packed=word("compression"),
            on=Subquery(bases.order_by("-pk").values("digest")[:1]),
        )
    )
