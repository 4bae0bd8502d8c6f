"""Approval requests: queue, own requests, decided ones, and the page on which one is decided."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.db.models import Count, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from accounts.access import Actor
from accounts.roles import Perm
from condastore.errors import InvalidInputError, NotFoundError, StoreError
from environments.console.keyset import Column, read_page
from environments.console.responses import (
    ERROR_PAGES,
    SeeOther,
    act,
    actor_of,
    render_page,
    text_of,
)
from environments.domain.policy.subjects import in_seconds
from environments.models import (
    ApprovalRequest,
    Build,
    CondaRecord,
    Decision,
    DecisionScope,
    Environment,
    LockedConda,
    LockedPypi,
    PypiRecord,
    RequestState,
    WaitingBuild,
)
from environments.models.namespaces import DECIDE_EVERYWHERE, holds_everywhere
from environments.operations import approvals
from environments.services import approval_requests

PAGE_SIZE = 50
#: Requests that one decision covers at most.
MAX_SELECTED = 100
#: Rows of the lists beside a request.
RELATED_ROWS = 20
_ORDER = (Column(field="pk", kind=int),)
_NEWEST_FIRST = (Column(field="pk", kind=int, descending=True),)
TABS = {"waiting": "Waiting", "mine": "My requests", "decided": "Decided"}

SCOPES = {
    DecisionScope.VERSION.value: ("This version", "from this channel; all its files"),
    DecisionScope.BUILD.value: ("This file only", "by its sha256"),
    DecisionScope.SPEC.value: ("All versions that match", "the MatchSpec below"),
}
DURATIONS = {"": "no end", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}


class DecisionForm(forms.Form):
    """Reason, scope and expiry of a decision."""

    reason = forms.CharField(required=False, strip=True)
    scope = forms.ChoiceField(
        choices=[(key, label) for key, (label, _) in SCOPES.items()],
        initial=DecisionScope.VERSION.value,
    )
    spec = forms.CharField(required=False, max_length=500)
    days = forms.ChoiceField(choices=list(DURATIONS.items()), required=False)
    everywhere = forms.BooleanField(required=False)

    def decide(self, actor: Actor, requests: Sequence[ApprovalRequest], *, approve: bool) -> str:
        """Decide on the requests and return what was decided, as a sentence.

        Raises:
            InvalidInputError: a field is not valid.
        """
        if not self.is_valid():
            first = next(iter(self.errors.items()))
            raise InvalidInputError(str(first[1][0]), where=str(first[0]))
        answers = self.cleaned_data
        ends = answers["days"]
        made = approvals.decide(
            actor=actor,
            requests=requests,
            approve=approve,
            reason=answers["reason"],
            scope=DecisionScope(answers["scope"]),
            spec=answers["spec"],
            everywhere=answers["everywhere"],
            expires_at=timezone.now() + timedelta(days=int(ends)) if ends else None,
        )
        names = ", ".join(f"{one.name} {one.version}".strip() for one in requests[:3])
        more = f" and {len(requests) - 3} more" if len(requests) > 3 else ""
        if any(not decision.complete for decision in made):
            return f"You approved {names}{more}; a second approval is needed."
        return f"{'Approved' if approve else 'Rejected'}: {names}{more}."


def _with_facts(rows: QuerySet[ApprovalRequest]) -> QuerySet[ApprovalRequest]:
    """Add what the list shows of each request, by subqueries."""
    waiting = WaitingBuild.objects.filter(request=OuterRef("pk")).order_by()
    count = waiting.values("request").annotate(n=Count("pk")).values("n")
    first = waiting.order_by("pk")
    similar = Decision.objects.filter(
        Q(namespace=None) | Q(namespace=OuterRef("namespace")),
        name=OuterRef("name"),
        revoked_at=None,
        complete=True,
    ).order_by("-pk")
    return (
        rows.select_related("namespace", "conda", "pypi", "decision__decided_by")
        .defer("conda__record")
        .annotate(
            waiting_count=Coalesce(Subquery(count), 0),
            asker=Subquery(first.values("asked_by__username")[:1]),
            note=Subquery(first.values("note")[:1]),
            similar=Subquery(similar.values("spec")[:1]),
            similar_approved=Subquery(similar.values("approved")[:1]),
        )
    )


def _rows(actor: Actor, tab: str) -> QuerySet[ApprovalRequest]:
    if tab == "mine":
        own = WaitingBuild.objects.filter(asked_by=actor.account).order_by().values("request")
        return ApprovalRequest.objects.visible_to(actor).filter(pk__in=own)
    if tab == "decided":
        decided = (RequestState.APPROVED, RequestState.REJECTED)
        return ApprovalRequest.objects.visible_to(actor).filter(state__in=decided)
    return ApprovalRequest.objects.with_perm(actor, Perm.APPROVE).undecided()


@login_required
@require_safe
def queue(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    tab = request.GET.get("tab", "")
    tab = tab if tab in TABS else "waiting"
    search = request.GET.get("q", "").replace("\0", "").strip()[:200]
    namespace = request.GET.get("namespace", "").replace("\0", "").strip()[:64]
    rows = _rows(actor, tab)
    if search:
        rows = rows.filter(
            Q(name__istartswith=search) | Q(rule__icontains=search) | Q(pk__in=_asked_by(search))
        )
    if namespace:
        rows = rows.filter(namespace__name=namespace)
    page = read_page(
        _with_facts(rows),
        _ORDER if tab == "waiting" else _NEWEST_FIRST,
        size=PAGE_SIZE,
        after=request.GET.get("after", ""),
        before=request.GET.get("before", ""),
    )
    context = {
        "section": "approvals",
        "tab": tab,
        "tabs": TABS,
        "rows": page.rows,
        "previous": page.previous,
        "next": page.next,
        "search": search,
        "namespace": namespace,
        "waiting": _rows(actor, "waiting").count(),
    }
    return render_page(request, "approvals/queue.html", context, partial="approvals/_requests.html")


def _asked_by(name: str) -> QuerySet[WaitingBuild, Any]:
    rows = WaitingBuild.objects.filter(asked_by__username__istartswith=name)
    return rows.order_by().values("request")


def _selected(actor: Actor, keys: Sequence[str]) -> list[ApprovalRequest]:
    """Return the selected requests that the actor may decide.

    Raises:
        NotFoundError: one of them is not among those that wait for the actor.
    """
    wanted = {int(key) for key in keys if key.isascii() and key.isdigit() and len(key) < 19}
    if not wanted:
        raise InvalidInputError("Select at least one request.", where="requests")
    if len(wanted) > MAX_SELECTED:
        raise InvalidInputError(
            f"One decision covers at most {MAX_SELECTED} requests.", where="requests"
        )
    rows = ApprovalRequest.objects.with_perm(actor, Perm.APPROVE)
    found = list(rows.filter(pk__in=wanted).select_related("namespace", "conda", "pypi"))
    if len(found) != len(wanted):
        raise NotFoundError("One of these requests does not exist.")
    return found


@login_required
@require_safe
def effect(request: HttpRequest) -> HttpResponse:
    """Return the bar below the queue: what a decision on the selected requests causes."""
    try:
        selected = _selected(actor_of(request), request.GET.getlist("request"))
    except InvalidInputError:
        selected = []
    context = {
        "selected": selected,
        "continues": approvals.builds_that_continue(selected) if selected else 0,
    }
    return render(request, "approvals/_decide_bar.html", context)


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def decide(request: HttpRequest) -> HttpResponse:
    """Show what a decision on several requests causes, and decide."""
    actor = actor_of(request)
    given = request.POST if request.method == "POST" else request.GET
    try:
        selected = _selected(actor, given.getlist("request"))
    except InvalidInputError as error:
        messages.error(request, text_of(error))
        return SeeOther(reverse("approvals"))
    form = DecisionForm(request.POST if request.method == "POST" else None)
    verdict = given.get("decision", "approve")
    wrong = ""
    if request.method == "POST":
        try:
            done = form.decide(actor, selected, approve=verdict == "approve")
        except ERROR_PAGES:
            raise
        except StoreError as error:
            wrong = text_of(error)
        else:
            messages.success(request, done)
            return SeeOther(_following(actor, request))
    context = {
        "section": "approvals",
        "selected": selected,
        "continues": approvals.builds_that_continue(selected),
        "rejecting": verdict == "reject",
        **_form_context(actor, form, wrong),
    }
    return render(request, "approvals/decide.html", context, status=400 if wrong else None)


def _form_context(actor: Actor, form: DecisionForm, wrong: str) -> dict[str, Any]:
    return {
        "form": form,
        "wrong": wrong,
        "scopes": SCOPES,
        "durations": DURATIONS,
        "everywhere": holds_everywhere(actor, DECIDE_EVERYWHERE, Perm.APPROVE),
    }


def _following(actor: Actor, request: HttpRequest) -> str:
    """Return the page after a decision: the next request, if the last was opened on its page."""
    if request.POST.get("one"):
        following = _rows(actor, "waiting").order_by("pk").values_list("pk", flat=True).first()
        if following is not None:
            return reverse("approval", args=[following])
    return reverse("approvals")


@login_required
@require_safe
def approval(request: HttpRequest, key: int) -> HttpResponse:
    actor = actor_of(request)
    found = approvals.find_request(actor, key)
    waiting = found.waiting.select_related("build__environment__namespace", "asked_by").defer(
        "build__source", "build__log_archive", "build__verdicts"
    )
    shown = set(
        Build.objects.visible_to(actor)
        .filter(pk__in=found.waiting.order_by().values("build"))
        .values_list("pk", flat=True)
    )
    decisions = (
        Decision.objects.visible_to(actor)
        .filter(name=found.name, manager=found.manager, complete=True)
        .select_related("namespace", "decided_by")
    )
    undecided = found.state in (RequestState.OPEN, RequestState.SECOND)
    may_decide = undecided and approvals.may_decide(actor, found)
    own = [one for one in waiting if one.asked_by_id == actor.account.pk]
    neighbours = _rows(actor, "waiting").order_by("pk").values_list("pk", flat=True)
    context = {
        "section": "approvals",
        "approval": found,
        "package": found.package,
        "released": _released(found),
        "scripts": _scripts(found),
        "used_in": _used_in(actor, found),
        "waiting": [
            {"row": one, "visible": one.build_id in shown} for one in waiting[:RELATED_ROWS]
        ],
        "decisions": decisions.order_by("-pk")[:RELATED_ROWS],
        "people": approval_requests.decider_names([found.namespace_id])[found.namespace_id],
        "undecided": undecided,
        "may_decide": may_decide,
        "second": found.state == RequestState.SECOND,
        "continues": approvals.builds_that_continue([found]) if undecided else 0,
        "own_note": own[0].note if own else None,
        "previous": neighbours.filter(pk__lt=found.pk).last() if may_decide else None,
        "next": neighbours.filter(pk__gt=found.pk).first() if may_decide else None,
        **_form_context(actor, DecisionForm(), ""),
    }
    return render(request, "approvals/approval.html", context)


@login_required
@require_http_methods(["POST"])
def second(request: HttpRequest, key: int) -> HttpResponse:
    """Agree to a decision as the second person."""
    actor = actor_of(request)
    found = approvals.find_request(actor, key)
    here = reverse("approval", args=[found.pk])

    def agree() -> None:
        if found.decision is None:
            raise InvalidInputError("This request does not wait for a second person.")
        approvals.give_second_approval(actor=actor, decision=found.decision)

    return act(request, agree, done="Approved by two people.", then=here)


@login_required
@require_http_methods(["POST"])
def explain(request: HttpRequest, key: int) -> HttpResponse:
    """Explain to the approvers what the package is for."""
    actor = actor_of(request)
    found = approvals.find_request(actor, key)
    return act(
        request,
        lambda: approvals.explain_request(
            actor=actor, request=found, note=request.POST.get("note", "")
        ),
        done="The approvers see your explanation.",
        then=reverse("approval", args=[found.pk]),
    )


def _released(found: ApprovalRequest) -> datetime | None:
    package = found.package
    if isinstance(package, CondaRecord):
        return package.published_at
    if isinstance(package, PypiRecord) and package.uploaded:
        return datetime.fromtimestamp(in_seconds(package.uploaded), tz=UTC)
    return None


def _scripts(found: ApprovalRequest) -> str:
    package = found.package
    if not isinstance(package, CondaRecord):
        return "none: it is not a conda package"
    if package.link_scripts is None:
        return "unknown: the package was not unpacked yet"
    return ", ".join(package.link_scripts) or "none"


def _used_in(actor: Actor, found: ApprovalRequest) -> int:
    """Count the visible environments whose current build holds any version of the package."""
    rows: Any = LockedConda if found.manager == "conda" else LockedPypi
    locks = rows.objects.filter(package__name=found.name).order_by().values("lock")
    return Environment.objects.visible_to(actor).filter(current__lock__in=locks).count()
