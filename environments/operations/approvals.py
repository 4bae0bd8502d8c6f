"""Operations on approvals: decide, give a second approval, revoke, explain a request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from accounts.access import Actor, may, require
from accounts.models import User
from accounts.roles import Perm
from condastore.errors import (
    AccessDeniedError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    TransitionError,
)
from environments.domain.lifecycle import BuildState
from environments.domain.policy import package_spec
from environments.models import (
    ApprovalRequest,
    AuditEvent,
    Build,
    CondaRecord,
    Decision,
    DecisionScope,
    Namespace,
    Notification,
    RequestAsker,
    RequestState,
    WaitingBuild,
    audited,
)
from environments.models.approvals import (
    LONGEST_REASON,
    UNDECIDED,
    accounts_of,
    in_turn,
    person_of,
)
from environments.models.namespaces import DECIDE_EVERYWHERE, holds_everywhere
from environments.operations import queueing
from environments.services import approval_requests


@audited()
def decide(
    *,
    actor: Actor,
    requests: Sequence[ApprovalRequest],
    approve: bool,
    reason: str,
    scope: DecisionScope = DecisionScope.VERSION,
    spec: str = "",
    everywhere: bool = False,
    expires_at: datetime | None = None,
) -> list[Decision]:
    """Approve or reject `requests`, and every other undecided request that the decision covers.

    Builds without undecided requests are queued again; a rejection fails the builds that wait.
    Requests decided by others meanwhile are skipped if at least one is left.

    Args:
        scope: this file, this version from this channel, or all packages that `spec` matches.
        everywhere: in all namespaces; otherwise in the namespace of each request.
        expires_at: builds started later need a new decision.

    Raises:
        TransitionError: all of them were decided by others first.
    """
    if not requests:
        raise InvalidInputError("Select at least one request to decide on.", where="requests")
    for namespace in {request.namespace for request in requests}:
        require(actor, Perm.APPROVE, namespace)
    if everywhere:
        _require_everywhere(actor)
    reason = _reason(reason)
    _check_expiry(expires_at)
    in_turn()
    waiting = _still_open(requests)
    _refuse_own(actor, waiting)
    if approve:
        _refuse_half_approved(waiting)
    created: dict[tuple[object, ...], Decision] = {}
    for request in waiting:
        decision = _decision(request, scope, spec, everywhere)
        created.setdefault(_decision_key(decision), decision)
    for decision in created.values():
        decision.approved, decision.reason, decision.expires_at = approve, reason, expires_at
        decision.decided_by = actor.account
        decision.complete = not (approve and _needs_two(decision, waiting))
        decision.save()
    _check_all_covered(created.values(), waiting, spec)
    resumed: list[Build] = []
    for decision in created.values():
        reached = approval_requests.in_reach(decision)
        _refuse_own(actor, reached)
        if approve:
            _refuse_own_closed(actor, decision)
        else:
            _revoke_half_approvals(reached)
        if decision.complete:
            resumed += approval_requests.apply(decision, reached)
        else:
            fresh = [request.pk for request in reached if request.state == RequestState.OPEN]
            ApprovalRequest.objects.filter(pk__in=fresh).update(
                state=RequestState.SECOND, decision=decision
            )
    _send(resumed)
    for decision in created.values():
        _audit(actor, "approval.approve" if approve else "approval.reject", decision)
    return list(created.values())


@audited()
def give_second_approval(*, actor: Actor, decision: Decision) -> Decision:
    """Give the second approval, as another person than the first approver."""
    _require_decider(actor, decision)
    in_turn()
    decision.refresh_from_db()
    if decision.complete or decision.revoked_at is not None:
        raise TransitionError("This approval no longer waits for a second person.")
    first = decision.decided_by
    if first is not None and person_of(first) == person_of(actor.account):
        raise AccessDeniedError(
            "You gave the first approval; the second must come from somebody else.",
            hint="Ask another approver of the namespace.",
        )
    _check_expiry(decision.expires_at)
    reached = approval_requests.in_reach(decision)
    _refuse_own(actor, reached)
    _refuse_own_closed(actor, decision)
    _refuse_own_of_first(decision, reached)
    decision.complete, decision.seconded_by = True, actor.account
    decision.seconded_at = timezone.now()
    decision.save(update_fields=["complete", "seconded_by", "seconded_at"])
    _send(approval_requests.apply(decision, reached))
    _audit(actor, "approval.second", decision)
    return decision


@audited()
def revoke_decision(*, actor: Actor, decision: Decision, reason: str) -> Decision:
    """Revoke a decision: builds started from now on need another one; running builds continue."""
    _require_decider(actor, decision)
    reason = _reason(reason)
    in_turn()
    changed = Decision.objects.filter(pk=decision.pk, revoked_at=None).update(
        revoked_at=timezone.now(), revoked_by=actor.account
    )
    decision.refresh_from_db()
    if not changed:
        raise TransitionError("The decision was already revoked.")
    _reopen(decision)
    _audit(actor, "approval.revoke", decision, why=reason)
    return decision


@audited()
def explain_request(*, actor: Actor, request: ApprovalRequest, note: str) -> ApprovalRequest:
    """Explain to the approvers what a package is for; only for those whose builds wait for it."""
    require(actor, Perm.VIEW, request.namespace)
    own = WaitingBuild.objects.filter(request=request, asked_by=actor.account)
    if len(note) > LONGEST_REASON or "\0" in note:
        raise InvalidInputError(f"A note has at most {LONGEST_REASON} characters.", where="note")
    if not own.exists():
        raise AccessDeniedError(
            "No build of yours waits for this package.",
            hint="Only people whose builds wait for a package can explain what it is for.",
        )
    own.update(note=note.strip())
    AuditEvent.record(actor, "approval.explain", request)
    return request


@audited()
def require_two_people(*, actor: Actor, namespace: Namespace, two: bool) -> Namespace:
    """Set whether an approval in this namespace needs two people.

    Approvals that already wait for a second person keep waiting.
    """
    require(actor, Perm.MANAGE, namespace)
    before = namespace.two_person_approval
    Namespace.objects.filter(pk=namespace.pk).update(two_person_approval=two)
    namespace.two_person_approval = two
    AuditEvent.record(
        actor, "namespace.two-person-approval", namespace, {"before": before, "after": two}
    )
    return namespace


def reconsider(namespace: Namespace | None) -> None:
    """Evaluate the policy again for all held builds (of `namespace`), after a rule has changed.

    Call it in the transaction of the change, before its audit event.
    """
    held = Build.objects.filter(state=BuildState.HELD)
    if namespace is not None:
        held = held.filter(environment__namespace=namespace)
    if not held.exists():
        return
    in_turn()
    builds = list(held.select_related("environment__namespace").order_by("pk"))
    for build in builds:
        approval_requests.requeue(build, "the policy has changed")
    _send(builds)


# --- permission checks ----------------------------------------------------------------------------


def _require_everywhere(actor: Actor) -> None:
    if not holds_everywhere(actor, DECIDE_EVERYWHERE, Perm.APPROVE):
        raise AccessDeniedError(
            "You may not decide for all namespaces.",
            hint="Decide for the namespace, or ask an administrator of the installation.",
        )


def _require_decider(actor: Actor, decision: Decision) -> None:
    if decision.namespace is None:
        _require_everywhere(actor)
    else:
        require(actor, Perm.APPROVE, decision.namespace)


def _refuse_own(actor: Actor, requests: Iterable[ApprovalRequest]) -> None:
    """Refuse to decide on what the person, or a service account of theirs, ever asked for.

    This also holds after their own build was cancelled or deleted.
    """
    if names := _asked_by(actor.account, requests):
        raise AccessDeniedError(
            f"You asked for this yourself: {', '.join(names)}.",
            hint="Ask another approver to decide.",
            details={"own": names},
        )


def _refuse_own_closed(actor: Actor, decision: Decision) -> None:
    """Refuse an approval that covers closed requests which the person asked for.

    Requests that another person's approval already allows for at least as long are not refused.
    """
    if settings.SELF_APPROVAL:
        return
    requested = RequestAsker.objects.of_person(actor.account).values("request")
    closed = ApprovalRequest.objects.filter(pk__in=requested).exclude(state__in=UNDECIDED)
    covered = approval_requests.covered_among(closed, decision)
    if names := sorted({str(one) for one in covered if not _is_granted(actor, one, decision)}):
        raise AccessDeniedError(
            f"This would also approve what you asked for yourself: {', '.join(names)}.",
            hint="Ask another approver to decide, or use a narrower scope.",
            details={"own": names},
        )


def _is_granted(actor: Actor, request: ApprovalRequest, new: Decision) -> bool:
    """Return whether another person's approval is in force for at least as long as `new`."""
    mine = accounts_of(actor.account)
    rows = Decision.objects.in_force(timezone.now()).for_namespace(request.namespace)
    rows = rows.filter(approved=True).exclude(pk=new.pk).exclude(decided_by__in=mine)
    if new.expires_at is None:
        rows = rows.filter(expires_at=None)
    else:
        rows = rows.filter(Q(expires_at=None) | Q(expires_at__gte=new.expires_at))
    return any(approval_requests.covered(one, request) for one in rows)


