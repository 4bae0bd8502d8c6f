"""A build that ends without being published keeps no folder, whenever it was stopped."""

from __future__ import annotations

from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts.access import Actor
from environments.domain.lifecycle import FINISHED, BuildState
from environments.engine.prefix import linking
from environments.jobs import builds as building
from environments.jobs import cleanup
from environments.models import Build, Environment, Prefix
from environments.operations import builds, upkeep
from environments.services import folders
from tests.environments.conftest import Submit
from tests.environments.graphql.asking import ask
from tests.factories import make_build, make_environment

pytestmark = pytest.mark.django_db(transaction=True)
S = BuildState


def named(environment: Environment, *, attempt: int = 1) -> Build:
    """A build as its worker leaves it that is killed between naming its folder and READY."""
    build = make_build(environment, current=False)
    path = folders.prefix_path(build)
    assert path is not None
    (path / "bin").mkdir(parents=True)
    Build.objects.filter(pk=build.pk).update(
        state=S.PUBLISHING,
        finished_at=None,
        attempt=attempt,
        lease_owner="gone:1:abc",
        lease_token=1,
        lease_expires_at=timezone.now() - timedelta(seconds=1),
    )
    build.refresh_from_db()
    return build


def cancelled_while_published(build: Build, actor: Actor, settings: Any) -> None:
    builds.cancel_build(actor=actor, build=build)
    upkeep.give_up_lost(Build)


def lost_for_the_last_time(build: Build, actor: Actor, settings: Any) -> None:
    settings.BUILD_ATTEMPTS = 1
    upkeep.give_up_lost(Build)


def queued_again_and_cancelled(build: Build, actor: Actor, settings: Any) -> None:
    upkeep.give_up_lost(Build)
    build.refresh_from_db()
    assert (build.state, build.prefix) == (S.QUEUED, None)
    builds.cancel_build(actor=actor, build=build)


ENDS = {
    cancelled_while_published: S.CANCELLED,
    lost_for_the_last_time: S.FAILED,
    queued_again_and_cancelled: S.CANCELLED,
}


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_build_stopped_while_it_is_published_keeps_no_folder(
    environment: Environment, alice: Actor, unsent: list[int], settings: Any, end: Any
) -> None:
    build = named(environment)
    assert build.prefix is not None
    folder = folders.data() / build.prefix.path
    assert folders.prefix_path(build) is None, "not READY: nobody may run it"
    end(build, alice, settings)
    build.refresh_from_db()
    assert (build.state, build.prefix) == (ENDS[end], None)
    assert folder.exists(), "what is on the disk is the upkeep's"
    cleanup.drop_prefixes()
    assert not folder.exists()
    assert not Prefix.objects.exists()


def test_the_folder_in_envs_leads_to_the_current_build_before_a_leftover_goes(
    environment: Environment, submit: Submit, unsent: list[int]
) -> None:
    """A killed worker may have switched it already: READY was not committed."""
    current = submit("dependencies: [hello-noarch]")
    building.run(current.pk)
    current.refresh_from_db()
    leftover = named(environment)
    assert leftover.prefix is not None
    folder = folders.data() / leftover.prefix.path
    link = folders.link_path(environment.namespace.name, environment.name)
    linking.set_link(link, folder)
    upkeep.give_up_lost(Build)
    cleanup.drop_prefixes()
    assert not folder.exists()
    assert link.resolve() == folders.prefix_path(current)


def test_a_worker_that_wakes_up_late_leaves_the_folder_of_the_next_attempt(
    environment: Environment, submit: Submit, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped when it was about to name its own, and both have the same name."""
    settings.BACKOFF = timedelta(0)
    build = submit("dependencies: [hello-noarch]")
    published: list[int] = []

    def stopped_here(row: Build) -> None:
        monkeypatch.undo()
        Build.objects.filter(pk=build.pk).update(lease_expires_at=timezone.now())
        upkeep.give_up_lost(Build)
        building.run(build.pk)
        folder = folders.prefix_path(Build.objects.get(pk=build.pk))
        assert folder is not None
        published.append(folder.stat().st_ino)

    monkeypatch.setattr(building, "refuse_recalled", stopped_here)
    building.run(build.pk)
    build.refresh_from_db()
    assert build.state == S.READY
    folder = folders.prefix_path(build)
    assert folder is not None
    assert [folder.stat().st_ino] == published
    assert folders.link_path(environment.namespace.name, environment.name).resolve() == folder


def test_the_next_attempt_does_not_use_a_folder_that_upkeep_may_remove(
    environment: Environment, submit: Submit, settings: Any
) -> None:
    settings.BACKOFF = timedelta(0)
    build = submit("dependencies: [hello-noarch]")
    building.run(build.pk)
    build.refresh_from_db()
    for attempt in range(2):  # it dies in the same way twice
        leftover = build.prefix
        assert leftover is not None
        Environment.objects.update(current=None)
        Build.objects.filter(pk=build.pk).update(
            state=S.PUBLISHING,
            finished_at=None,
            lease_expires_at=timezone.now(),
            attempt=attempt,
            log_archive=None,
        )
        upkeep.give_up_lost(Build)
        building.run(build.pk)
        build.refresh_from_db()
        assert build.state == S.READY, build.failure
        assert build.prefix != leftover
        found = folders.prefix_path(build)
        assert found is not None
        assert (found / "conda-meta" / "history").exists()
    cleanup.drop_prefixes()
    assert found.exists()
    assert [path.name for path in found.parent.iterdir()] == [found.name]


@pytest.mark.parametrize("state", sorted({*FINISHED, S.QUEUED, S.HELD} - {S.READY}))
def test_the_database_refuses_a_prefix_of_a_build_that_is_not_published(
    environment: Environment, state: str
) -> None:
    build = make_build(environment)
    finished_at = timezone.now() if state in FINISHED else None
    with pytest.raises(IntegrityError, match="prefix_only_published"), transaction.atomic():
        Build.objects.filter(pk=build.pk).update(state=state, finished_at=finished_at)


def test_the_interface_shows_no_folder_before_a_build_is_ready(
    environment: Environment, alice: Actor
) -> None:
    build = named(environment)
    query = "query($id: ID!) { build(id: $id) { state prefixPath } }"
    assert ask(alice, query, id=build.pk)["build"] == {"state": S.PUBLISHING, "prefixPath": ""}


def test_the_migration_mends_builds_that_kept_a_prefix(environment: Environment) -> None:
    other = make_environment(environment.namespace, "other")
    ready, failed = make_build(environment), make_build(other, current=False)
    migration = import_module("environments.migrations.0014_prefix_of_published_builds")
    name = "build_prefix_only_published"
    [constraint] = [each for each in Build._meta.constraints if each.name == name]
    others = [each for each in Build._meta.constraints if each.name != name]
    with pytest.MonkeyPatch.context() as patch, connection.schema_editor() as editor:
        patch.setattr(Build._meta, "constraints", others)  # SQLite makes the table anew by these
        editor.remove_constraint(Build, constraint)
    Build.objects.filter(pk=failed.pk).update(state=S.FAILED)
    with connection.schema_editor() as editor:
        migration.take_prefixes(apps, editor)
        editor.add_constraint(Build, constraint)
    ready.refresh_from_db()
    failed.refresh_from_db()
    assert ready.prefix is not None
    assert failed.prefix is None
