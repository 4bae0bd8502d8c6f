"""List of environments."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from environments.console.responses import actor_of
from environments.models import Environment

#: Rows that the page lists at most; GraphQL has all of them.
SHOWN = 200


@require_safe
def environments(request: HttpRequest) -> HttpResponse:
    search = request.GET.get("search", "").replace("\0", "").strip()
    rows = Environment.objects.visible_to(actor_of(request)).order_by("namespace__name", "name")
    if search:
        rows = rows.filter(name__icontains=search) | rows.filter(namespace__name__icontains=search)
    shown = list(
        rows.select_related("namespace", "current").defer(
            "current__source", "current__log_archive", "current__verdicts"
        )[: SHOWN + 1]
    )
    context = {"environments": shown[:SHOWN], "more": len(shown) > SHOWN, "search": search}
    return render(request, "environments/environments.html", context)
