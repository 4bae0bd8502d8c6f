"""Artifacts of a build: created on demand, with `Prefer: wait`, then served."""

from __future__ import annotations

import re
import time

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, JsonResponse

from condastore.errors import ArtifactFailedError
from condastore.http import request_turns
from condastore.row_changes import AsyncWatch, topic_of
from environments.domain.artifacts import FORMS, ArtifactState
from environments.models import Artifact, Build
from environments.operations import artifacts, audit
from environments.rest.blobs import Served, answer, begins
from environments.rest.lookup import actor_of, build_of

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,5})\b")
_ASYNC = re.compile(r"(?:^|[,;\s])respond-async\b")


async def download(
    request: HttpRequest, namespace: str, environment: str, reference: str, name: str
) -> HttpResponseBase:
    """Serve the file once it is created.

    `Prefer: wait=20` waits at most 20 seconds, `Prefer: respond-async` not at all (RFC 7240); then
    202 reports the progress. Without either the response waits for the file.
    """
    platform = request.GET.get("platform", "")
    kind = artifacts.find_kind(name)

    def find() -> tuple[Build, Artifact]:
        build = build_of(request, namespace, environment, reference)
        return build, artifacts.create_artifact(
            actor=actor_of(request), build=build, kind=kind, platform=platform
        )

    build, artifact = await sync_to_async(find)()
    artifact = await _awaited(artifact, patience(request))
    if artifact.state == ArtifactState.FAILED:
        failure = artifact.failure or {}
        raise ArtifactFailedError(
            f"{name} of {build} could not be created: {failure.get('message', 'see the log')}",
            hint=failure.get("hint") or None,
            details={"failure": failure},
        )
    if artifact.state != ArtifactState.READY or artifact.blob is None:
        return _under_way(request, artifact)
    served = Served(
        blob=artifact.blob,
        content_type=FORMS[kind].content_type,
        file_name=artifacts.file_name(build, artifact),
    )
    response = await answer(request, served)
    if request.method == "GET" and begins(response):
        await sync_to_async(audit.downloaded)(actor_of(request), build, name)
    return response


def patience(request: HttpRequest) -> float:
    """Return the seconds that the client wants to wait, up to the time limit of artifacts."""
    limit: float = settings.ARTIFACT_TIME_LIMIT.total_seconds()
    preferred = request.headers.get("Prefer", "")
    if found := _WAIT.search(preferred):
        return min(float(found[1]), limit)
    if _ASYNC.search(preferred) or request.method == "HEAD":
        return 0.0
    return limit


async def _awaited(artifact: Artifact, seconds: float) -> Artifact:
    deadline = time.monotonic() + seconds
    unfinished = (ArtifactState.QUEUED, ArtifactState.MAKING)
    if seconds <= 0 or artifact.state not in unfinished:
        return artifact
    with AsyncWatch(topic_of(artifact)) as watch:
        artifact = await sync_to_async(_look)(artifact)
        while artifact.state in unfinished and time.monotonic() < deadline:
            await request_turns.pause(watch, until=deadline)
            artifact = await sync_to_async(_look)(artifact)
    return artifact


def _look(artifact: Artifact) -> Artifact:
    return Artifact.objects.select_related("lock", "blob").get(pk=artifact.pk)


def _under_way(request: HttpRequest, artifact: Artifact) -> JsonResponse:
    body = {
        "state": artifact.state,
        "kind": artifact.kind,
        "platform": artifact.platform,
        "attempt": artifact.attempt,
        "progress": artifact.progress,
        "failure": artifact.failure,
    }
    response = JsonResponse(body, status=202)
    response["Retry-After"] = "2"
    if applied := _applied(request):
        response["Preference-Applied"] = applied
    response["Cache-Control"] = "private, no-store"
    return response


def _applied(request: HttpRequest) -> str:
    """Return the preference that was applied (`Preference-Applied`)."""
    preferred = request.headers.get("Prefer", "")
    if found := _WAIT.search(preferred):
        return f"wait={found[1]}"
    return "respond-async" if _ASYNC.search(preferred) else ""
