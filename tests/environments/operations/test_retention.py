"""Rules act, holds keep, and what was deleted comes back within its window."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.access import Actor
from condastore.errors import AccessDeniedError, ConflictError, InvalidInputError, NotFoundError
from environments.domain.lifecycle import BuildState
from environments.models import AuditEvent, Blob, Build, BuildTag, Environment, Namespace
from environments.operations import builds, environments, retention
from tests import factories

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unsent")]
OLD = timedelta(days=100)


def aged(build: Build, ago: timedelta = OLD) -> Build:
    moment = timezone.now() - ago
    Build.objects.filter(pk=build.pk).update(created_at=moment, finished_at=moment)
    build.refresh_from_db()
    return build


@pytest.fixture
def history(environment: Environment) -> list[Build]:
    """Five old READY builds; the last one is current."""
    return [aged(factories.make_build(environment)) for _ in range(5)]


def states(environment: Environment) -> list[str]:
    rows = environment.builds.filter(deleted_at=None).order_by("number")
    return list(rows.values_list("state", flat=True))


def test_by_default_nothing_goes(history: list[Build], environment: Environment) -> None:
    assert retention.apply_rules() == 0
    assert states(environment) == ["READY"] * 5


def test_the_rules_of_a_namespace_archive_and_later_delete(
    dora: Actor, research: Namespace, environment: Environment, history: list[Build]
) -> None:
    rules = {"keep_last": 2, "keep_days": 30, "delete_days": 60}
    retention.set_retention(actor=dora, namespace=research, rules=rules)
    BuildTag.objects.create(environment=environment, name="paper", build=history[0])
    retention.place_hold(actor=dora, environment=environment, build=history[1], reason="case 7")
    research.refresh_from_db()
    planned = list(retention.plan(actor=dora, namespace=research))
    assert [(one.build.number, one.fate.value, one.size) for one in planned] == [
        (3, "archive", 100)
    ]
    assert retention.apply_rules() == 1
    assert states(environment) == ["READY", "READY", "ARCHIVED", "READY", "READY"]
    event = AuditEvent.objects.get(action="build.archive")
    assert (event.username, event.changes) == (
        "system",
        {"why": "archived by retention: no rule keeps it"},
    )
    assert retention.apply_rules() == 0
    aged(history[2])
    assert retention.apply_rules() == 1
    assert states(environment) == ["READY"] * 4
    history[2].refresh_from_db()
    assert history[2].deleted_at is not None


def test_the_installation_bounds_what_a_namespace_asks_for(
    dora: Actor, research: Namespace, history: list[Build], settings: Any
) -> None:
    settings.RETENTION_LEAST_BUILDS = 4
    retention.set_retention(actor=dora, namespace=research, rules={"keep_last": 1})
    assert retention.apply_rules() == 1
    settings.RETENTION_LEAST_BUILDS, settings.RETENTION_MOST_BUILDS = 1, 2
    retention.set_retention(actor=dora, namespace=research, rules={"keep_last": 50})
    assert retention.apply_rules() == 2


def test_rules_are_set_by_those_who_run_the_namespace_and_audited(
    alice: Actor, dora: Actor, research: Namespace
) -> None:
    with pytest.raises(AccessDeniedError):
        retention.set_retention(actor=alice, namespace=research, rules={"keep_last": 1})
    with pytest.raises(InvalidInputError, match="from 0"):
        retention.set_retention(actor=dora, namespace=research, rules={"keep_days": -1})
    with pytest.raises(InvalidInputError, match="no rule"):
        retention.set_retention(actor=dora, namespace=research, rules={"name": 1})
    retention.set_retention(
        actor=dora, namespace=research, rules={"keep_days": 9}, keep_tagged=False
    )
    assert AuditEvent.objects.get(action="namespace.retention").changes == {
        "before": {"keep_days": None, "keep_tagged": True},
        "after": {"keep_days": 9, "keep_tagged": False},
    }


def test_nobody_archives_or_deletes_what_is_held_until_it_is_released(
    alice: Actor, dora: Actor, environment: Environment, history: list[Build]
) -> None:
    with pytest.raises(AccessDeniedError):
        retention.place_hold(actor=alice, environment=environment, reason="mine")
    with pytest.raises(InvalidInputError, match="Give a reason"):
        retention.place_hold(actor=dora, environment=environment, reason=" ")
    hold = retention.place_hold(actor=dora, environment=environment, reason="case 7")
    for attempt in (
        lambda: builds.archive_build(actor=alice, build=history[0]),
        lambda: builds.delete_build(actor=dora, build=history[0]),
        lambda: environments.delete_environment(actor=dora, environment=environment),
    ):
        with pytest.raises(ConflictError, match=r"placed by dora: case 7"):
            attempt()
    assert states(environment) == ["READY"] * 5
    assert list(retention.holds(dora)) == [hold]
    assert not retention.holds(alice).exists()
    retention.release_hold(actor=dora, hold=hold, reason="settled")
    with pytest.raises(ConflictError, match="already released"):
        retention.release_hold(actor=dora, hold=hold, reason="settled")
    builds.archive_build(actor=alice, build=history[0])
    events = AuditEvent.objects.filter(action__begins="hold.").order_by("pk")
    assert [(one.action, one.username) for one in events] == [
        ("hold.place", "dora"),
        ("hold.release", "dora"),
    ]


def test_a_deleted_build_comes_back_within_its_window(
    alice: Actor, dora: Actor, history: list[Build], settings: Any
) -> None:
    build = history[0]
    blob = Blob.objects.create(sha256="1" * 64, size=1, removing_at=timezone.now())
    build.lock.artifacts.create(
        kind="TAR_GZ", platform="linux-64", recipe=1, state="READY", blob=blob
    )
    builds.delete_build(actor=dora, build=build)
    assert not Build.objects.visible_to(dora).filter(pk=build.pk).exists()
    with pytest.raises(NotFoundError):
        retention.find_deleted_build(alice, "research", "ml", build.number)
    found = retention.find_deleted_build(dora, "research", "ml", build.number)
    with pytest.raises(AccessDeniedError):
        retention.undelete_build(actor=alice, build=found)
    retention.undelete_build(actor=dora, build=found)
    build.refresh_from_db()
    assert (build.deleted_at, build.state) == (None, BuildState.ARCHIVED)
    blob.refresh_from_db()
    assert blob.removing_at is None
    builds.restore_build(actor=alice, build=build)
    with pytest.raises(ConflictError, match="not deleted"):
        retention.undelete_build(actor=dora, build=build)


def test_after_the_window_nothing_comes_back(
    dora: Actor, history: list[Build], environment: Environment, settings: Any
) -> None:
    builds.delete_build(actor=dora, build=history[0])
    environments.delete_environment(actor=dora, environment=environment)
    settings.UNDO_WINDOW = timedelta(0)
    with pytest.raises(NotFoundError, match="no deleted build"):
        retention.find_deleted_build(dora, "research", "ml", 1)
    with pytest.raises(NotFoundError, match="no deleted environment"):
        retention.find_deleted_environment(dora, "research", "ml")
    with pytest.raises(ConflictError, match="too long ago"):
        retention.undelete_environment(actor=dora, environment=environment)


def test_a_deleted_environment_comes_back_unless_its_name_is_taken(
    dora: Actor, environment: Environment, history: list[Build], research: Namespace
) -> None:
    environments.delete_environment(actor=dora, environment=environment)
    other = factories.make_environment(research, "ml")
    found = retention.find_deleted_environment(dora, "research", "ml")
    with pytest.raises(ConflictError, match="Another environment"):
        retention.undelete_environment(actor=dora, environment=found)
    Environment.objects.filter(pk=other.pk).update(name="elsewhere")
    retention.undelete_environment(actor=dora, environment=found)
    back = environments.find_environment(dora, "research", "ml")
    assert (back.pk, back.current) == (environment.pk, None)
    assert states(back) == ["ARCHIVED"] * 5
