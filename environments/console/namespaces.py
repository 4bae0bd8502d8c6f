"""Namespaces: the list, and one namespace with its people, quotas and rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_safe

from accounts.access import may, require
from accounts.roles import Perm, Role
from condastore.errors import InvalidInputError
from environments.console.keyset import Column, read_page
from environments.console.responses import act, actor_of, render_page
from environments.domain.sizes import format_size
from environments.models import Environment, Namespace
from environments.operations import namespaces, policies, quotas
from environments.operations.namespaces import find_namespace

PAGE_SIZE = 50
RECENT = 10
_ORDER = (Column(field="name", kind=str),)
ROLES = {
    Role.VIEWER.value: "views and downloads",
    Role.DEVELOPER.value: "also builds environments",
    Role.APPROVER.value: "also decides on packages",
    Role.ADMIN.value: "also manages the namespace and its people",
}
_QUOTAS = {
    "bytes": "Disk",
    "environments": "Environments",
    "builds_at_once": "Builds at the same time",
    "builds_a_day": "Builds within 24 hours",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaBar:
    """Use of one quota; `percent` is None where there is no limit."""

    title: str
    used: str
    limit: str
    percent: float | None

    @property
    def kind(self) -> str:
        if self.percent is None or self.percent < 80:
            return ""
        return "is-warn" if self.percent < 100 else "is-bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a role; `source` says where a role that is not granted here comes from."""

    name: str
    role: str
    group: bool = False
    source: str = ""


@require_safe
def namespace_list(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    search = request.GET.get("q", "").replace("\0", "").strip()[:64]
    rows = Namespace.objects.visible_to(actor).annotate(
        environment_count=Count("environments", filter=Q(environments__deleted_at=None))
    )
    if search:
        rows = rows.filter(name__icontains=search)
    page = read_page(
        rows,
        _ORDER,
        size=PAGE_SIZE,
        after=request.GET.get("after", ""),
        before=request.GET.get("before", ""),
    )
    context = {
        "section": "namespaces",
        "rows": page.rows,
        "search": search,
        "previous": page.previous and "?" + urlencode({"q": search, "before": page.previous}),
        "next": page.next and "?" + urlencode({"q": search, "after": page.next}),
    }
    return render_page(
        request, "namespaces/namespaces.html", context, partial="namespaces/_rows.html"
    )


@require_safe
def namespace(request: HttpRequest, name: str) -> HttpResponse:
    actor = actor_of(request)
    found = find_namespace(actor, name)
    grants = may(actor, Perm.GRANT, found)
    environments = Environment.objects.visible_to(actor).filter(namespace=found)
    context: dict[str, Any] = {
        "section": "namespaces",
        "namespace": found,
        "count": environments.count(),
        "environments": environments.select_related("current").order_by("-updated_at")[:RECENT],
        "may_grant": grants,
        "may_build": may(actor, Perm.BUILD, found),
        "manages": may(actor, Perm.MANAGE, found),
        "holders": _holders(found) if grants else (),
        "roles": ROLES,
        "rules": policies.rules_in_force(found),
        "bars": _bars(found),
    }
    return render(request, "namespaces/namespace.html", context)


@require_http_methods(["POST"])
def grant(request: HttpRequest, name: str) -> HttpResponse:
    """Give a person or a group a role, in place of the one that was granted before."""
    actor = actor_of(request)
    found = find_namespace(actor, name)
    user, group, role = (request.POST.get(key, "").strip() for key in ("user", "group", "role"))

    def run() -> None:
        if role not in ROLES:
            raise InvalidInputError("Choose a role.", where="role")
        namespaces.grant_role(
            actor=actor, namespace=found, role=Role(role), **_named(user=user, group=group)
        )

    return act(request, run, done=f"{user or group} is {role} of {found}.", then=_people(found))


@require_http_methods(["GET", "HEAD", "POST"])
def revoke(request: HttpRequest, name: str) -> HttpResponse:
    """Show what a revocation takes away, and revoke the role."""
    actor = actor_of(request)
    found = find_namespace(actor, name)
    require(actor, Perm.GRANT, found)
    given = request.POST if request.method == "POST" else request.GET
    user, group = (given.get(key, "").strip() for key in ("user", "group"))
    if request.method == "POST":
        return act(
            request,
            lambda: namespaces.revoke_role(
                actor=actor, namespace=found, **_named(user=user, group=group)
            ),
            done=f"{user or group} has no granted role in {found} any more.",
            then=_people(found),
        )
    context = {"section": "namespaces", "namespace": found, "user": user, "group": group}
    return render(request, "namespaces/revoke.html", context)


def _people(found: Namespace) -> str:
    return f"{reverse('namespace', args=[found.name])}#people"


def _named(*, user: str, group: str) -> dict[str, str]:
    if bool(user) == bool(group) or "\0" in user + group:
        raise InvalidInputError("Enter the name of a user or of a group.", where="name")
    return {"user": user, "group": group}


def _holders(found: Namespace) -> Sequence[Holder]:
    """Return who holds a role, by name. Names without an account look like all others."""
    rows = [
        *(
            Holder(name=one.user.get_username(), role=_role(one.permission.codename))
            for one in found.user_grants.select_related("user", "permission")
        ),
        *(
            Holder(name=one.group.name, group=True, role=_role(one.permission.codename))
            for one in found.group_grants.select_related("group", "permission")
        ),
        *(
            Holder(name=one.holder, group=one.is_group, role=one.role)
            for one in found.pending_grants.all()
        ),
        *(
            Holder(
                name=one.user.get_username() if one.user else one.group.name,
                group=one.user is None,
                role=one.role,
                source=f"role mapping of {one.group.name}",
            )
            for one in found.mapped_roles.select_related("user", "group")
        ),
    ]
    return sorted(rows, key=lambda one: (one.group, one.name, one.source))


def _role(codename: str) -> str:
    return codename.removeprefix("role_")


def _bars(found: Namespace) -> list[QuotaBar]:
    return [
        QuotaBar(
            title=_QUOTAS[use.kind.name],
            used=_amount(use.kind.name, use.used),
            limit="" if use.limit is None else _amount(use.kind.name, use.limit),
            percent=None if use.limit is None else 100 * use.used / use.limit,
        )
        for use in quotas.usage(found)
    ]


def _amount(kind: str, number: int) -> str:
    return format_size(number) if kind == "bytes" else f"{number:,}"
