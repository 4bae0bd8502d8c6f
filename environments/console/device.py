"""Approval of a command line that signs in by a device code."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from accounts.sign_in import TooManyAttemptsError
from accounts.throttling import exceeded
from condastore.errors import NotFoundError
from environments.console.responses import actor_of
from environments.operations import device_sign_in

#: Device codes that one person may try.
CODES = "20/m/user"


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def device(request: HttpRequest) -> HttpResponse:
    """Show which command line asks to act for the person, and approve or deny it."""
    actor = actor_of(request)
    given = request.POST if request.method == "POST" else request.GET
    code = given.get("code", "").strip()
    context: dict[str, Any] = {"code": code, "own_address": actor.address}
    if code:
        if exceeded(request, action="code", rate=CODES):
            raise TooManyAttemptsError("Too many codes were tried.")
        try:
            found = device_sign_in.find(actor=actor, user_code=code)
        except NotFoundError as error:
            context["wrong"] = error
        else:
            context["waiting"] = found
            if (decision := request.POST.get("decision")) in {"approve", "deny"}:
                device_sign_in.decide(actor=actor, request=found, approve=decision == "approve")
                context["decided"] = decision
    return render(request, "environments/device.html", context)
