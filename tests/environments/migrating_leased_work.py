"""Rows of the release before leased work, migrated forwards, backwards and forwards again.

A program of its own, on the database of its environment; prints the rows as JSON.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import django

BEFORE = "0024_note_help_text"
MIRRORS = 4


def main() -> None:
    django.setup()
    from django.core.management import call_command
    from django.db import connection
    from django.db.migrations.loader import MigrationLoader
    from django.utils import timezone

    from environments.domain.lifecycle import BuildState
    from environments.models import Blob, Mirror
    from tests import factories

    call_command("migrate", verbosity=0)
    environment = factories.make_environment(factories.make_namespace("research"))
    ready = factories.make_build(environment)
    queued = factories.make_build(environment, BuildState.QUEUED)
    mirrors = [
        Mirror.objects.create(name=f"m{number}", upstream=f"https://example.org/{number}")
        for number in range(MIRRORS)
    ]
    blob = Blob.objects.create(sha256="b" * 64, size=1)
    now = timezone.now()
    then = now - timedelta(hours=1)
    leased = {"lease_token": 3, "lease_expires_at": now, "message_sent_at": now}

    call_command("migrate", "environments", BEFORE, verbosity=0)
    old = MigrationLoader(None).project_state([("environments", BEFORE)]).apps

    def create(model: str, **fields: Any) -> Any:
        return old.get_model("environments", model).objects.create(**fields)

    mail = {"event": "account", "subject": "s", "content": {}, "message_sent_at": then}
    create("Notification", email="waits", attempts=2, **mail)
    create("Notification", email="delivered", attempts=1, delivered_at=then, **mail)
    create("Notification", email="failed", attempts=8, failed_at=then, **mail)
    create("Notification", email="late", attempts=8, failed_at=then, delivered_at=then, **mail)

    namespace = environment.namespace_id
    for problem, turn, ended in (
        ("waits", 1, {}),
        ("pushed", 2, {"pushed_at": then}),
        ("failed", 3, {"failed_at": then}),
    ):
        rule = create("PushRule", namespace_id=namespace, pattern=problem, target=f"r/{problem}")
        location = {"environment_id": environment.pk, "build_id": ready.pk, "rule": rule}
        create(
            "Push",
            problem=problem,
            attempts=2,
            turn=turn,
            message_sent_at=then,
            **ended,
            **location,
        )

    solved = {"namespace_id": namespace, "specification_id": ready.specification_id}
    for state in ("QUEUED", "SOLVING", "READY"):
        create("Preview", warnings=[state], state=state, **solved)

    builds = old.get_model("environments", "Build").objects
    builds.filter(pk=queued.pk).update(message_sent_at=then)

    index: Any = None
    for number, mirror in enumerate(mirrors):
        index = create(
            "MirrorIndex",
            mirror_id=mirror.pk,
            subdir=f"s{number}",
            state={"etag": number},
            looked_at=then if number else None,
            **(leased if number == 1 else {}),
        )
    files = dict.fromkeys(("repodata_id", "shard_index_id", "shards_id"), blob.pk)
    view = {"index": index, "policy_version": "1"}
    create("MirrorView", key="waits", **view)
    create("MirrorView", key="leased", **view, **leased)
    create("MirrorView", key="failed", failure={"code": "x"}, **view)
    create("MirrorView", key="made", made_at=then, **view, **files)

    solve = {"specification_id": ready.specification_id, "channel_state": "c"}
    create("SolveRow", key="unfinished", created_at=now, **solve)
    create("SolveRow", key="finished", created_at=then, lock_id=ready.lock_id, **solve)

    found: list[dict[str, Any]] = []
    for target in ("environments", BEFORE, "environments"):
        backwards = [target] if target == BEFORE else []
        call_command("migrate", "environments", *backwards, verbosity=0)
        if not backwards:
            found.append(_rows(now))
    # Work in flight does not keep a migration backwards from its end.
    _claim_everything()
    call_command("migrate", "environments", BEFORE, verbosity=0)
    call_command("migrate", "environments", verbosity=0)
    found.append(_rows(now))
    connection.close()
    print(json.dumps(found))


def _claim_everything() -> None:
    from environments.operations import queueing

    for model in queueing.KINDS:
        rows: Any = model._default_manager
        for row in rows.all():
            row.claim("worker", life=timedelta(minutes=5))


def _rows(now: Any) -> dict[str, Any]:
    """What tells the rows of each kind apart, and their columns of the lease protocol."""
    from django.utils import timezone

    from environments.models import (
        Build,
        MirrorIndex,
        MirrorView,
        Notification,
        Preview,
        Push,
        SolveRow,
    )

    def of(model: Any, name: str) -> dict[str, Any]:
        return {
            str(getattr(row, name)): [
                str(row.state),
                row.attempt,
                row.lease_token,
                row.lease_owner,
                row.lease_expires_at is not None,
                row.message_sent_at is not None,
            ]
            for row in model.objects.all()
        }

    unread = MirrorIndex.objects.filter(looked_at=None)
    indexes = MirrorIndex.objects.exclude(looked_at=None).order_by("pk")
    return {
        "notifications": of(Notification, "email"),
        "ended": sorted(
            (row.email, row.delivered_at is not None, row.failed_at is not None)
            for row in Notification.objects.all()
        ),
        "pushes": of(Push, "problem"),
        "previews": {row.warnings[0]: row.state for row in Preview.objects.all()},
        "builds": of(Build, "number"),
        "indexes": of(MirrorIndex, "subdir"),
        "upstream": [row.upstream_state for row in MirrorIndex.objects.order_by("pk")],
        "unread": [row.not_before <= timezone.now() for row in unread],
        "minutes": [round((row.not_before - now).total_seconds() / 60) for row in indexes],
        "views": of(MirrorView, "key"),
        "solves": {row.key: row.lease_owner for row in SolveRow.objects.all()},
    }


if __name__ == "__main__":
    main()
