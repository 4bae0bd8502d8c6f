"""Policies that were written as `licences` hold as `licenses` after the upgrade."""

from __future__ import annotations

from importlib import import_module
from typing import cast

import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations import RunPython
from django.db.migrations.state import StateApps

from environments.domain.policy import Licenses
from environments.models import Policy, PolicyRule, PolicyVersion
from environments.operations.policies import rules_in_force

pytestmark = pytest.mark.django_db(transaction=True)


def test_rules_and_versions_of_before_hold_and_can_be_restored() -> None:
    policy = Policy.of(None)
    PolicyRule.objects.create(
        policy=policy,
        kind="licences",
        effect="enforce",
        name="ours",
        settings={"deny": ["AGPL-*"]},
    )
    PolicyVersion.objects.create(
        policy=policy,
        number=1,
        change="added",
        rules=[{"kind": "licences", "name": "ours"}, {"kind": "size", "name": "small"}],
    )
    migration = import_module("environments.migrations.0019_license_spelling").Migration
    [respell] = [each for each in migration.operations if isinstance(each, RunPython)]
    with connection.schema_editor() as editor:
        respell.code(cast("StateApps", apps), editor)
    [rule] = [rule for rule in rules_in_force(None) if isinstance(rule, Licenses)]
    assert rule.deny == ("AGPL-*",)
    kinds = [rule["kind"] for rule in PolicyVersion.objects.get(policy=policy).rules]
    assert kinds == ["licenses", "size"]
