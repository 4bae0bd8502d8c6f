"""The heartbeat of an attempt at leased work: what it costs, and what it notices."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from condastore.errors import RequestError
from environments.domain.lifecycle import BuildState
from environments.jobs.artifacts import ArtifactRun
from environments.jobs.build_run import BuildRun
from environments.jobs.leased_run import LeasedRun, claim
from environments.jobs.mirrors import IndexRun
from environments.models import Environment
from tests.environments.models.test_leased_work import make_artifact, make_index, statements
from tests.factories import make_build

pytestmark = pytest.mark.django_db
Begin = Callable[[str], LeasedRun[Any]]


@pytest.fixture
def begin(environment: Environment, engine: object) -> Begin:
    """Claim work of a kind and return its attempt, whose heartbeat the test does itself."""

    def do(kind: str) -> LeasedRun[Any]:
        row: Any
        if kind == "build":
            row = make_build(environment, BuildState.QUEUED)
        else:
            row = {"artifact": make_artifact, "index": make_index}[kind](environment)
        lease = claim(row)
        assert lease is not None
        kinds: dict[str, Any] = {"build": BuildRun, "artifact": ArtifactRun, "index": IndexRun}
        run: LeasedRun[Any] = kinds[kind](row, lease)
        return run

    return do


def beat(run: LeasedRun[Any]) -> list[str]:
    """Return the statements of one heartbeat."""
    with CaptureQueriesContext(connection) as queries:
        run.beat()
    return statements(queries)


def rows(run: LeasedRun[Any]) -> Any:
    return type(run.row)._default_manager.filter(pk=run.row.pk)


@pytest.mark.parametrize("kind", ["artifact", "index"])
def test_work_that_nobody_can_cancel_costs_no_statement_until_its_lease_is_renewed(
    begin: Begin, kind: str, settings: Any
) -> None:
    run = begin(kind)
    assert beat(run) == []
    settings.LEASE = timedelta(0)  # the renewal is due
    assert beat(run) == ["UPDATE"]
    assert not run.cancelled()


def test_a_build_is_read_by_each_heartbeat_and_notices_that_it_is_cancelled(
    begin: Begin,
) -> None:
    run = begin("build")
    assert beat(run) == ["SELECT"]
    assert not run.cancelled()
    run.row.move(BuildState.CANCELLING)
    run.beat()
    assert run.cancelled()
    assert not run.lost


@pytest.mark.parametrize("kind", ["build", "artifact", "index"])
def test_the_heartbeat_that_renews_the_lease_notices_that_it_was_lost(
    begin: Begin, kind: str, settings: Any
) -> None:
    run = begin(kind)
    rows(run).update(lease_expires_at=timezone.now() - timedelta(minutes=1))
    rows(run).get().give_up_lost()
    settings.LEASE = timedelta(0)
    run.beat()
    assert run.lost


@pytest.mark.parametrize("kind", ["build", "artifact", "index"])
def test_the_heartbeat_notices_that_its_row_was_deleted(
    begin: Begin, kind: str, settings: Any
) -> None:
    run = begin(kind)
    rows(run).delete()
    settings.LEASE = timedelta(0)
    run.beat()
    assert run.lost


@pytest.mark.parametrize("kind", ["build", "artifact"])
def test_work_that_has_just_failed_is_not_lost(begin: Begin, kind: str, settings: Any) -> None:
    run = begin(kind)
    run.row.fail(RequestError("It cannot work."), lease=run.lease)
    settings.LEASE = timedelta(0)
    run.beat()
    assert not run.lost
