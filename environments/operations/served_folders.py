"""Which folders does a machine have that keeps the environments of a namespace by itself?

The answer to `condastore sync`: for each environment the build that is current, as far as one may
download it. What is not in it is not to be there any more.
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

#: Grows when a program that reads the answer would misunderstand it.
VERSION = 1


def folders(*, actor: Actor, namespace: str) -> dict[str, Any]:
    """JSON values: the environments, each with its current build and the numbers recalled of it.

    Raises:
        NotFoundError: there is no such namespace, or nothing in it that one may see.
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
    if not rows:  # one environment may be shared by itself; without any, the namespace decides
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
    """What its folder holds; None where it has none, as on the server itself."""
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
    """Why it has no folder."""
    if row["current__number"] is None:
        return "it has no finished build yet"
    if row["why"] is not None:
        return f"build {row['current__number']} was recalled: {row['why']}"
    if row["current__state"] != BuildState.READY:
        return f"build {row['current__number']} is {row['current__state']}"
    return ""


def _recalled(environments: list[int]) -> defaultdict[int, list[int]]:
    """The numbers of the recalled builds of each environment."""
    locks = RecalledLock.objects.active().values("lock")
    builds = Build.objects.filter(environment__in=environments, lock__in=locks).order_by("number")
    found: defaultdict[int, list[int]] = defaultdict(list)
    for environment, number in builds.values_list("environment", "number"):
        found[environment].append(number)
    return found
