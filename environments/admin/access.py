"""Access to the console for people who do not administer the installation."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from accounts.roles import Perm
from environments.admin.base import ReadOnlyAdmin
from environments.admin.confirmed_actions import actor_of
from environments.models import Namespace


def holds_somewhere(actor: Actor, perm: Perm) -> bool:
    """Return True if the actor holds `perm` in at least one namespace."""
    return actor.is_superuser or (
        actor.signed_in and Namespace.objects.with_perm(actor, perm).exists()
    )


def may_enter(request: HttpRequest) -> bool:
    """Return True for staff, and for approvers and admins of a namespace."""
    user = request.user
    return user.is_active and (user.is_staff or _holds(request, Perm.APPROVE))


def _holds(request: HttpRequest, perm: Perm) -> bool:
    """Query a permission once for each request."""
    known: dict[Perm, bool] = request.__dict__.setdefault("_held_somewhere", {})
    if perm not in known:
        known[perm] = holds_somewhere(actor_of(request), perm)
    return known[perm]


class SharedAdmin(ReadOnlyAdmin):
    """Open to people who hold `perm` in a namespace; `get_queryset` limits the rows to theirs."""

    perm: Perm

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _holds(request, self.perm)


class ApproverAdmin(SharedAdmin):
    """Open to approvers."""

    perm = Perm.APPROVE


class NamespaceManagerAdmin(SharedAdmin):
    """Open to admins of a namespace, who see the rows of their own namespaces.

    Rows of the installation, without a namespace, are shown to its administrators only.
    """

    perm = Perm.MANAGE
    #: Lookup from a row to its namespace.
    namespace_path = "namespace"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        actor, rows = actor_of(request), super().get_queryset(request)
        if actor.is_superuser:
            return rows
        managed = Namespace.objects.with_perm(actor, self.perm).order_by().values("pk")
        return rows.filter(**{f"{self.namespace_path}__in": managed})