def _refuse_own_of_first(decision: Decision, requests: Iterable[ApprovalRequest]) -> None:
    """Refuse to complete an approval whose first approver has asked for the package since."""
    first = decision.decided_by
    if first is not None and (names := _asked_by(first, requests)):
        raise AccessDeniedError(
            f"{first.get_username()}, who approved first, also asked for: {', '.join(names)}.",
            hint="Reject it, or revoke that approval and start again with another approver.",
            details={"own": names},
        )


def _asked_by(account: User, requests: Iterable[ApprovalRequest]) -> list[str]:
    """Return the names of those `requests` that the person behind `account` asked for."""
    if settings.SELF_APPROVAL:
        return []
    by_key = {request.pk: request for request in requests}
    rows = RequestAsker.objects.of_person(account).filter(request__in=list(by_key))
    return sorted({str(by_key[key]) for key in rows.values_list("request", flat=True)})


def _needs_two(decision: Decision, requests: Sequence[ApprovalRequest]) -> bool:
    if settings.TWO_PERSON_APPROVAL:
        return True
    if decision.namespace is not None:
        return decision.namespace.two_person_approval
    return Namespace.objects.filter(two_person_approval=True).exists()


def _reason(text: str) -> str:
    text = text.strip()
    if not text or len(text) > LONGEST_REASON or "\0" in text:
        raise InvalidInputError(
            f"A reason of at most {LONGEST_REASON} characters is required.",
            where="reason",
            hint="It is shown to those who wait and in the audit log.",
        )
    return text


