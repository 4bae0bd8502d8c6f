"""Page of one environment."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from environments.console.downloads import downloads_of
from environments.console.responses import actor_of
from environments.models import Build
from environments.operations.environments import find_environment
from environments.services import folders

#: Builds that the page lists at most; GraphQL has all of them.
SHOWN = 200


@require_safe
def environment(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = find_environment(actor, namespace, name)
    builds = (
        Build.objects.visible_to(actor)
        .filter(environment=found)
        .select_related("requested_by", "prefix")
        .prefetch_related("tags")
        .defer("source", "log_archive", "verdicts")
        .order_by("-number")
    )
    context = {
        "environment": found,
        "builds": builds[:SHOWN],
        "folder": folders.link_path(namespace, name) if found.current_id else None,
        "downloads": downloads_of(request, actor, found.current, "current")
        if found.current
        else None,
    }
    return render(request, "environments/environment.html", context)
