"""Editor of an environment: form and YAML in step, preview, build."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.access import Actor, require
from accounts.roles import Perm
from accounts.throttling import exceeded
from condastore.errors import ConflictError, StoreError, UnexpectedError
from environments.console import edit_starts
from environments.console.edit_form import Draft, Problem, lines_in, problems
from environments.console.edit_preview import Panel, find_preview, panel_of
from environments.console.responses import SeeOther, actor_of, is_partial
from environments.models import Environment, Namespace, Preview
from environments.operations.builds import Submitted, read_submission, submit_build
from environments.operations.environments import find_environment, submit_to
from environments.operations.namespaces import namespace_to_build_in
from environments.operations.previews import preview_for

#: Key of the session that holds a draft through a sign-in, and its largest text in characters.
DRAFT_KEY = "editor_draft"
MAX_DRAFT = 65_536
#: Drafts that one address may store without a sign-in, and how long they are kept.
DRAFTS = "10/h/ip"
DRAFT_SECONDS = 3_600
#: Namespaces that the field of a new environment suggests at most.
SUGGESTED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Environment that a draft is for; `environment` is None if it is new."""

    environment: Environment | None
    namespace: str
    name: str

    @property
    def path(self) -> str:
        if self.environment is None:
            return reverse("new-environment")
        return reverse("edit-environment", args=[self.namespace, self.name])


@require_http_methods(["GET", "HEAD", "POST"])
def new_environment(request: HttpRequest) -> HttpResponse:
    """Page for a new environment."""
    given = request.POST if request.method == "POST" else request.GET
    actor = actor_of(request)
    if not actor.signed_in:
        return _through_sign_in(request)
    own = actor.account.username.lower()
    target = Target(
        environment=None,
        namespace=given.get("namespace", own).replace("\0", "").strip(),
        name=given.get("name", "").replace("\0", "").strip(),
    )
    return _edit(request, target)


