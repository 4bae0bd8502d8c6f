"""Lookup of the actor and the build of a URL."""

from __future__ import annotations

from django.http import HttpRequest

from accounts.access import Actor
from environments.models import Build
from environments.operations.environments import find_build, find_environment


def actor_of(request: HttpRequest) -> Actor:
    actor: Actor = request.actor  # type: ignore[attr-defined]
    return actor


def build_of(request: HttpRequest, namespace: str, environment: str, reference: str) -> Build:
    """Return the build.

    Raises:
        NotFoundError: it does not exist, or the actor may not see it.
    """
    actor = actor_of(request)
    return find_build(actor, find_environment(actor, namespace, environment), reference)
