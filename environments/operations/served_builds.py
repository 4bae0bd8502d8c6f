"""Find builds that an actor may download, with a single query.

The query checks names, permissions, state and recalls at once. If it finds nothing, the caller
checks one after the other to learn what to answer.
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
from environments.models.base_images import base_name
from environments.models.recalls import RecalledLock

_LOCK = re.compile(r"lock-([0-9a-f]{64})")
_BUILD = ("id", "environment_id", "number", "state", "lock_id", "specification_id", "platform")
_ENVIRONMENT = ("id", "namespace_id", "name", "current_id", "used_at")
_NAMESPACE = ("id", "name", "public", "base_image")


#: Who asks: an actor, or an unverified claim of a signed token, which the query verifies.
Asking = Actor | TokenClaim


def _actor(asking: Asking) -> Actor:
    return asking.actor if isinstance(asking, TokenClaim) else asking


def _kind(asking: Asking) -> tuple[Hashable, ...]:
    claimed = asking.kind if isinstance(asking, TokenClaim) else ()
    return (*kind_of(_actor(asking)), *claimed)


def _served(asking: Asking) -> QuerySet[Build]:
    """Builds of the named environment that an actor of this kind may download."""
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
    """Return the build with its lock and specification, if it may be downloaded now.

    Args:
        reference: a number, a tag, or `current`; nothing else is found here.
        of_registry: also `lock-DIGEST`, and `latest` for the current build unless a tag has that
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
    """Return a part of an image of these builds, if it may be downloaded now."""
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
    """Return the newest of these builds with the image of `part`."""
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
    """Return the image of a build from `served_build`, if it is ready, intact and its only one.

    None for a lock with several container platforms, which needs an image index.
    """
    assert build.lock is not None, "`served_build` finds only builds with a lock"
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
    """Cast an option to text: an exact lookup of a JSON key would encode the compared value."""
    return Cast(KT(f"options__{name}"), TextField())


def _ready_images() -> QuerySet[Artifact]:
    """Images by their inputs (`image_options`); variables are those of the specification."""
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
