"""Pages: list of environments, one environment, one build with its log, device sign-in."""

from __future__ import annotations

from typing import Any

from allauth.core.internal import ratelimit
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods, require_safe

from accounts.access import Actor
from accounts.sign_in import TooManyAttemptsError
from condastore.errors import NotFoundError, RecalledError
from environments.console.downloads import downloads_of
from environments.domain.lifecycle import BuildState
from environments.models import ApprovalRequest, Build, Environment, FolderRestore
from environments.models.recalls import refuse_recalled
from environments.operations import device_sign_in
from environments.operations.environments import find_build, find_environment
from environments.services import approval_requests, folders

#: Rows that a page lists at most; GraphQL has all of them.
SHOWN = 200
LOG_LINES = 2_000
#: Device codes that one person may try.
CODES = {"code": "20/m/user"}


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.actor  # type: ignore[attr-defined]
    return actor


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    search = request.GET.get("search", "").replace("\0", "").strip()
    rows = Environment.objects.visible_to(_actor(request)).order_by("namespace__name", "name")
    if search:
        rows = rows.filter(name__icontains=search) | rows.filter(namespace__name__icontains=search)
    shown = list(
        rows.select_related("namespace", "current").defer(
            "current__source", "current__log_archive", "current__verdicts"
        )[: SHOWN + 1]
    )
    context = {"environments": shown[:SHOWN], "more": len(shown) > SHOWN, "search": search}
    return render(request, "environments/start.html", context)


@require_safe
def environment(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    actor = _actor(request)
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


@require_safe
def build(request: HttpRequest, namespace: str, name: str, reference: str) -> HttpResponse:
    actor = _actor(request)
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


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def device(request: HttpRequest) -> HttpResponse:
    """Show which command line asks to act for the person, and approve or deny it."""
    actor = _actor(request)
    given = request.POST if request.method == "POST" else request.GET
    code = given.get("code", "").strip()
    context: dict[str, Any] = {"code": code, "own_address": actor.address}
    if code:
        usage = ratelimit.consume(
            request,
            app="condastore",
            action="code",
            config=CODES,
            user=request.user,
            limit_get=True,
        )
        if usage is None:
            raise TooManyAttemptsError("Too many codes were tried.")
        try:
            found = device_sign_in.find(actor=actor, user_code=code)
        except NotFoundError as error:
            context["wrong"] = error
        else:
            context["waiting"] = found
            if (decision := request.POST.get("decision")) in {"approve", "deny"}:
                device_sign_in.decide(actor=actor, request=found, approve=decision == "approve")
                context["decided"] = decision
    return render(request, "environments/device.html", context)
