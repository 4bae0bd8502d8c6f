"""Policies that were written as `licences` hold as `licenses` after the upgrade."""

from __future__ import annotations

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from environments.domain.policy import Licenses
from environments.models import Policy, PolicyRule, PolicyVersion
from environments.operations.policies import rules_in_force

pytestmark = pytest.mark.django_db(transaction=True)


def test_rules_and_versions_of_before_hold_and_can_be_restored() -> None:
    policy = Policy.of(None)
    settings = {"deny": ["AGPL-*"]}
    executor = MigrationExecutor(connection)
    last = executor.loader.graph.leaf_nodes("environments")
    executor.migrate([("environments", "0018_lock_conflicts")])
    try:
        PolicyRule.objects.create(
            policy=policy, kind="licences", effect="enforce", name="ours", settings=settings
        )
        PolicyVersion.objects.create(
            policy=policy,
            number=1,
            change="added",
            rules=[{"kind": "licences", "name": "ours"}, {"kind": "size", "name": "small"}],
        )
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(last)
    [rule] = [rule for rule in rules_in_force(None) if isinstance(rule, Licenses)]
    assert rule.deny == ("AGPL-*",)
    kinds = [rule["kind"] for rule in PolicyVersion.objects.get(policy=policy).rules]
    assert kinds == ["licenses", "size"]
