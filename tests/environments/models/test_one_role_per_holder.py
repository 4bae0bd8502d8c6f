"""An account or group has one role in a namespace, also after concurrent grants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, transaction
from guardian.shortcuts import assign_perm

from accounts.roles import Role
from tests import factories
from tests.migrated import migrated_postgres, put_database


@pytest.mark.django_db
def test_the_database_refuses_a_second_role() -> None:
    research = factories.make_namespace("research")
    for holder in (factories.make_user("alice"), Group.objects.create(name="team")):
        research.grant(Role.VIEWER, holder)
        with pytest.raises(IntegrityError), transaction.atomic():
            assign_perm(Role.ADMIN.codename, holder, research)
        research.grant(Role.ADMIN, holder)
        assert research.granted_role(holder) == Role.ADMIN
        research.revoke(holder)
        assert research.granted_role(holder) is None


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_two_concurrent_grants_leave_one_role(database: str, tmp_path: Path) -> None:
    """The migration, too, leaves the highest of several roles, and records the others."""
    environ = {
        **os.environ,
        "CONDASTORE_DATA": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    with ExitStack() as stack:
        if database == "postgres":
            environ["CONDASTORE_DATABASE_URL"] = stack.enter_context(migrated_postgres()).url
        else:
            put_database(tmp_path)
        answer = subprocess.run(
            [sys.executable, "-m", "tests.environments.racing_grants"],
            env=environ, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["outcomes"] == ["done"]
    assert found["rows"] == [1]
    assert (found["kept"], found["rows after"]) == ("approver", 1)
    change, username = found["recorded"]
    assert change == {"holder": "alice", "before": "developer", "after": "approver"}
    assert username == "system"
