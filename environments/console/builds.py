"""Page of one build, with its log."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from condastore.errors import RecalledError
from environments.console.downloads import downloads_of
from environments.console.responses import actor_of
from environments.domain.lifecycle import BuildState
from environments.models import ApprovalRequest, Build, FolderRestore
from environments.models.recalls import refuse_recalled
from environments.operations.environments import find_build, find_environment
from environments.services import approval_requests, folders

LOG_LINES = 2_000


@require_safe
def build(request: HttpRequest, namespace: str, name: str, reference: str) -> HttpResponse:
    actor = actor_of(request)
    found = find_build(actor, find_environment(actor, namespace, name), reference)
    missing = FolderRestore.objects.missing().filter(prefix=found.prefix_id).first()
    lines = found.log_lines or (found.origin.log_lines if found.origin else 0)
    order = [state.value for state in BuildState]
    context = {
        "build": found,
        "environment": found.environment,
        "log": found.log_from(max(0, lines - LOG_LINES), limit=LOG_LINES),
        "left_out": max(0, lines - LOG_LINES),
        "timings": sorted(
            found.timings.items(),
            key=lambda one: order.index(one[0]) if one[0] in order else len(order),
        ),
        "events": found.events.all(),
        "downloads": downloads_of(request, actor, found, str(found.number)),
        "missing": missing,
        "prefix": None if missing else folders.prefix_path(found),
        "recalled": _recalled(found),
        "requests": _requests(found),
    }
    return render(request, "environments/build.html", context)


def _recalled(build: Build) -> str:
    try:
        refuse_recalled(build)
    except RecalledError as error:
        return error.message
    return ""


def _requests(build: Build) -> list[tuple[ApprovalRequest, list[str]]]:
    """Return the approval requests that a HELD build waits for, with who may decide."""
    if build.state != BuildState.HELD:
        return []
    namespace = build.environment.namespace_id
    people = approval_requests.decider_names([namespace])[namespace]
    waits = build.requests.undecided().order_by("name", "pk")
    return [(request, people) for request in waits]
