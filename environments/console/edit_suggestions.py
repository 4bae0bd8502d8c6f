"""Package suggestions of the editor, as options of a list box."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from condastore.errors import NotSignedInError
from environments.console.responses import actor_of
from environments.models import Namespace
from environments.operations.package_search import suggest_packages


@require_safe
def package_suggestions(request: HttpRequest) -> HttpResponse:
    """List packages of the channels `channels` (one per line) that match `q`."""
    actor = actor_of(request)
    if not actor.signed_in:
        raise NotSignedInError("Sign-in is required.")
    visible = Namespace.objects.visible_to(actor)
    name = request.GET.get("namespace", "").replace("\0", "")
    found = suggest_packages(
        actor=actor,
        namespace=visible.filter(name=name).first(),
        channels=[line.strip() for line in request.GET.get("channels", "").splitlines() if line],
        text=request.GET.get("q", "").replace("\0", ""),
        platforms=request.GET.getlist("platform"),
    )
    return render(request, "environments/_edit_suggestions.html", {"suggestions": found})
