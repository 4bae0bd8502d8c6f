"""Registry views: manifests by tag or digest, blobs, tags, repositories, referrers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import urlencode

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.cache import patch_vary_headers

from accounts.access import Actor
from accounts.authentication import TokenClaim
from condastore.errors import InvalidInputError, NotFoundError, NotSignedInError, StoreError
from condastore.http import request_turns
from condastore.row_changes import AsyncWatch, topic_of
from environments.domain.artifacts import ArtifactState
from environments.domain.images import INDEX, LAYER, MANIFEST, Compression
from environments.domain.lifecycle import SERVED
from environments.models import Artifact, Build, Environment
from environments.operations import audit, images
from environments.operations.served_builds import Asking
from environments.registry import sign_in
from environments.registry.errors import (
    ChallengeError,
    InvalidDigestError,
    UnderWayError,
    UnknownError,
    in_its_words,
    refusal,
)
from environments.rest.blobs import Served, answer
from environments.services.image_manifests import Content, manifest_of

#: Prefix of images on demand; reserved as a namespace name.
ON_DEMAND = "dynamic"
PAGE, LARGEST_PAGE = 100, 1000
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
#: Only sha256 digests exist here.
_ANY_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]{1,200}")
Found = TypeVar("Found")
_UNFINISHED = (ArtifactState.QUEUED, ArtifactState.MAKING)


def _reading(request: HttpRequest) -> bool:
    return request.method in ("GET", "HEAD")


def _only_pulls(*allowed: str) -> JsonResponse:
    response = refusal(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        "Images are built from environments; pushes are not supported.",
    )
    response["Allow"] = ", ".join(allowed or ("GET", "HEAD"))
    return response


@in_its_words
async def base(request: HttpRequest) -> HttpResponseBase:
    """API version check, which also validates the token."""
    await sync_to_async(sign_in.actor_of)(request)
    return JsonResponse({})


@in_its_words
async def token(request: HttpRequest) -> HttpResponseBase:
    if request.method not in ("GET", "POST"):
        return _only_pulls("GET", "POST")
    try:
        return await sync_to_async(sign_in.token_for)(request)
    except StoreError as error:
        error.hint = "Use an API token as the password."
        raise


@in_its_words
async def catalog(request: HttpRequest) -> HttpResponseBase:
    if not _reading(request):
        return _only_pulls()

    def find() -> list[str]:
        actor = sign_in.actor_of(request, sign_in.CATALOG)
        return images.repositories(actor, after=last, limit=size + 1)

    size, last = _page_size(request), request.GET.get("last", "").replace("\0", "")
    found = await sync_to_async(find)()
    return _page(request, {"repositories": found[:size]}, found, size)


@in_its_words
async def list_tags(request: HttpRequest, namespace: str, environment: str) -> HttpResponseBase:
    if not _reading(request):
        return _only_pulls()

    def find() -> list[str]:
        actor, repository = _repository(request, namespace, environment)
        return images.tags(actor, repository)

    size, last = _page_size(request), request.GET.get("last", "")
    later = [tag for tag in await sync_to_async(find)() if tag > last]
    body = {"name": f"{namespace}/{environment}", "tags": later[:size]}
    return _page(request, body, later, size)


def _page_size(request: HttpRequest) -> int:
    given = request.GET.get("n", str(PAGE))
    if not given.isdecimal() or len(given) > 9:
        raise InvalidInputError(
            f"Query parameter n must be an integer, not {given!r:.50}.", where="n"
        )
    return min(int(given), LARGEST_PAGE)


def _page(
    request: HttpRequest, body: Mapping[str, object], found: list[str], size: int
) -> JsonResponse:
    response = JsonResponse(dict(body))
    if 0 < size < len(found):
        query = urlencode({"n": size, "last": found[size - 1]})
        response["Link"] = f'<{request.path}?{query}>; rel="next"'
    response["Cache-Control"] = "private, no-store"
    return response


def _repository(
    request: HttpRequest, namespace: str, environment: str
) -> tuple[Actor, Environment]:
    """Return the actor and the environment; invisible ones are not found.

    Raises:
        ChallengeError: nobody is signed in, and it does not exist or is not public.
    """
    actor = _actor(request, namespace, environment)
    try:
        if namespace == ON_DEMAND:
            return actor, images.on_demand(actor, environment)
        return actor, images.find_repository(actor, namespace, environment)
    except NotFoundError as error:
        if not actor.signed_in:
            scope = _scope(namespace, environment)
            raise ChallengeError(error.message, hint=error.hint, scope=scope) from error
        raise


def _scope(namespace: str, environment: str) -> str:
    return f"repository:{namespace}/{environment}:pull"


def _actor(request: HttpRequest, namespace: str, environment: str) -> Actor:
    """Return the actor with a token for this repository, cached for the request."""
    if not sign_in.NAME.fullmatch(f"{namespace}/{environment}"):
        raise UnknownError("The repository name is invalid.", kind="NAME_INVALID")
    known: Actor | None = getattr(request, "registry_actor", None)
    if known is None:
        known = sign_in.actor_of(request, _scope(namespace, environment))
        request.registry_actor = known  # type: ignore[attr-defined]
    return known


def _asking(request: HttpRequest, namespace: str, environment: str) -> Asking:
    """Return the actor, without a query if the token has a claim (`_prove`)."""
    name = f"{namespace}/{environment}"
    known = sign_in.NAME.fullmatch(name) and sign_in.asking(request, _scope(namespace, environment))
    return known or _actor(request, namespace, environment)


def _prove(request: HttpRequest, asking: Asking) -> None:
    """Set the actor of the request after its claim was proven."""
    actor = asking.actor if isinstance(asking, TokenClaim) else asking
    request.actor = actor  # type: ignore[attr-defined]


@in_its_words
async def manifest(
    request: HttpRequest, namespace: str, environment: str, reference: str
) -> HttpResponseBase:
    """Serve a manifest by tag; a missing image is built first, and the pull waits up to a limit."""
    if not _reading(request):
        return _only_pulls()
    place = (request, namespace, environment)
    if ":" in reference:
        content = await sync_to_async(_by_digest)(*place, reference, MANIFEST, INDEX)
    else:
        deadline = time.monotonic() + settings.REGISTRY_WAIT.total_seconds()
        if namespace == ON_DEMAND:
            await _built(request, environment, deadline)
        ready = await sync_to_async(_ready)(*place, reference)
        if ready is not None:
            content = ready
        else:
            build, wanted = await sync_to_async(_wanted)(*place, reference)
            made = await _awaited(wanted, deadline)
            content = await sync_to_async(manifest_of)(build, made)
    if request.method == "GET" and content.media_type != INDEX and content.build is not None:
        actor: Actor = request.actor  # type: ignore[attr-defined]
        await sync_to_async(audit.downloaded)(actor, content.build, "image")
    response = await _given(request, content)
    patch_vary_headers(response, ("Accept",))
    return response


def _ready(request: HttpRequest, namespace: str, environment: str, tag: str) -> Content | None:
    """Return the manifest of an existing image by one statement; None if more is needed."""
    if namespace == ON_DEMAND:
        return None
    asking = _asking(request, namespace, environment)
    compression = _compression(request)
    found = images.served_manifest(asking, namespace, environment, tag, compression=compression)
    if found is not None:
        _prove(request, asking)
    return found


def _compression(request: HttpRequest) -> Compression:
    return "zstd" if LAYER["zstd"] in request.headers.get("Accept", "") else "gzip"


def _wanted(
    request: HttpRequest, namespace: str, environment: str, tag: str
) -> tuple[Build, list[Artifact]]:
    actor, repository = _repository(request, namespace, environment)
    build, compression = _known(
        lambda: images.find_tagged(actor, repository, tag), "MANIFEST_UNKNOWN"
    )
    if _compression(request) == "zstd":
        compression = "zstd"
    found = _known(
        lambda: images.request_images(actor=actor, build=build, compression=compression),
        "MANIFEST_UNKNOWN",
    )
    return build, found


def _by_digest(
    request: HttpRequest, namespace: str, environment: str, digest: str, *kinds: str
) -> Content:
    unknown = "MANIFEST_UNKNOWN" if kinds else "BLOB_UNKNOWN"
    found = _DIGEST.fullmatch(digest)
    if found is not None and namespace != ON_DEMAND:
        asking = _asking(request, namespace, environment)
        content = images.served_content(asking, namespace, environment, found[1], kinds=kinds)
        if content is not None:
            _prove(request, asking)
            return content
    actor, repository = _repository(request, namespace, environment)
    if found is None:
        raise UnknownError(f"{digest!r:.100} is not a sha256 digest.", kind=unknown)
    return _known(lambda: images.find_content(actor, repository, found[1], kinds=kinds), unknown)


def _known(find: Callable[[], Found], kind: str) -> Found:
    try:
        return find()
    except NotFoundError as error:
        raise UnknownError(error.message, kind=kind) from error


async def _built(request: HttpRequest, path: str, deadline: float) -> None:
    """Build the packages of `path` and wait for the build.

    Raises:
        UnderWayError: it is not finished by `deadline`.
        ArtifactFailedError: it cannot be built; the message says why.
        PolicyError: it is not allowed, or not approved yet.
    """

    def begin() -> Build:
        actor = sign_in.actor_of(request, f"repository:{ON_DEMAND}/{path}:pull")
        try:
            return images.build_on_demand(actor, path)
        except (NotFoundError, NotSignedInError) as error:
            if actor.signed_in:
                raise
            raise ChallengeError(
                error.message, hint=error.hint, scope=f"repository:{ON_DEMAND}/{path}:pull"
            ) from error

    build = await sync_to_async(begin)()
    if build.state in SERVED:
        return
    with AsyncWatch(topic_of(build)) as watch:
        await sync_to_async(build.refresh_from_db)()
        while build.state not in SERVED:
            if (refusal := await sync_to_async(images.refusal_of)(build)) is not None:
                raise refusal
            if time.monotonic() >= deadline:
                raise UnderWayError(f"It is being built ({build.state}).", hint="Pull it again.")
            await request_turns.pause(watch, until=deadline)
            await sync_to_async(build.refresh_from_db)()


async def _awaited(wanted: list[Artifact], deadline: float) -> list[Artifact]:
    """Return the images once they are built or failed.

    Raises:
        UnderWayError: they are not finished within the time that a pull waits.
    """
    if not any(one.state in _UNFINISHED for one in wanted):
        return wanted
    with AsyncWatch(*map(topic_of, wanted)) as watch:
        wanted = await sync_to_async(_look)(wanted)
        while any(one.state in _UNFINISHED for one in wanted):
            if time.monotonic() >= deadline:
                raise UnderWayError("The image is being built.", hint="Pull it again in a while.")
            await request_turns.pause(watch, until=deadline)
            wanted = await sync_to_async(_look)(wanted)
    return wanted


def _look(wanted: list[Artifact]) -> list[Artifact]:
    found = Artifact.objects.select_related("lock", "blob").in_bulk([one.pk for one in wanted])
    return [found[one.pk] for one in wanted]


@in_its_words
async def blob(
    request: HttpRequest, namespace: str, environment: str, digest: str
) -> HttpResponseBase:
    if not _reading(request):
        return _only_pulls()
    content = await sync_to_async(_by_digest)(request, namespace, environment, digest)
    return await _given(request, content)


async def _given(request: HttpRequest, content: Content) -> HttpResponseBase:
    digest = f"sha256:{content.blob.sha256}"
    served = Served(
        blob=content.blob,
        content_type=content.media_type,
        headers=(("Docker-Content-Digest", digest),),
    )
    return await answer(request, served)


@in_its_words
async def referrers(
    request: HttpRequest, namespace: str, environment: str, digest: str
) -> HttpResponseBase:
    if not _reading(request):
        return _only_pulls()
    wanted = request.GET.get("artifactType", "").replace(" ", "+")  # an unescaped plus

    def find() -> list[dict[str, object]]:
        actor, repository = _repository(request, namespace, environment)
        found = _DIGEST.fullmatch(digest)
        if found is None and (digest.startswith("sha256:") or not _ANY_DIGEST.fullmatch(digest)):
            raise InvalidDigestError(f"{digest!r:.100} is not a digest.")
        return images.referrers(actor, repository, found[1]) if found else []

    found = await sync_to_async(find)()
    listed = [one for one in found if not wanted or one["artifactType"] == wanted]
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    response: HttpResponse = JsonResponse(body, content_type=INDEX)
    if wanted:
        response["OCI-Filters-Applied"] = "artifactType"
    return response


@in_its_words
async def unknown(request: HttpRequest, rest: str) -> HttpResponseBase:
    await sync_to_async(sign_in.actor_of)(request)
    if not _reading(request):
        return _only_pulls()
    raise NotFoundError("Repository names have the form NAMESPACE/ENVIRONMENT.")
