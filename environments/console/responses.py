"""Helpers of page views: the actor, messages after an action, fragments for htmx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render

from accounts.access import Actor
from condastore.errors import (
    AccessDeniedError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UnexpectedError,
)

#: Errors that are a page of their own; all others are a message on the page of the form.
ERROR_PAGES = (AccessDeniedError, NotFoundError, UnavailableError, UnexpectedError)


class SeeOther(HttpResponseRedirect):
    """Redirect after a POST: the browser gets the page instead of sending the form again."""

    status_code = 303


def actor_of(request: HttpRequest) -> Actor:
    actor: Actor = request.actor  # type: ignore[attr-defined]
    return actor


def is_partial(request: HttpRequest) -> bool:
    """Whether htmx requests a fragment of the page."""
    return request.headers.get("HX-Request") == "true"


def render_page(
    request: HttpRequest,
    page: str,
    context: dict[str, Any],
    *,
    partial: str = "",
    status: int | None = None,
) -> HttpResponse:
    """Render the page, or for htmx the partial template that the page includes."""
    name = partial if partial and is_partial(request) else page
    response = render(request, name, context, status=status)
    response["Vary"] = "HX-Request"
    return response


def text_of(error: StoreError) -> str:
    """Return what a person reads of an error: where, message and hint in one text."""
    where = f"{error.where}: " if error.where else ""
    return f"{where}{error.message}" + (f" {error.hint}" if error.hint else "")


def act(
    request: HttpRequest,
    action: Callable[[], object],
    *,
    done: str,
    then: str,
    failed: str = "",
) -> HttpResponse:
    """Run an operation for a submitted form and redirect.

    Args:
        action: the operation. A StoreError is shown as a message; refusals and unknown objects
            are error pages.
        done: message after success; empty for none.
        then: path of the page that follows.
        failed: path after an error; empty for `then`.
    """
    try:
        action()
    except ERROR_PAGES:
        raise
    except StoreError as error:
        messages.error(request, text_of(error))
        return SeeOther(failed or then)
    if done:
        messages.success(request, done)
    return SeeOther(then)
