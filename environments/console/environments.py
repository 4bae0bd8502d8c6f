"""Page of one environment: current, newest and tags; use, versions, packages, sharing."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from accounts.access import Actor, may
from accounts.roles import Perm
from environments.console.downloads import downloads_of
from environments.console.environment_actions import actions_of
from environments.console.lock_tables import packages_of
from environments.console.responses import actor_of, render_page
from environments.models import Build, Environment
from environments.operations.builds import earlier_build
from environments.operations.environments import find_build, find_environment
from environments.services import folders

#: Builds of one page of the timeline, and of the overview.
SHOWN, SHOWN_FIRST = 50, 8
TABS = {
    "overview": "Overview",
    "packages": "Packages",
    "versions": "Versions",
    "sharing": "Sharing",
    "settings": "Settings",
}


@require_safe
def environment(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = find_environment(actor, namespace, name)
    shares = may(actor, Perm.GRANT, found)
    actions = actions_of(actor, found)
    tab = request.GET.get("tab", "overview")
    hidden = {"sharing"} if not shares else set()
    if not actions:
        hidden.add("settings")
    if tab not in TABS or tab in hidden:
        tab = "overview"
    builds = _builds(actor, found)
    newest = builds.first()
    context: dict[str, Any] = {
        "section": "environments",
        "environment": found,
        "tab": tab,
        "tabs": [(key, label) for key, label in TABS.items() if key not in hidden],
        "newest": newest,
        "current": found.current,
        "actions": actions,
        "offered": {offer.name: offer.url for offer in actions},
        "may_build": may(actor, Perm.BUILD, found),
    }
    if tab == "overview":
        context |= _use(request, actor, found)
        earlier = earlier_build(found)
        context["earlier"] = earlier.number if earlier else None
        context["tags"] = found.tags.select_related("build").filter(build__deleted_at=None)
    if tab in ("overview", "packages"):
        context["packages"] = packages_of(_locked(actor, found))
    if tab in ("overview", "versions"):
        context |= _versions(request, builds, SHOWN if tab == "versions" else SHOWN_FIRST)
    if tab == "sharing":
        context["shares"] = _shares(found)
    return render_page(request, "environments/environment.html", context)


def _builds(actor: Actor, environment: Environment) -> QuerySet[Build]:
    return (
        Build.objects.visible_to(actor)
        .filter(environment=environment)
        .select_related("requested_by", "prefix")
        .prefetch_related("tags")
        .defer("source", "log_archive", "verdicts")
        .order_by("-number")
    )


def _locked(actor: Actor, environment: Environment) -> Build | None:
    return find_build(actor, environment, "current") if environment.current_id else None


def _versions(request: HttpRequest, builds: QuerySet[Build], limit: int) -> dict[str, Any]:
    """Return a page of the timeline; `before` in the query is the number after its last row."""
    before = request.GET.get("before", "")
    if before.isascii() and before.isdecimal() and len(before) < 10:
        builds = builds.filter(number__lt=int(before))
    rows = list(builds[: limit + 1])
    more = len(rows) > limit
    return {"builds": rows[:limit], "older": rows[limit - 1].number if more else None}


def _use(request: HttpRequest, actor: Actor, environment: Environment) -> dict[str, Any]:
    """Return what "use it" shows of the chosen build: current, a tag, or a number."""
    reference = request.GET.get("use", "current").replace("\0", "")
    if environment.current_id is None and reference == "current":
        return {}
    build = find_build(actor, environment, reference)
    names = environment.namespace.name, environment.name
    current = reference in ("", "current")
    full = f"{environment}" if current else f"{environment}:{reference}"
    prefix = folders.link_path(*names) if current else folders.prefix_path(build)
    return {
        "use": reference or "current",
        "used": build,
        "folder": prefix,
        "run": f"condastore run {full} -- python",
        "activate": f"conda activate {prefix}" if prefix else "",
        "downloads": downloads_of(request, actor, build, reference or "current"),
    }


def _shares(environment: Environment) -> list[dict[str, str]]:
    users = environment.user_shares.select_related("user").order_by("user__username")
    groups = environment.group_shares.select_related("group").order_by("group__name")
    found = [{"kind": "user", "name": one.user.get_username()} for one in users]
    found += [{"kind": "group", "name": one.group.name} for one in groups]
    for one in environment.pending_shares.order_by("holder"):
        kind = "group" if one.is_group else "user"
        found.append({"kind": kind, "name": one.holder, "pending": "yes"})
    return found
