"""A package that was called back: nothing that holds it is built or served, until it is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.access import ANONYMOUS, Actor
from condastore.errors import (
    AccessDeniedError,
    InvalidInputError,
    NotSignedInError,
    RecalledError,
    TransitionError,
)
from environments.domain.lifecycle import BuildState
from environments.jobs import builds as building
from environments.jobs import cleanup
from environments.models import AuditEvent, Build, Environment, LockRow, Recall, RecalledLock
from environments.operations import builds, recalls
from environments.operations.environments import copy_environment
from environments.services import folders
from tests import factories
from tests.environments.graphql.asking import ask, execute

S = BuildState
APPTOOL = "dependencies: [apptool]"
pytestmark = pytest.mark.django_db(transaction=True)


def run(build: Build) -> Build:
    building.run(build.pk)
    return Build.objects.get(pk=build.pk)


def again(build: Build) -> Build:
    return Build.objects.get(pk=build.pk)


def call_back(root: Actor, spec: str = "libalpha >=2", **options: Any) -> Recall:
    return recalls.recall(actor=root, spec=spec, reason="it leaks", **options)


@pytest.fixture
def built(submit: Any) -> Build:
    build = run(submit(APPTOOL))
    assert build.state == S.READY, build.failure
    return build


def link(environment: Environment) -> Path:
    return folders.link_path(environment.namespace.name, environment.name)


def as_bob(bob: Actor) -> Client:
    client = Client()
    client.force_login(bob.account)
    return client


def test_every_door_is_closed_and_opens_again_when_it_is_undone(
    built, environment, root, bob, data_folder
):
    address = f"/api/envs/research/ml/{built.number}/conda-lock.yml"
    prefix = folders.prefix_path(built)
    inode = (prefix / "bin/apptool").stat().st_ino
    assert as_bob(bob).get(address).status_code == 200

    recall = call_back(root)
    answer = as_bob(bob).get(address)
    assert answer.status_code == 403
    assert answer.json()["code"] == "recalled"
    assert "it leaks" in answer.json()["detail"]
    assert not link(environment).is_symlink()
    assert not prefix.exists()
    assert (data_folder / "recalled").stat().st_mode & 0o077 == 0
    assert folders.prefix_path(again(built)) is None
    environment.refresh_from_db()
    assert environment.current == built

    recalls.undo_recall(actor=root, recall=recall, reason="a false alarm")
    assert as_bob(bob).get(address).status_code == 200
    assert link(environment).resolve() == prefix
    assert (prefix / "bin/apptool").stat().st_ino == inode


def test_a_recalled_package_is_not_built_with_and_another_one_is_taken(built, submit, root):
    call_back(root)
    assert run(submit("dependencies: [libalpha >=2]")).state == S.FAILED
    other = run(submit("dependencies: [libalpha]"))
    assert other.state == S.READY, other.failure
    [alpha] = other.lock.value().platforms[0].conda
    assert alpha.version.startswith("1.")


def test_a_build_that_was_solved_before_the_recall_does_not_become_ready(submit, root, monkeypatch):
    build = submit(APPTOOL)
    work = dict(building.STAGES)

    def check_and_recall(run: Any) -> None:
        work[S.CHECKING](run)
        call_back(root)

    stages = [
        (state, check_and_recall if state == S.CHECKING else do) for state, do in work.items()
    ]
    monkeypatch.setattr(building, "STAGES", stages)
    build = run(build)
    assert (build.state, build.failure["code"]) == (S.FAILED, "recalled")
    assert build.prefix is None


def test_a_recalled_build_is_neither_restored_nor_made_current(built, submit, alice, root):
    newer = run(submit("dependencies: [mathkernel]"))
    assert newer.state == S.READY
    call_back(root)
    with pytest.raises(RecalledError):
        builds.set_current_build(actor=alice, build=built)
    with pytest.raises(Exception, match="no READY build before"):
        builds.rollback(actor=alice, environment=again(newer).environment)
    builds.archive_build(actor=alice, build=again(built))
    with pytest.raises(RecalledError):
        builds.restore_build(actor=alice, build=again(built))


def test_a_build_that_is_being_restored_is_refused_by_the_rules(built, submit, alice, root):
    run(submit("dependencies: [mathkernel]"))
    builds.archive_build(actor=alice, build=again(built))
    builds.restore_build(actor=alice, build=again(built))
    call_back(root)
    old = run(built)
    assert old.state == S.ARCHIVED
    assert "recalled" in old.events.last().message


def test_a_recall_by_digest_hits_those_bytes_alone(built, submit, root):
    [alpha] = [p for p in built.lock.value().platforms[0].conda if p.name == "libalpha"]
    other = run(submit("dependencies: [libalpha ==1.0]"))
    recall = call_back(root, spec="", sha256=alpha.sha256.upper())
    assert list(recalls.hits(root, recall)) == [built]
    assert recall.locks.get().packages == [f"libalpha {alpha.version}"]
    assert folders.prefix_path(again(other)) is not None


def test_names_with_stars_and_wheels_are_found(environment, root):
    lock = factories.make_lock(
        factories.make_package("evil-core"), factories.make_package("python")
    )
    build = factories.make_build(environment, lock=lock)
    assert list(recalls.hits(root, call_back(root, "evil-*"))) == [build]
    assert list(recalls.hits(root, call_back(root, "pypi:evil-core"))) == []
    assert list(recalls.hits(root, call_back(root, "evil-core 1.0 h0_0"))) == [build]
    assert list(recalls.hits(root, call_back(root, "evil-core 1.0 h1_*"))) == []


def test_a_lock_that_is_stored_later_is_found_too(environment, root):
    recall = call_back(root, "evil")
    from environments.services.recalled_locks import mark_lock

    row = LockRow.store(factories.make_lock(factories.make_package("evil")))
    assert mark_lock(row)
    assert not mark_lock(LockRow.store(factories.make_lock()))
    assert RecalledLock.objects.get().recall == recall


def test_what_two_recalls_hold_opens_when_both_are_undone(built, environment, root):
    first, second = call_back(root), call_back(root, "libbeta")
    recalls.undo_recall(actor=root, recall=first, reason="fixed")
    assert not link(environment).exists()
    recalls.undo_recall(actor=root, recall=second, reason="fixed")
    assert link(environment).exists()
    with pytest.raises(TransitionError):
        recalls.undo_recall(actor=root, recall=second, reason="again")


def test_tidying_puts_the_folders_right_whatever_was_missed(built, environment, root, data_folder):
    prefix = folders.prefix_path(built)
    recall = call_back(root)
    assert folders.restore(built.prefix.path)  # as if the process had died before it came so far
    cleanup.tidy()
    assert not prefix.exists()
    Recall.objects.filter(pk=recall.pk).update(undone_at=recall.recalled_at)
    cleanup.tidy()
    assert prefix.is_dir()
    assert link(environment).resolve() == prefix


def test_the_folder_of_a_recalled_build_that_is_deleted_goes_to_the_trash(
    built, submit, dora, root, data_folder
):
    run(submit("dependencies: [mathkernel]"))
    call_back(root)
    builds.delete_build(actor=dora, build=again(built))
    cleanup.tidy()
    assert folders.quarantined() == []


def test_a_copy_is_recalled_with_its_original(built, alice, root):
    copy = copy_environment(
        actor=alice, environment=built.environment, namespace=built.environment.namespace, name="c"
    )
    recall = call_back(root)
    assert recalls.hits(root, recall).count() == 2
    assert not link(copy).is_symlink()


def test_a_preview_lists_the_builds_that_a_recall_would_stop_and_recalls_nothing(built, root):
    found = recalls.preview_recall(actor=root, spec="libalpha >=2", limit=10)
    assert found.builds == [built]
    assert (found.build_count, found.environment_count, found.requester_count) == (1, 1, 1)
    [package] = found.packages[built.lock_id]
    assert package.startswith("libalpha 2")
    assert not Recall.objects.exists()
    assert not RecalledLock.objects.exists()
    assert recalls.preview_recall(actor=root, spec="libalpha >=99", limit=10).build_count == 0
    assert list(recalls.hits(root, call_back(root))) == found.builds


def test_only_administrators_preview_recalls(built, root, alice, dora, charlie):
    query = """
      { recallPreview(spec: "libalpha") {
        buildCount environmentCount builds { build isCurrent requestedBy packages }
      } }
    """
    found = ask(root, query)["recallPreview"]
    assert (found["buildCount"], found["environmentCount"]) == (1, 1)
    [hit] = found["builds"]
    assert (hit["build"], hit["isCurrent"]) == (f"research/ml:{built.number}", True)
    for actor in (alice, dora, charlie):
        with pytest.raises(AccessDeniedError):
            recalls.preview_recall(actor=actor, spec="libalpha", limit=10)
        [error] = execute(actor, query).errors or []
        assert (error.extensions or {})["code"] == "access-denied"
    with pytest.raises(NotSignedInError):
        recalls.preview_recall(actor=ANONYMOUS, spec="libalpha", limit=10)


@pytest.mark.parametrize("options", [{}, {"spec": "*"}, {"sha256": "abc"}])
def test_a_preview_refuses_what_a_recall_refuses(root, options):
    with pytest.raises(InvalidInputError):
        recalls.preview_recall(actor=root, limit=10, **options)


def test_only_administrators_recall_and_all_see_what_hits_them(built, alice, dora, charlie, root):
    for actor in (alice, dora, charlie):
        with pytest.raises(AccessDeniedError):
            call_back(actor)
    with pytest.raises(NotSignedInError):
        call_back(ANONYMOUS)
    recall = call_back(root)
    assert list(Recall.objects.visible_to(alice)) == [recall]
    assert list(recalls.hits(alice, recall)) == [built]
    assert list(Recall.objects.visible_to(charlie)) == []
    assert list(recalls.hits(charlie, recall)) == []
    charlie.account.user_permissions.add(Permission.objects.get(codename="recall_packages"))
    recalls.undo_recall(actor=charlie, recall=recall, reason="fixed")
    assert [event.action for event in AuditEvent.objects.order_by("pk")][-2:] == [
        "recall.add",
        "recall.undo",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spec": "a", "sha256": "a" * 64},
        {"sha256": "abc"},
        {"spec": "*"},
        {"spec": "numpy [["},
        {"spec": "numpy", "manager": "npm"},
        {"spec": "numpy", "reason": " "},
    ],
)
def test_a_recall_that_makes_no_sense_is_refused(root, options):
    with pytest.raises(InvalidInputError):
        recalls.recall(actor=root, **({"reason": "it leaks"} | options))
    assert not Recall.objects.exists()


def test_finding_the_locks_takes_no_more_queries_for_more_of_them(environment, root):
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as found:
            call_back(root, "evil")
        return len(found)

    evil = factories.make_package("evil")
    factories.make_build(environment, lock=factories.make_lock(evil))
    few = queries()
    for number in range(20):
        lock = factories.make_lock(evil, factories.make_package(f"p{number}"))
        factories.make_build(environment, S.ARCHIVED, lock=lock)
    assert queries() <= few


def test_the_programs_that_ask_for_the_folder_get_none(built, environment, bob, root):
    document = """
    query($id: ID!) { build(id: $id) { prefixPath recalled environment { folder } } }
    """
    seen = ask(bob, document, id=str(built.pk))["build"]
    assert seen["recalled"] is None
    assert seen["prefixPath"]
    call_back(root)
    seen = ask(bob, document, id=str(built.pk))["build"]
    assert seen == {"prefixPath": "", "recalled": "it leaks", "environment": {"folder": ""}}
    page = as_bob(bob).get(f"/environments/research/ml/builds/{built.number}/").content.decode()
    assert "it leaks" in page


def test_a_recall_through_graphql_lists_whom_it_hits(built, root, bob):
    created = ask(
        root,
        """mutation { recall(spec: "libalpha", reason: "it leaks") {
            ... on Recall { id locks } ... on OperationError { code } } }""",
    )["recall"]
    assert created["locks"] == 1
    document = """
    query($id: ID!) {
      recallHits(id: $id) { edges { node { build isCurrent requestedBy packages } } }
    }
    """
    [edge] = ask(bob, document, id=created["id"])["recallHits"]["edges"]
    [alpha] = [p for p in built.lock.value().platforms[0].conda if p.name == "libalpha"]
    assert edge["node"] == {
        "build": "research/ml:1",
        "isCurrent": True,
        "requestedBy": "alice",
        "packages": [f"libalpha {alpha.version}"],
    }
