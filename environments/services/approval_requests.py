"""Approval requests of held builds: open them, apply decisions, requeue or fail the builds.

Every function that writes must run in a transaction and after `in_turn`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils import timezone

from accounts.models import User
from accounts.roles import Perm, roles_with
from condastore.errors import RejectedError
from condastore.mail_texts import compose
from environments.domain.lifecycle import BuildState
from environments.domain.policy import Effect, LockedPackage, PackageKey, Verdict, package_spec
from environments.domain.urls import canonical_or_same
from environments.models import (
    ApprovalRequest,
    Build,
    CondaRecord,
    Decision,
    MappedRole,
    NamespaceGroupObjectPermission,
    NamespaceUserObjectPermission,
    Notification,
    PendingGrant,
    PypiRecord,
    RequestAsker,
    RequestState,
    WaitingBuild,
)
from environments.models.approvals import UNDECIDED, in_turn
from environments.models.leased_work import Lease
from environments.models.namespaces import DECIDE_EVERYWHERE
from environments.models.notifications import Event

#: Value of `manager` for a request about a whole lock instead of one package.
RULE = "rule"
_GLOB = frozenset("*?[")


def subject_of(package: PackageKey) -> str:
    """Return the key under which equal requests are merged."""
    if package.manager == RULE:
        return f"{RULE}:{package.name}"[:300]
    what = package.sha256 or f"{package.channel}/{package.name}-{package.version}-{package.build}"
    return f"{package.manager}:{what}"[:300]


@transaction.atomic
def hold(
    build: Build,
    verdicts: Sequence[Verdict],
    *,
    lease: Lease,
) -> bool:
    """Hold a build and open one request for each package that a rule asks about.

    Decisions made since the policy was evaluated are applied at once.

    Returns:
        False if nothing is left to decide; the build is then queued again.
    """
    in_turn()
    build.move(BuildState.HELD, lease=lease, message=waiting_for(verdicts))
    return open_requests(build, verdicts)


def waiting_for(verdicts: Sequence[Verdict]) -> str:
    """Return the message of the build's state change: what it waits for."""
    what = [str(found[0].package) for found in _asked(verdicts).values()]
    return f"waits for approval of {_abbreviated(what)}"