def _check_expiry(moment: datetime | None) -> None:
    if moment is None:
        return
    if timezone.is_naive(moment) or moment <= timezone.now():
        raise InvalidInputError(
            "The expiry must be in the future.",
            where="expires_at",
            hint="Give a future date and time with a time zone.",
        )


def _still_open(requests: Sequence[ApprovalRequest]) -> list[ApprovalRequest]:
    keys = [request.pk for request in requests]
    rows = ApprovalRequest.objects.filter(pk__in=keys).order_by("pk")
    found = list(rows.select_related("namespace", "conda", "pypi", "decision__decided_by"))
    if open_ := [request for request in found if request.state in UNDECIDED]:
        return open_
    by = found[0].decision.decided_by if found and found[0].decision else None
    state = found[0].state if found else "gone"
    whom = f" by {by.get_username()}" if by else ""
    raise TransitionError(
        f"Nothing is left to decide: {found[0] if found else 'the request'} is {state}{whom}."
    )


# --- building decisions ---------------------------------------------------------------------------


def _decision(
    request: ApprovalRequest, scope: DecisionScope, spec: str, everywhere: bool
) -> Decision:
    if bool(spec) != (scope == DecisionScope.SPEC):
        raise InvalidInputError(
            "Give `spec` with the scope `spec`, and with no other.",
            where="spec",
        )
    manager = approval_requests.manager_of(request)
    decision = Decision(
        scope=scope,
        manager=manager,
        name=request.name,
        namespace=None if everywhere else request.namespace,
    )
    package = request.package
    if manager == approval_requests.RULE or package is None:
        if scope == DecisionScope.SPEC:
            raise InvalidInputError(
                f"{request} is about a whole lock; a MatchSpec cannot cover it.", where="spec"
            )
    elif scope == DecisionScope.SPEC:
        decision.spec, decision.name = _parsed(spec, manager)
    else:
        decision.channel = package.channel if isinstance(package, CondaRecord) else ""
        if scope == DecisionScope.BUILD:
            decision.sha256 = package.sha256
        else:
            decision.spec = f"{request.name} =={request.version}"
    return decision


