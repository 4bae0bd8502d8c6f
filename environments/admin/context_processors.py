"""Link to the console in the header of every page, with the number of waiting approvals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.http import HttpRequest

from accounts.roles import Perm
from environments.admin.access import may_enter
from environments.admin.confirmed_actions import actor_of
from environments.models import ApprovalRequest

#: Requests that are counted for the header; with more it says "99+".
MAX_WAITING = 99


@dataclass(frozen=True)
class ConsoleLink:
    """Evaluated by the template, so that pages without the header run no query."""

    request: HttpRequest

    @cached_property
    def visible(self) -> bool:
        return may_enter(self.request)

    @cached_property
    def waiting(self) -> str:
        """Number of approval requests that the user may decide on; "" if there are none."""
        rows = ApprovalRequest.objects.with_perm(actor_of(self.request), Perm.APPROVE)
        count = rows.undecided().order_by()[: MAX_WAITING + 1].count()
        return f"{MAX_WAITING}+" if count > MAX_WAITING else str(count or "")


def console(request: HttpRequest) -> dict[str, Any]:
    signed_in = getattr(request, "user", None) is not None and request.user.is_authenticated
    return {"console": ConsoleLink(request)} if signed_in and hasattr(request, "actor") else {}