def _asked(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    requested: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.effect is Effect.ASK and verdict.package is not None:
            requested.setdefault(subject_of(verdict.package), []).append(verdict)
    return requested


def open_requests(build: Build, verdicts: Sequence[Verdict]) -> bool:
    """Open the requests of a HELD build. Call it after `in_turn`; returns as `hold`."""
    requested = _asked(verdicts)
    namespace = build.environment.namespace
    known = {
        request.subject: request
        for request in ApprovalRequest.objects.undecided().filter(
            namespace=namespace, subject__in=list(requested)
        )
    }
    new = _opened(build, {key: requested[key] for key in requested if key not in known})
    ApprovalRequest.objects.bulk_create(new)
    requests = [*known.values(), *new]
    WaitingBuild.objects.bulk_create(
        [
            WaitingBuild(
                request=request,
                build=build,
                asked_by=build.resumed_by or build.requested_by,
                note=build.reason,
            )
            for request in requests
        ],
        ignore_conflicts=True,
    )
    _record_askers(build, requests)
    decisions = Decision.objects.in_force(timezone.now()).for_namespace(namespace)
    globs = Q(name__contains="*") | Q(name__contains="?") | Q(name__contains="[")
    for decision in decisions.filter(globs | Q(name__in={one.name for one in requests})):
        apply(decision, [one for one in requests if one.state in UNDECIDED])
    left = [request for request in new if request.state in UNDECIDED]
    if left:
        _notify_opened(build, left)
    build.refresh_from_db(fields=["state"])
    return build.state == BuildState.HELD


def _opened(build: Build, asked: Mapping[str, Sequence[Verdict]]) -> list[ApprovalRequest]:
    namespace = build.environment.namespace
    keys = {subject: found[0].package for subject, found in asked.items()}
    # Only records of the build's own lock: other locks may describe the same file differently.
    own = {"sha256__in": [key.sha256 for key in keys.values() if key and key.sha256],
           "locked__lock__builds": build.pk}  # fmt: skip
    conda = {row.sha256: row for row in CondaRecord.objects.filter(**own)}
    pypi = {row.sha256: row for row in PypiRecord.objects.filter(**own)}
    opened = []
    for subject, found in asked.items():
        key = keys[subject]
        assert key is not None, "a verdict with the effect ASK names its package or rule"
        opened.append(
            ApprovalRequest(
                namespace=namespace,
                subject=subject,
                conda=conda.get(key.sha256) if key.manager == "conda" else None,
                pypi=pypi.get(key.sha256) if key.manager == "pypi" else None,
                name=key.name,
                version=key.version,
                rule=found[0].rule,
                reason=" ".join(dict.fromkeys(verdict.reason for verdict in found)),
                chain=list(found[0].chain),
            )
        )
    return opened


def _record_askers(build: Build, requests: Iterable[ApprovalRequest]) -> None:
    """Record the person who submitted the build, and who restored or copied it."""
    people = {one.pk: one for one in (build.requested_by, build.resumed_by) if one is not None}
    RequestAsker.objects.bulk_create(
        [
            RequestAsker(request=request, user=person, owner_id=person.owner_id)
            for request in requests
            for person in people.values()
        ],
        ignore_conflicts=True,
    )


def withdraw(build: Build) -> None:
    """Close the undecided requests of a build that no longer waits, unless others wait for them."""
    undecided = WaitingBuild.objects.filter(build=build, request__state__in=UNDECIDED)
    if not undecided.exists():
        return
    in_turn()
    others = WaitingBuild.objects.filter(request=OuterRef("pk"), build__state=BuildState.HELD)
    ApprovalRequest.objects.undecided().filter(
        ~Exists(others.exclude(build=build)), waiting__build=build
    ).update(state=RequestState.WITHDRAWN, decided_at=timezone.now())


# --- decisions ----------------------------------------------------------------------------------


def covered(decision: Decision, request: ApprovalRequest) -> bool:
    """Return whether the decision answers the request. Namespace and expiry are not compared."""
    if decision.manager != manager_of(request):
        return False
    if decision.manager == RULE:
        return decision.name == request.name
    package = request.package
    if package is None:
        return False
    channel = package.channel if isinstance(package, CondaRecord) else ""
    if decision.channel and canonical_or_same(decision.channel) != canonical_or_same(channel):
        return False
    if decision.sha256:
        return decision.sha256 == package.sha256
    spec = package_spec(f"{decision.manager}:{decision.spec}", wide=not decision.approved)
    return spec.concerns(decision.manager, request.name) and spec.takes(
        LockedPackage(package.value())
    )


def manager_of(request: ApprovalRequest) -> str:
    return request.subject.partition(":")[0]


def in_reach(decision: Decision) -> list[ApprovalRequest]:
    """Return the undecided requests that the decision answers: filtered in SQL, then compared."""
    return covered_among(ApprovalRequest.objects.undecided(), decision)


def covered_among(rows: QuerySet[ApprovalRequest], decision: Decision) -> list[ApprovalRequest]:
    """Return those of `rows` that the decision answers, in any state."""
    rows = rows.select_related("conda", "pypi", "namespace")
    if decision.namespace_id is not None:
        rows = rows.filter(namespace=decision.namespace_id)
    if decision.sha256:
        rows = rows.filter(subject=f"{decision.manager}:{decision.sha256}")
    elif decision.name and not _GLOB & set(decision.name):
        rows = rows.filter(name=decision.name)
    elif decision.spec:
        spec = package_spec(f"{decision.manager}:{decision.spec}", wide=not decision.approved)
        names = set(rows.order_by().values_list("name", flat=True).distinct())
        rows = rows.filter(name__in=[n for n in names if spec.concerns(decision.manager, n)])
    return [request for request in rows.order_by("pk") if covered(decision, request)]


def apply(decision: Decision, requests: Iterable[ApprovalRequest]) -> list[Build]:
    """Answer those of `requests` that a decision in force covers.

    Returns:
        The builds that are queued again.
    """
    answered = [request for request in requests if covered(decision, request)]
    if not answered:
        return []
    now = timezone.now()
    state = RequestState.APPROVED if decision.approved else RequestState.REJECTED
    keys = [request.pk for request in answered]
    ApprovalRequest.objects.filter(pk__in=keys).update(
        state=state, decision=decision, decided_at=now
    )
    for request in answered:
        request.state, request.decision, request.decided_at = state, decision, now
    held = Build.objects.filter(state=BuildState.HELD, waiting__request__in=keys)
    held = held.select_related("environment__namespace", "requested_by").distinct()
    _notify_decided(decision, answered, list(held))
    return _resume(held) if decision.approved else _refuse(held, decision, answered)


def _resume(held: Any) -> list[Build]:
    undecided = WaitingBuild.objects.filter(build=OuterRef("pk"), request__state__in=UNDECIDED)
    resumed = list(held.filter(~Exists(undecided)).order_by("pk"))
    for build in resumed:
        requeue(build, "everything it waited for is approved")
    return resumed


def requeue(build: Build, message: str) -> None:
    """Queue a held build again: its lock is kept, the policy is evaluated anew."""
    build.move(
        BuildState.QUEUED,
        message=message,
        attempt=0,
        not_before=timezone.now(),
        message_sent_at=None,
    )


def _refuse(held: Any, decision: Decision, rejected: Sequence[ApprovalRequest]) -> list[Build]:
    by = decision.decided_by.get_username() if decision.decided_by else "somebody"
    for build in list(held.order_by("pk")):
        mine = WaitingBuild.objects.filter(build=build, request__in=rejected)
        names = [str(one.request) for one in mine.select_related("request__namespace")]
        build.fail(
            RejectedError(
                f"{by} rejected {_abbreviated(names)}: {decision.reason}",
                details={"decision": decision.pk, "packages": names},
            )
        )
        withdraw(build)
    return []


# --- notifications ------------------------------------------------------------------------------


def deciders(namespaces: Iterable[int]) -> dict[int, list[User]]:
    """Return who may decide by a role, for each namespace, sorted by name. Uses five queries."""
    requested = set(namespaces)
    held = {
        "content_object__in": requested,
        "permission__codename__in": [role.codename for role in roles_with(Perm.APPROVE)],
    }
    own = NamespaceUserObjectPermission.objects.filter(**held)
    grouped = NamespaceGroupObjectPermission.objects.filter(**held).exclude(group__user=None)
    roles = [role.value for role in roles_with(Perm.APPROVE)]
    mapped = MappedRole.objects.filter(namespace__in=requested, role__in=roles)
    members = mapped.filter(user=None, group__user__isnull=False)
    personal = mapped.filter(group__user=F("user"))
    pairs = {
        *own.values_list("content_object", "user"),
        *grouped.values_list("content_object", "group__user"),
        *members.values_list("namespace", "group__user"),
        *personal.values_list("namespace", "user"),
    }
    users = User.objects.filter(is_active=True).in_bulk({user for _, user in pairs})
    found: dict[int, list[User]] = {namespace: [] for namespace in requested}
    for namespace, user in pairs:
        if user in users:
            found[namespace].append(users[user])
    return {key: sorted(people, key=lambda one: one.username) for key, people in found.items()}


def decider_names(namespaces: Iterable[int]) -> dict[int, list[str]]:
    """Return who may decide, for each namespace, as shown to readers of a request.

    A role granted by name shows only that name: the grantor must not learn here whether the account
    exists or who is in a group. Members by role mappings are shown. Uses five queries.
    """
    requested = set(namespaces)
    roles = roles_with(Perm.APPROVE)
    codenames = {"permission__codename__in": [role.codename for role in roles]}
    users = NamespaceUserObjectPermission.objects.filter(content_object__in=requested, **codenames)
    groups = NamespaceGroupObjectPermission.objects.filter(
        content_object__in=requested, **codenames
    )
    pending = PendingGrant.objects.filter(namespace__in=requested, role__in=[*roles])
    mapped = MappedRole.objects.filter(namespace__in=requested, role__in=[*roles])
    members = mapped.filter(Q(user=None) | Q(group__user=F("user")), group__user__is_active=True)
    pairs = {
        *users.values_list("content_object", "user__username"),
        *(
            (key, f"group {name}")
            for key, name in groups.values_list("content_object", "group__name")
        ),
        *((row.namespace_id, row.label) for row in pending),
        *members.values_list("namespace", "group__user__username"),
    }
    found: dict[int, list[str]] = {namespace: [] for namespace in requested}
    for namespace, name in sorted(pairs):
        found[namespace].append(name)
    return found


def _global_deciders() -> list[User]:
    permission = {"codename": DECIDE_EVERYWHERE, "content_type__app_label": "environments"}
    own = Q(**{f"user_permissions__{key}": value for key, value in permission.items()})
    grouped = Q(**{f"groups__permissions__{key}": value for key, value in permission.items()})
    return list(User.objects.filter(own | grouped, is_active=True).distinct())


def request_json(request: ApprovalRequest) -> dict[str, Any]:
    """Return the request as the payload of a notification."""
    return {
        "id": str(request.pk),
        "state": request.state,
        "manager": manager_of(request),
        "package": request.name,
        "version": request.version,
        "rule": request.rule,
        "reason": request.reason,
        "chain": list(request.chain),
    }


def _notify_opened(build: Build, requests: Sequence[ApprovalRequest]) -> None:
    namespace = build.environment.namespace
    by = build.requested_by.get_username() if build.requested_by else "Somebody"
    what = _abbreviated([f"{request.name} {request.version}".strip() for request in requests])
    mail = compose(
        "request_opened",
        by=by,
        environment=build.environment,
        packages=what,
        requests=requests,
        purpose=build.reason,
        page=_address("admin/environments/approvalrequest/"),
    )
    approvers = {*deciders([namespace.pk])[namespace.pk], *_global_deciders()}
    if not settings.SELF_APPROVAL:
        approvers -= {build.requested_by, build.resumed_by}
    Notification.tell(
        Event.REQUEST_OPENED,
        namespace=namespace.pk,
        subject=mail.subject,
        text=mail.text,
        data={
            "namespace": namespace.name,
            "environment": build.environment.name,
            "build": build.number,
            "requested_by": by,
            "note": build.reason,
            "requests": [request_json(request) for request in requests],
        },
        emails=[user.email for user in approvers],
    )


def _notify_decided(
    decision: Decision, requests: Sequence[ApprovalRequest], held: Sequence[Build]
) -> None:
    """Notify those who wait, with one notification for each namespace."""
    by = decision.decided_by.get_username() if decision.decided_by else "somebody"
    locations = {request.namespace_id: request.namespace for request in requests}
    for key, namespace in locations.items():
        here = [request for request in requests if request.namespace_id == key]
        builds = [build for build in held if build.environment.namespace_id == key]
        what = _abbreviated([f"{request.name} {request.version}".strip() for request in here])
        mail = compose(
            "request_decided",
            by=by,
            approved=decision.approved,
            packages=what,
            namespace=namespace,
            reason=decision.reason,
            expires_at=decision.expires_at,
            builds=builds,
        )
        Notification.tell(
            Event.REQUEST_DECIDED,
            namespace=key,
            subject=mail.subject,
            text=mail.text,
            data={
                "namespace": namespace.name,
                "approved": decision.approved,
                "decided_by": by,
                "reason": decision.reason,
                "expires_at": decision.expires_at.isoformat() if decision.expires_at else None,
                "requests": [request_json(request) for request in here],
                "builds": [str(build) for build in builds],
            },
            emails=[build.requested_by.email for build in builds if build.requested_by],
        )


def _abbreviated(what: Sequence[str]) -> str:
    if len(what) <= 3:
        return ", ".join(what)
    return f"{', '.join(what[:3])} and {len(what) - 3} more"


def _address(path: str) -> str:
    return f"{settings.PUBLIC_URL.rstrip('/')}/{path}" if settings.PUBLIC_URL else ""
