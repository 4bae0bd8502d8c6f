"""Page of one build: state, stages, log, and what can be done; live while it runs."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from accounts.access import Actor
from condastore.errors import InvalidInputError, RecalledError
from environments.console.build_actions import actions_of
from environments.console.build_stages import progress_of, spent_of, stages_of, summary_of, usual_of
from environments.console.downloads import downloads_of
from environments.console.log_windows import Window, search, window_of
from environments.console.responses import act, actor_of, render_page
from environments.domain.lifecycle import BuildState
from environments.models import ApprovalRequest, Build, FolderRestore
from environments.models.approvals import WaitingBuild
from environments.models.recalls import refuse_recalled
from environments.operations.approvals import explain_request
from environments.operations.environments import find_build, find_environment
from environments.services import approval_requests, folders

#: Longest text that the log is searched for.
LONGEST_SEARCH = 200


@require_safe
def build(request: HttpRequest, namespace: str, name: str, reference: str) -> HttpResponse:
    actor = actor_of(request)
    found = find_build(actor, find_environment(actor, namespace, name), reference)
    missing = FolderRestore.objects.missing().filter(prefix=found.prefix_id).first()
    query = request.GET.get("q", "").replace("\0", "")[:LONGEST_SEARCH]
    context = {
        "section": "environments",
        "environment": found.environment,
        "log": window_of(found, line_in(request)),
        "query": query,
        "matches": search(found, query) if query else None,
        "downloads": downloads_of(request, actor, found, str(found.number)),
        "missing": missing,
        "prefix": None if missing else folders.prefix_path(found),
        "recalled": _recalled(found),
        "reproduce": _reproduce(found),
        **live_context(actor, found),
    }
    context["stream"] = _stream(context["log"], found) if not found.finished else ""
    return render_page(request, "environments/build.html", context)


def live_context(actor: Actor, found: Build) -> dict[str, Any]:
    """Return what the parts of the page that change while a build runs need."""
    events = list(found.events.all())
    usual = usual_of(found)
    requests = _requests(actor, found)
    spent = spent_of(found, events, timezone.now())
    return {
        "build": found,
        "environment": found.environment,
        "events": events,
        "stages": stages_of(found, events, usual),
        "usual": usual,
        "progress": progress_of(found),
        "summary": summary_of(found, usual, spent, len(requests)),
        "requests": requests,
        "explains": any(one["mine"] for one in requests),
        "actions": actions_of(actor, found),
    }


def line_in(request: HttpRequest, *, least: int = 1) -> int | None:
    """Return the number of a log line in the query, at least `least`; None for none."""
    text = request.GET.get("line", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        return None
    return max(least, int(text))


def page_of(found: Build) -> str:
    environment = found.environment
    return reverse("build", args=[environment.namespace.name, environment.name, found.number])


def _stream(window: Window, found: Build) -> str:
    """Return the address of the live parts; log lines are sent to those who see the end."""
    environment = found.environment
    names = [environment.namespace.name, environment.name, found.number]
    path = reverse("build-stream", args=names)
    return f"{path}?line={window.last}" if window.at_end else path


def _reproduce(found: Build) -> str:
    if found.lock_id is None:
        return ""
    environment, number = found.environment, found.number
    file = f"{environment.name}-{number}.txt"
    return (
        f"condastore env export {environment}:{number} --format explicit.txt --output {file} "
        f"&& conda create --prefix ./{environment.name}-{number} --file {file}"
    )


def _recalled(found: Build) -> str:
    try:
        refuse_recalled(found)
    except RecalledError as error:
        return error.message
    return ""


def _requests(actor: Actor, found: Build) -> list[dict[str, Any]]:
    """Return the approval requests that a HELD build waits for, with who may decide."""
    if found.state != BuildState.HELD:
        return []
    namespace = found.environment.namespace_id
    people = approval_requests.decider_names([namespace])[namespace]
    waits = list(found.requests.undecided().order_by("name", "pk"))
    notes = WaitingBuild.objects.filter(build=found, request__in=waits).select_related("asked_by")
    by_request = {note.request_id: note for note in notes}
    return [
        {
            "request": request,
            "people": people,
            "note": by_request.get(request.pk),
            "mine": actor.account is not None
            and request.pk in by_request
            and by_request[request.pk].asked_by_id == actor.account.pk,
        }
        for request in waits
    ]


@require_POST
def explain(request: HttpRequest, namespace: str, name: str, reference: str) -> HttpResponse:
    """Add an explanation for approvers to every request of the actor that the build waits for."""
    actor = actor_of(request)
    found = find_build(actor, find_environment(actor, namespace, name), reference)

    def add() -> None:
        if actor.account is None:
            raise InvalidInputError("Sign in to add an explanation.")
        note = request.POST.get("note", "").strip()
        if not note:
            raise InvalidInputError("Write an explanation.", where="explanation")
        for waiting in ApprovalRequest.objects.undecided().filter(
            waiting__build=found, waiting__asked_by=actor.account
        ):
            explain_request(actor=actor, request=waiting, note=note)

    return act(request, add, done="The approvers see your explanation.", then=page_of(found))
