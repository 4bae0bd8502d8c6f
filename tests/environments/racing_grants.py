"""Concurrent grants to one account, and the migration of old duplicates: a program of its own.

It uses the migrated database of its environment and prints what it found as JSON.
"""

from __future__ import annotations

import importlib
import json
from functools import partial
from itertools import cycle

import django

ROUNDS = 10


def main() -> None:
    django.setup()
    from django.apps import apps
    from django.core.management import call_command
    from django.db import connection
    from guardian.shortcuts import assign_perm

    from accounts.models import User
    from accounts.roles import Role
    from environments.models import AuditEvent, Namespace
    from environments.operations.namespaces import grant_role, revoke_role
    from tests import factories
    from tests.environments.racing import together

    migration = importlib.import_module("environments.migrations.0022_one_role_per_holder")
    research = factories.make_namespace("research", dora=Role.ADMIN, erin=Role.ADMIN)
    dora, erin = (factories.actor(User.objects.get(username=n)) for n in ("dora", "erin"))
    alice = factories.make_user("alice")
    roles = cycle([(Role.VIEWER, Role.ADMIN), (Role.DEVELOPER, Role.APPROVER)])
    held: set[int] = set()
    outcomes: set[str] = set()
    for _ in range(ROUNDS):
        first, second = next(roles)
        outcomes |= set(
            together(
                partial(grant_role, actor=dora, namespace=research, role=first, user="alice"),
                partial(grant_role, actor=erin, namespace=research, role=second, user="alice"),
            )
        )
        rows = research.user_grants.filter(user=alice)
        held.add(rows.count())
        assert research.granted_role(alice) in (first, second)
        revoke_role(actor=dora, namespace=research, user="alice")

    grants = research.user_grants.model
    [constraint] = constraints = grants._meta.constraints
    grants._meta.constraints = []  # SQLite makes the table anew by these
    with connection.schema_editor() as editor:
        editor.remove_constraint(grants, constraint)
    for role in (Role.VIEWER, Role.APPROVER, Role.DEVELOPER):
        assign_perm(role.codename, alice, research)
    # What the migration does, without that of the others between it and the newest.
    with connection.schema_editor() as editor:
        migration.keep_highest_role(apps, editor)
        grants._meta.constraints = constraints
        editor.add_constraint(grants, constraint)
    call_command("migrate", verbosity=0)  # what was removed is recorded at its end
    event = AuditEvent.objects.filter(action="namespace.grant").order_by("-pk").first()
    print(
        json.dumps(
            {
                "outcomes": sorted(outcomes),
                "rows": sorted(held),
                "kept": str(Namespace.objects.get(pk=research.pk).granted_role(alice)),
                "rows after": research.user_grants.filter(user=alice).count(),
                "recorded": [event.changes, event.username] if event else None,
            }
        )
    )


if __name__ == "__main__":
    main()