def _parsed(spec: str, manager: str) -> tuple[str, str]:
    """Return the MatchSpec without its manager prefix, and the package name or glob."""
    prefix = f"{manager}:"
    own = spec.strip()
    own = own[len(prefix) :].strip() if own.startswith(prefix) and "::" not in own else own
    read = package_spec(f"{prefix}{own}", wide=False)
    if len(own) > 500:
        raise InvalidInputError("A MatchSpec has at most 500 characters.", where="spec")
    # PEP 503: `my_package` and `my.package` are one name, normalized with dashes.
    name = re.sub(r"[-_.]+", "-", read.name) if manager == "pypi" else read.name
    return own, name


def _decision_key(decision: Decision) -> tuple[object, ...]:
    return (
        decision.namespace_id,
        decision.manager,
        decision.name,
        decision.spec,
        decision.channel,
        decision.sha256,
    )


def _check_all_covered(
    decisions: Iterable[Decision], requests: Sequence[ApprovalRequest], spec: str
) -> None:
    created = list(decisions)
    left = [
        str(request)
        for request in requests
        if not any(approval_requests.covered(decision, request) for decision in created)
    ]
    if left:
        raise InvalidInputError(
            f"{spec} does not match {', '.join(left)}.",
            where="spec",
            hint="Give a MatchSpec that covers every selected request.",
        )


def _refuse_half_approved(requests: Iterable[ApprovalRequest]) -> None:
    halves = [request for request in requests if request.state == RequestState.SECOND]
    if halves:
        raise ConflictError(
            f"{', '.join(map(str, halves))}: already approved by one person.",
            hint="Give the second approval, or reject the request.",
            details={"decisions": sorted({request.decision_id or 0 for request in halves})},
        )


def _revoke_half_approvals(requests: Iterable[ApprovalRequest]) -> None:
    """Revoke approvals that wait for a second person, after a rejection."""
    halves = {
        request.decision_id or 0 for request in requests if request.state == RequestState.SECOND
    }
    for half in Decision.objects.filter(pk__in=halves, complete=False, revoked_at=None):
        Decision.objects.filter(pk=half.pk).update(revoked_at=timezone.now())
        _reopen(half)


def _reopen(decision: Decision) -> None:
    ApprovalRequest.objects.filter(decision=decision, state=RequestState.SECOND).update(
        state=RequestState.OPEN, decision=None
    )


def _send(builds: Iterable[Build]) -> None:
    for build in {build.pk: build for build in builds}.values():
        queueing.queue(build)
    queueing.queue_due(Notification)


def _audit(actor: Actor, action: str, decision: Decision, *, why: str = "") -> None:
    AuditEvent.record(
        actor,
        action,
        decision.namespace or "all namespaces",
        {
            "decision": decision.pk,
            "manager": decision.manager,
            "package": decision.spec or decision.name,
            "sha256": decision.sha256,
            "channel": decision.channel,
            "reason": why or decision.reason,
            "expires_at": decision.expires_at.isoformat() if decision.expires_at else None,
            "complete": decision.complete,
            "requests": list(decision.requests.order_by("pk").values_list("pk", flat=True)[:100]),
        },
    )


def find_request(actor: Actor, key: object) -> ApprovalRequest:
    """Raises NotFoundError, also for requests the actor may not see."""
    rows = ApprovalRequest.objects.visible_to(actor).select_related("namespace", "conda", "pypi")
    text = str(key)
    found = rows.filter(pk=int(text)).first() if text.isdecimal() and len(text) < 18 else None
    if found is None:
        raise NotFoundError("There is no such request.", where="id")
    return found


def find_decision(actor: Actor, key: object) -> Decision:
    """Raises NotFoundError, also for decisions the actor may not see."""
    rows = Decision.objects.visible_to(actor).select_related("namespace", "decided_by")
    text = str(key)
    found = rows.filter(pk=int(text)).first() if text.isdecimal() and len(text) < 18 else None
    if found is None:
        raise NotFoundError("There is no such decision.", where="id")
    return found


def may_decide(actor: Actor, request: ApprovalRequest) -> bool:
    """Return whether interfaces offer the decision: checks the permission, not who asked."""
    return may(actor, Perm.APPROVE, request.namespace)


def builds_that_continue(requests: Sequence[ApprovalRequest]) -> int:
    """Count the held builds that wait for nothing else than these undecided requests."""
    keys = [request.pk for request in requests]
    others = WaitingBuild.objects.filter(request__state__in=UNDECIDED).exclude(request__in=keys)
    held = Build.objects.filter(state=BuildState.HELD, deleted_at=None, waiting__request__in=keys)
    return held.exclude(pk__in=others.order_by().values("build")).distinct().count()
