"""Folders that a machine keeps with `condastore sync` for the environments of a namespace.

Lists each environment with its current build, if the actor may download it. The client removes
folders that are not listed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from accounts.access import Actor, require
from accounts.roles import Perm
from environments.domain.lifecycle import BuildState
from environments.models import Build, Environment, RecalledLock
from environments.models.recalls import recall_reason
from environments.operations.namespaces import find_namespace

#: Increase it if older clients would misread the answer.
VERSION = 1


def folders(*, actor: Actor, namespace: str) -> dict[str, Any]:
    """Return the environments with their current build and numbers of recalled builds, as JSON.

    Raises:
        NotFoundError: there is no such namespace, or nothing in it that the actor may see.
    """
    found = Environment.objects.with_perm(actor, Perm.DOWNLOAD).filter(namespace__name=namespace)
    rows: list[Any] = list(
        found.order_by("name").values(
            "pk",
            "name",
            "current__number",
            "current__state",
            "current__created_at",
            "current__specification__digest",
            "current__lock__digest",
            "current__lock__platforms",
            why=recall_reason("current__lock"),
        )
    )
    if not rows:  # a single environment may be shared; otherwise the namespace decides
        require(actor, Perm.DOWNLOAD, find_namespace(actor, namespace))
    recalled = _recalled([row["pk"] for row in rows])
    return {
        "version": VERSION,
        "namespace": namespace,
        "environments": [
            {
                "name": row["name"],
                "build": _build(row),
                "why": _why(row),
                "recalled": recalled[row["pk"]],
            }
            for row in rows
        ],
    }


def _build(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the folder holds; None if it has none, as on the server itself."""
    if row["current__state"] != BuildState.READY or row["why"] is not None:
        return None
    return {
        "number": row["current__number"],
        "lock": row["current__lock__digest"],
        "specification": row["current__specification__digest"],
        "platforms": row["current__lock__platforms"],
        "created_at": row["current__created_at"].isoformat(),
    }


def _why(row: dict[str, Any]) -> str:
    """Return why the environment has no folder."""
    if row["current__number"] is None:
        return "it has no finished build"
    if row["why"] is not None:
        return f"build {row['current__number']} was recalled: {row['why']}"
    if row["current__state"] != BuildState.READY:
        return f"build {row['current__number']} is {row['current__state']}"
    return ""


def _recalled(environments: list[int]) -> defaultdict[int, list[int]]:
    """Return the numbers of the recalled builds of each environment."""
    locks = RecalledLock.objects.active().values("lock")
    builds = Build.objects.filter(environment__in=environments, lock__in=locks).order_by("number")
    found: defaultdict[int, list[int]] = defaultdict(list)
    for environment, number in builds.values_list("environment", "number"):
        found[environment].append(number)
    return found
