"""Who enters the console without running the installation, and what is open to them?"""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.access import Actor
from accounts.roles import Perm
from environments.admin.base import Room, actor_of
from environments.models import Namespace


def holds_somewhere(actor: Actor, perm: Perm) -> bool:
    """Everywhere, or in some namespace."""
    places = Namespace.objects.with_perm(actor, perm)
    return actor.is_superuser or (actor.signed_in and places.exists())


def may_enter(request: HttpRequest) -> bool:
    """Who finds something of theirs in the console: staff, approvers, admins of a namespace."""
    user = request.user
    return user.is_active and (user.is_staff or _holds(request, Perm.APPROVE))


def _holds(request: HttpRequest, perm: Perm) -> bool:
    """Asked once for each page."""
    known: dict[Perm, bool] = request.__dict__.setdefault("_held_somewhere", {})
    if perm not in known:
        known[perm] = holds_somewhere(actor_of(request), perm)
    return known[perm]


class SharedRoom(Room):
    """For those who hold `perm` in some namespace; what they see there, a room's rows say."""

    perm: Perm

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _holds(request, self.perm)


class ApproversRoom(SharedRoom):
    perm = Perm.APPROVE


class ManagersRoom(SharedRoom):
    """What is of namespaces, for who runs them; of the installation, for who runs that."""

    perm = Perm.MANAGE
    #: From a row to its namespace.
    way = "namespace"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        actor, rows = actor_of(request), super().get_queryset(request)
        if actor.is_superuser:
            return rows
        run = Namespace.objects.with_perm(actor, self.perm).order_by().values("pk")
        return rows.filter(**{f"{self.way}__in": run})
