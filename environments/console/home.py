"""Start page of a person: what waits, what is being built, own environments."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

from accounts.roles import Perm
from environments.console.responses import actor_of
from environments.models import Namespace
from environments.operations import overview


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    if not actor.signed_in:
        return HttpResponseRedirect(reverse("environments"))
    own = overview.summaries_of_own(actor)
    context: dict[str, Any] = {
        "section": "home",
        "own": own,
        "decisions": overview.decisions_of(actor),
        "failed": overview.failed_builds(actor),
        "held": overview.held_builds(actor),
        "recalled": overview.recalled_environments(actor),
        "running": overview.running_builds(actor),
        "address": request.build_absolute_uri("/").rstrip("/"),
    }
    context["waiting"] = sum(len(context[name]) for name in ("decisions", "failed", "recalled"))
    if not own:
        context["namespaces"] = Namespace.objects.with_perm(actor, Perm.BUILD)[:1]
    return render(request, "environments/home.html", context)
