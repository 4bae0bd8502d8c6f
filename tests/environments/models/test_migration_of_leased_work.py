"""The migrations that brought all background work under one lease protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest

from tests.migrated import migrated_postgres


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def migrated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Rows after the migration; after one back and forth; and after one with work in flight."""
    environ = {
        **os.environ,
        "CONDASTORE_DATA": str(tmp_path_factory.mktemp("data")),
        "CONDASTORE_MIRROR_INTERVAL": "900",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }
    with ExitStack() as stack:
        if request.param == "postgres":
            environ["CONDASTORE_DATABASE_URL"] = stack.enter_context(migrated_postgres()).url
        answer = subprocess.run(
            [sys.executable, "-m", "tests.environments.migrating_leased_work"],
            env=environ, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, Any]] = json.loads(answer.stdout.splitlines()[-1])
    return found


def test_rows_get_the_state_that_their_columns_said_before(migrated: list[dict[str, Any]]) -> None:
    for found in migrated[:2]:
        # State, attempt, fencing token, owner, leased, message sent.
        assert found["notifications"] == {
            "waits": ["waiting", 2, 0, "", False, False],
            "delivered": ["delivered", 1, 0, "", False, True],
            "failed": ["failed", 8, 0, "", False, True],
            "late": ["delivered", 8, 0, "", False, True],
        }
        assert ["late", True, False] in found["ended"]
        assert found["pushes"] == {
            "waits": ["waiting", 2, 1, "", False, False],
            "pushed": ["pushed", 2, 2, "", False, True],
            "failed": ["failed", 2, 3, "", False, True],
        }
        assert found["previews"] == {"QUEUED": "QUEUED", "SOLVING": "QUEUED", "READY": "READY"}
        assert found["builds"]["2"] == ["QUEUED", 0, 0, "", False, False]
        assert found["views"] == {
            "waits": ["WAITING", 0, 0, "", False, False],
            "leased": ["WAITING", 0, 3, "", False, False],
            "failed": ["FAILED", 0, 0, "", False, False],
            "made": ["READY", 0, 0, "", False, False],
        }
        assert found["indexes"]["s1"] == ["WAITING", 0, 3, "", False, False]
        assert found["upstream"] == [{"etag": number} for number in range(4)]


def test_an_unfinished_solve_is_dropped_and_a_finished_one_stays(
    migrated: list[dict[str, Any]],
) -> None:
    assert [found["solves"] for found in migrated] == [{"finished": ""}] * 3


def test_upstreams_are_read_spread_over_one_interval(migrated: list[dict[str, Any]]) -> None:
    for found in migrated:
        first, second, third = found["minutes"]
        assert (second - first, third - first) == (5, 10)
        assert found["unread"] == [True], "there is nothing to serve yet"


def test_work_in_flight_is_requeued_with_its_fencing_token(migrated: list[dict[str, Any]]) -> None:
    found = migrated[2]
    assert found["notifications"]["waits"] == ["waiting", 3, 0, "", False, False]
    assert found["pushes"]["waits"] == ["waiting", 3, 2, "", False, False]
    assert found["previews"]["QUEUED"] == "QUEUED"
    for kind in ("indexes", "views"):
        assert not any(leased for *_, leased, _ in found[kind].values())
    assert found["indexes"]["s1"][2] == 4