@require_http_methods(["GET", "HEAD", "POST"])
def edit_environment(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """Page that edits an environment, beginning with its current build."""
    actor = actor_of(request)
    if not actor.signed_in:
        return _through_sign_in(request)
    environment = find_environment(actor, namespace, name)
    require(actor, Perm.BUILD, environment)
    return _edit(request, Target(environment=environment, namespace=namespace, name=name))


def _through_sign_in(request: HttpRequest) -> HttpResponse:
    """Ask for the sign-in; what was typed is stored in the session and shown afterwards.

    Visitors can only store a few drafts, and for a short time: nobody is to fill the database.
    """
    path = request.get_full_path()
    if request.method == "POST":
        text = request.POST.get("text", "")
        if 0 < len(text) <= MAX_DRAFT and not exceeded(request, action="draft", rate=DRAFTS):
            draft = Draft.submitted(request.POST)
            named = {key: request.POST.get(key, "")[:255] for key in ("namespace", "name")}
            request.session[DRAFT_KEY] = {"path": request.path, "text": draft.text, **named}
            request.session.set_expiry(DRAFT_SECONDS)
        if is_partial(request):
            return HttpResponse(status=401)
    return redirect_to_login(path)


def _edit(request: HttpRequest, target: Target) -> HttpResponse:
    actor = actor_of(request)
    if request.method != "POST":
        draft, target = _start(request, actor, target)
        return _page(request, target, draft)
    draft = Draft.submitted(request.POST)
    if "repair" in request.POST:
        draft = draft.repaired(request.POST["repair"])
    action = request.POST.get("action", "preview")
    if "from" in request.POST and (action == "start" or "file" in request.FILES):
        return _page(request, target, _started(request, actor, draft))
    if action == "build" and not draft.problems:
        try:
            return _submit(request, actor, target, draft)
        except UnexpectedError:
            raise
        except StoreError as error:
            return _page(request, target, replace(draft, problems=problems(error)))
    if action in ("row", "merge"):
        return _page(request, target, draft)
    preview = find_preview(actor, request.POST.get("preview", ""))
    if action != "result":
        typing = action == "sync"
        known = preview if typing else None
        preview, draft = _previewed(actor, target, draft, known=known, typing=typing)
    return _page(request, target, draft, preview)


def _start(request: HttpRequest, actor: Actor, target: Target) -> tuple[Draft, Target]:
    """Return the draft of the page's first view, from the session or the address."""
    stored: Mapping[str, str] = request.session.get(DRAFT_KEY) or {}
    if stored.get("path") == request.path:
        del request.session[DRAFT_KEY]
        request.session.set_expiry(None)  # as for any other sign-in
        if target.environment is None:
            target = replace(target, namespace=stored["namespace"], name=stored["name"])
        return Draft.of(stored["text"]), target
    reference, template = request.GET.get("from", ""), request.GET.get("template", "")
    text = ""
    try:
        if reference:
            text = edit_starts.text_of_reference(actor, reference, host=request.get_host())
        elif template:
            text = edit_starts.text_of_template(template)
        elif target.environment is not None:
            text = edit_starts.text_of_build(actor, target.environment)
        else:
            text = edit_starts.text_of_template("python")
        draft = Draft.of(text)
    except StoreError as error:
        draft = replace(Draft.of(edit_starts.text_of_template("python")), problems=problems(error))
    if added := request.GET.get("add", "").strip():  # link of the packages search
        draft = draft.with_requirement("", added)
    return draft, target


def _started(request: HttpRequest, actor: Actor, draft: Draft) -> Draft:
    """Return the draft of an uploaded file or a reference; the old one with the fault else."""
    try:
        if (file := request.FILES.get("file")) is not None:
            return Draft.of(edit_starts.text_of_upload(file))
        reference = request.POST["from"]
        return Draft.of(edit_starts.text_of_reference(actor, reference, host=request.get_host()))
    except StoreError as error:
        return replace(draft, problems=problems(error))


def _submit(request: HttpRequest, actor: Actor, target: Target, draft: Draft) -> HttpResponse:
    """Submit the build and redirect to its page. The same page and text submit one build."""
    token = request.POST.get("token", "") or uuid4().hex
    key = hashlib.sha256(f"{token}\n{draft.text}".encode(errors="replace")).hexdigest()
    asked: dict[str, Any] = {
        "actor": actor,
        "specification": draft.text,
        "idempotency_key": key,
        "reason": request.POST.get("reason", "").strip(),
    }
    submitted: Submitted
    if target.environment is not None:
        submitted = submit_build(environment=target.environment, **asked)
    else:
        namespace = namespace_to_build_in(actor, target.namespace)
        _require_new(actor, namespace, target.name, key)
        submitted = submit_to(namespace=namespace, name=target.name, **asked)
    build = submitted.build
    place = build.environment
    return SeeOther(reverse("build", args=[place.namespace.name, place.name, build.number]))


def _require_new(actor: Actor, namespace: Namespace, name: str, key: str) -> None:
    """Raises ConflictError if the environment exists, unless this page created it."""
    rows = Environment.objects.visible_to(actor).filter(namespace=namespace, name=name)
    found = rows.first()
    if found is not None and not found.builds.filter(idempotency_key=key).exists():
        raise ConflictError(
            f"The environment {namespace}/{name} already exists.",
            where="name",
            hint="Choose another name, or edit that environment.",
        )


def _previewed(
    actor: Actor, target: Target, draft: Draft, *, known: Preview | None, typing: bool
) -> tuple[Preview | None, Draft]:
    """Request a preview, or reuse `known` if it is of the same specification.

    Args:
        typing: nobody pressed a button.
    """
    if draft.problems:
        return None, draft
    try:
        if typing and _lacks_namespace(actor, target):
            return None, draft  # only a preview that is asked for creates it
        namespace = namespace_to_build_in(actor, target.namespace)
        if known is not None and known.namespace_id == namespace.pk:
            specification = read_submission(namespace, draft.text).specification
            if known.specification.digest == specification.digest:
                return known, draft
        found = preview_for(
            actor=actor,
            namespace=namespace.name,
            environment=target.name or None,
            specification=draft.text,
        )
        return find_preview(actor, str(found.preview.pk)), draft
    except UnexpectedError:
        raise
    except StoreError as error:
        return None, replace(draft, problems=problems(error))


def _lacks_namespace(actor: Actor, target: Target) -> bool:
    """Whether the target is in the actor's personal namespace, which does not exist yet."""
    own = actor.account.username.lower() == target.namespace
    return own and not Namespace.objects.filter(name=target.namespace).exists()


def _page(
    request: HttpRequest, target: Target, draft: Draft, preview: Preview | None = None
) -> HttpResponse:
    actor = actor_of(request)
    panel = panel_of(actor, preview, draft, target.environment)
    partial = is_partial(request)
    based = None
    if target.environment is not None and not partial:
        based = edit_starts.base_of(actor, target.environment)
    context = {
        "section": "environments",
        "target": target,
        "environment": target.environment,
        "draft": draft,
        "rows": _rows(draft, panel),
        "messages_of_lines": _messages(draft, panel),
        "panel": panel,
        "based": based,
        "templates": [(key, name) for key, (name, _) in edit_starts.TEMPLATES.items()],
        "token": request.POST.get("token", "") or uuid4().hex,
        "reason": request.POST.get("reason", ""),
        "version": request.POST.get("draft_version", ""),
        "posted": request.method == "POST",
        "namespaces": _namespaces(actor) if target.environment is None and not partial else (),
    }
    response = render(request, f"environments/{'_edit_sync' if partial else 'edit'}.html", context)
    response["Cache-Control"] = "no-store"
    return response


def _namespaces(actor: Actor) -> list[str]:
    rows = Namespace.objects.with_perm(actor, Perm.BUILD).order_by("name")
    names = list(rows.values_list("name", flat=True)[:SUGGESTED])
    return sorted({*names, actor.account.username.lower()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One requirement of the form with what is said about its line."""

    index: int
    name: str
    version: str
    errors: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


def _rows(draft: Draft, panel: Panel | None) -> list[Row]:
    lines = [line for _, line in lines_in(draft.text)]
    errors: dict[int, list[str]] = {}
    held: dict[int, list[str]] = {}
    for problem in draft.problems:
        errors.setdefault(problem.line, []).append(problem.message)
    if panel is not None:
        for conflict in panel.conflicts:
            for line, text in zip(conflict.lines, conflict.requirements, strict=True):
                others = [other for other in conflict.requirements if other != text]
                said = f"Conflicts with {' and '.join(others)}" if others else conflict.reason
                errors.setdefault(line, []).append(said)
        for found, place in ((panel.denied, errors), (panel.asked, held)):
            for verdict in found:
                for line in verdict["lines"]:
                    place.setdefault(line, []).append(str(verdict["reason"]))
    rows = []
    for index, (name, version) in enumerate(draft.rows):
        line = lines[index] if index < len(lines) else 0
        rows.append(
            Row(
                index=index,
                name=name,
                version=version,
                errors=tuple(dict.fromkeys(errors.get(line, ()) if line else ())),
                held=tuple(dict.fromkeys(held.get(line, ()) if line else ())),
            )
        )
    return rows


def _messages(draft: Draft, panel: Panel | None) -> list[dict[str, Any]]:
    """Return what is said about lines of the text, in their order."""
    found: list[dict[str, Any]] = [_message(problem) for problem in draft.problems]
    found += [
        {
            "lines": conflict.lines,
            "message": conflict.reason,
            "where": "",
            "hint": "Change or remove one of them." if len(conflict.lines) > 1 else "",
            "repairs": conflict.repairs,
        }
        for conflict in (panel.conflicts if panel else ())
    ]
    return sorted(found, key=lambda one: min(one["lines"], default=0))


def _message(problem: Problem) -> dict[str, Any]:
    return {
        "lines": (problem.line,) if problem.line else (),
        "message": problem.message,
        "where": problem.where.rpartition(", line ")[0] if problem.line else problem.where,
        "hint": problem.hint,
        "repairs": (),
    }
