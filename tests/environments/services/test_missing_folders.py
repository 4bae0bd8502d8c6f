"""The folder of a READY build that is missing is linked again from kept packages, by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from prometheus_client import generate_latest

from accounts.access import Actor
from condastore import metrics
from condastore.errors import StoreError
from environments.domain.lifecycle import BuildState
from environments.engine.prefix import linking
from environments.jobs import builds as building
from environments.jobs import cleanup, folder_restores
from environments.models import Blob, Build, Environment, FolderRestore
from environments.models.folder_restores import RestoreState
from environments.operations import builds, upkeep
from environments.operations.environments import copy_environment, move_environment
from environments.operations.recalls import recall
from environments.services import blobs, engine_context, folders, missing_folders
from tests.channels.server import ChannelServer, Fault
from tests.environments.conftest import Submit
from tests.environments.graphql.asking import ask
from tests.factories import make_build, make_environment, make_namespace

pytestmark = pytest.mark.django_db(transaction=True)
HELLO = (
    "dependencies: [python, hello-noarch, pip: ['tinyname ~=1.0']]\nvariables: {GREETING: hello}\n"
)
SHOWN = """query($id: ID!) { build(id: $id) {
  state prefixPath missingFolder { state failure { message hint } } } }"""


def run(build: Build) -> Build:
    building.run(build.pk)
    build = Build.objects.get(pk=build.pk)
    assert build.state == BuildState.READY, build.failure
    return build


def path_of(build: Build) -> Path:
    assert build.prefix is not None
    return folders.data() / build.prefix.path


def lose(*found: Build) -> None:
    for build in found:
        shutil.rmtree(path_of(build))
    cleanup.tidy()


def listing(prefix: Path) -> set[str]:
    """All that is in a prefix, but compiled files, which may come later."""
    names = {path.relative_to(prefix).as_posix() for path in prefix.rglob("*")}
    return {name for name in names if "__pycache__" not in name}


def restore_all() -> list[int]:
    order = []
    while restored := folder_restores.restore_next():
        order.append(restored.build_id)
    return order


def states() -> list[str]:
    return [row.state for row in FolderRestore.objects.order_by("pk")]


def test_a_missing_folder_is_linked_again_without_its_channel(
    submit: Submit, environment: Environment, alice: Actor, channel_server: ChannelServer
) -> None:
    build = run(submit(HELLO))
    link = folders.link_path("research", "ml")
    before = listing(path_of(build))
    lose(build)
    shutil.rmtree(engine_context.get_engine().cache)
    assert not link.is_symlink(), "no link leads nowhere"
    assert states() == [RestoreState.WAITING]
    shown = ask(alice, SHOWN, id=build.pk)["build"]
    assert shown == {
        "state": "READY",
        "prefixPath": "",
        "missingFolder": {"state": "WAITING", "failure": None},
    }
    channel_server.faults.add(Fault("*", status=404))
    assert restore_all() == [build.pk]
    assert states() == [RestoreState.RESTORED]
    prefix = path_of(build)
    assert link.resolve() == prefix
    assert listing(prefix) == before
    subprocess.run([prefix / "bin/python", "-c", "import tinyname, hello_noarch"], check=True)
    assert json.loads((prefix / "conda-meta/state").read_text())["env_vars"] == {
        "GREETING": "hello"
    }
    again = Build.objects.get(pk=build.pk)
    assert (again.state, again.attempt, again.finished_at) == (
        BuildState.READY, build.attempt, build.finished_at,
    )  # fmt: skip
    assert ask(alice, SHOWN, id=build.pk)["build"] == {
        "state": "READY",
        "prefixPath": str(prefix),
        "missingFolder": None,
    }
    cleanup.tidy()
    assert restore_all() == []
    assert prefix.exists()


def test_current_builds_come_first_then_tagged_ones_then_the_newest(
    submit: Submit, environment: Environment, alice: Actor
) -> None:
    created = [run(submit(f"dependencies: [hello-noarch]\nname: n{n}\n")) for n in range(4)]
    builds.tag_build(actor=alice, build=created[0], tag="stable")
    builds.set_current_build(actor=alice, build=created[1], pin=True)
    lose(*created)
    assert restore_all() == [created[1].pk, created[0].pk, created[3].pk, created[2].pk]


def test_a_folder_that_copies_share_is_linked_once_where_it_was(
    submit: Submit, environment: Environment, root: Actor, research: Any
) -> None:
    build = run(submit("dependencies: [hello-noarch]"))
    target = make_namespace("other")
    copied = copy_environment(actor=root, environment=environment, namespace=target, name="copy")
    move_environment(actor=root, environment=environment, namespace=make_namespace("third"))
    lose(build)
    shutil.rmtree(folders.data() / folders.PREFIXES / "research")
    assert len(restore_all()) == 1
    assert path_of(build).is_dir()
    for namespace, name in (("other", "copy"), ("third", environment.name)):
        assert folders.link_path(namespace, name).resolve() == path_of(build), copied


def test_workers_restore_no_more_at_once_than_allowed(
    environment: Environment, settings: Any
) -> None:
    settings.RESTORES_AT_ONCE = 1
    for _ in range(2):
        make_build(environment)
    missing_folders.record_missing()
    first = FolderRestore.objects.first()
    assert first is not None
    assert first.claim("worker", life=settings.LEASE)
    assert folder_restores.restore_next() is None
    assert first.claim("another", life=timedelta(minutes=1)) is None


def test_two_workers_at_the_same_folder_do_no_harm(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    build = run(submit("dependencies: [python, hello-noarch]"))
    before = listing(path_of(build))
    lose(build)
    arrived, release = threading.Event(), threading.Event()
    publish = linking.publish_prefix

    def slowly(*arguments: Any, **options: Any) -> None:
        if threading.current_thread() is slow:
            arrived.set()
            release.wait(30)
        publish(*arguments, **options)

    def first() -> None:
        try:
            folder_restores.restore_next()
        finally:
            connection.close()

    monkeypatch.setattr(linking, "publish_prefix", slowly)
    slow = threading.Thread(target=first)
    slow.start()
    assert arrived.wait(30)
    # As if it had not been heard of for a whole lease.
    late = timezone.now() - timedelta(seconds=1)
    FolderRestore.objects.update(lease_expires_at=late)
    settings.BACKOFF = timedelta(0)
    upkeep.give_up_lost(FolderRestore)
    assert restore_all() == [build.pk]
    release.set()
    slow.join()
    assert listing(path_of(build)) == before
    assert states() == [RestoreState.RESTORED]
    assert [path.name for path in path_of(build).parent.iterdir()] == [path_of(build).name]


def test_what_a_killed_worker_leaves_is_tried_again_and_removed(
    submit: Submit, settings: Any
) -> None:
    settings.BACKOFF = timedelta(0)
    build = run(submit("dependencies: [hello-noarch]"))
    lose(build)
    row = FolderRestore.objects.get()
    lease = row.claim("killed", life=timedelta(minutes=1))
    assert lease is not None
    half = missing_folders.hidden_name(path_of(build), lease.token)
    (half / "bin").mkdir(parents=True)
    cleanup.drop_orphans(grace=timedelta(0))
    assert half.exists(), "it is being linked"
    FolderRestore.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    upkeep.give_up_lost(FolderRestore)
    assert restore_all() == [build.pk]
    cleanup.drop_orphans(grace=timedelta(0))
    assert not half.exists()
    assert path_of(build).is_dir()


def test_a_folder_whose_packages_are_gone_says_so_and_is_tried_again(
    submit: Submit,
    environment: Environment,
    alice: Actor,
    channel_server: ChannelServer,
    settings: Any,
    client: Client,
) -> None:
    settings.BUILD_ATTEMPTS = 1
    build = run(submit("dependencies: [hello-noarch]"))
    for blob in Blob.objects.all():
        blobs.remove(blob)
    Blob.objects.all().delete()
    lose(build)
    shutil.rmtree(engine_context.get_engine().cache)
    channel_server.faults.add(Fault("*", status=404))
    assert restore_all() == [build.pk]
    assert states() == [RestoreState.FAILED]
    missing = ask(alice, SHOWN, id=build.pk)["build"]["missingFolder"]
    assert missing["state"] == "FAILED"
    assert "no longer exists in its channel" in missing["failure"]["message"]
    assert alice.account is not None
    client.force_login(alice.account)
    page = client.get(f"/environments/research/ml/builds/{build.number}/").content.decode()
    assert "cannot be restored" in page
    assert f"condastore env restore research/ml:{build.number}" in page
    assert "cannot be linked again" in client.get("/readyz").json()["checks"]["folders"]["wrong"]
    assert restore_all() == [], "not before an hour has passed"
    channel_server.faults.clear()
    assert builds.restore_build(actor=alice, build=build) == build
    assert restore_all() == [build.pk]
    assert path_of(build).is_dir()


def test_what_is_missing_is_in_readyz_and_in_the_metrics(
    submit: Submit, environment: Environment, client: Client
) -> None:
    build = run(submit("dependencies: [hello-noarch]"))
    assert client.get("/readyz").json()["checks"]["folders"] == {"ok": True, "wrong": ""}
    lose(build)
    answer = client.get("/readyz").json()["checks"]["folders"]
    assert answer["wrong"] == "1 folders of READY builds are missing and are linked again."
    metrics.register()
    assert 'condastore_folders_missing{state="WAITING"} 1.0' in generate_latest().decode()
    restore_all()
    said = generate_latest().decode()
    assert 'condastore_folders_missing{state="WAITING"} 0.0' in said
    assert "condastore_folders_restored_total 1.0" in said


def test_recalled_and_archived_builds_get_no_folder(
    submit: Submit, environment: Environment, alice: Actor, root: Actor
) -> None:
    recalled = run(submit("dependencies: [hello-noarch]"))
    archived = run(submit("dependencies: [libalpha]"))
    run(submit("dependencies: [python]"))
    lose(recalled, archived)
    recall(actor=root, spec="hello-noarch", reason="malware")
    builds.archive_build(actor=alice, build=archived)
    cleanup.tidy()
    assert restore_all() == []
    assert not FolderRestore.objects.missing().exists()


def test_a_folder_that_is_back_is_not_missing_any_more(
    environment: Environment, tmp_path: Path
) -> None:
    build = make_build(environment)
    path_of(build).mkdir(parents=True)
    path_of(build).rename(tmp_path / "away")
    assert missing_folders.record_missing() == 1
    assert missing_folders.record_missing() == 0
    (tmp_path / "away").rename(path_of(build))
    assert missing_folders.record_missing() == 0
    assert not FolderRestore.objects.exists()


def test_only_those_who_may_build_hurry_a_restore(
    environment: Environment, bob: Actor, alice: Actor, unsent: list[int]
) -> None:
    build = make_build(environment)
    missing_folders.record_missing()
    later = timezone.now() + timedelta(hours=1)
    FolderRestore.objects.update(state=RestoreState.FAILED, not_before=later)
    with pytest.raises(Exception, match="may not"):
        builds.restore_build(actor=bob, build=build)
    builds.restore_build(actor=alice, build=build)
    assert folder_restores.is_more_due()
    other = make_build(make_environment(environment.namespace, "other"))
    with pytest.raises(StoreError, match="only an ARCHIVED build") as refused:
        builds.restore_build(actor=alice, build=other)
    assert "detected within 60 seconds" in refused.value.hint
