"""When an environment was last used: downloads, pulls, runs say so, and folders where they can."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.utils import timezone

from accounts.access import Actor
from accounts.models import User
from environments.jobs import cleanup
from environments.models import Build, Environment, Prefix
from environments.services import folders
from tests import factories
from tests.environments.graphql.asking import ask

pytestmark = pytest.mark.django_db
AGO = timedelta(days=120)


def used(environment: Environment) -> bool:
    environment.refresh_from_db()
    return environment.used_at is not None


@pytest.mark.parametrize(
    "path",
    [
        "/api/envs/research/ml/1/conda-lock.yml",
        "/api/envs/research/ml/current/environment.yml",
        "/channel/research/ml/1/linux-64/repodata.json",
    ],
)
def test_a_download_is_a_use(bob: Actor, environment: Environment, path: str) -> None:
    factories.make_build(environment)
    client = Client()
    client.force_login(User.objects.get(username="charlie"))
    client.get(path)
    assert not used(environment)  # who may not, uses nothing
    client.force_login(User.objects.get(username="bob"))
    assert client.get(path).status_code == 200
    assert used(environment)


def test_a_run_on_another_machine_is_a_use(bob: Actor, environment: Environment) -> None:
    factories.make_build(environment)
    client = Client()
    client.force_login(User.objects.get(username="charlie"))
    assert client.post("/api/envs/research/ml/1/use").status_code == 404
    assert not used(environment)
    client.force_login(User.objects.get(username="bob"))
    assert client.post("/api/envs/research/ml/1/use").status_code == 204
    assert used(environment)


def test_what_is_not_used_is_listed(bob: Actor, environment: Environment) -> None:
    rows = Environment.objects.filter(pk=environment.pk)
    query = (
        "query($since: DateTime!) { environments(filters: {unusedSince: $since})"
        " { totalCount edges { node { name lastUsedAt } } } }"
    )

    def unused() -> int:
        since = (timezone.now() - timedelta(days=90)).isoformat()
        found: int = ask(bob, query, since=since)["environments"]["totalCount"]
        return found

    assert unused() == 0  # it is new
    rows.update(created_at=timezone.now() - AGO)
    assert unused() == 1
    rows.update(used_at=timezone.now() - AGO)
    assert unused() == 1
    rows.update(used_at=timezone.now())
    assert unused() == 0


def test_a_program_that_was_started_in_its_folder_is_a_use(
    environment: Environment, data_folder: Path
) -> None:
    build = factories.make_build(environment)
    prefix = Prefix.objects.get(builds=build)
    programs = data_folder / prefix.path / "bin"
    programs.mkdir(parents=True)
    own, shared = programs / "python", programs / "tool"
    own.write_text("#!/bin/sh")
    shared.write_text("#!/bin/sh")
    os.link(shared, data_folder / "in-the-cache")
    created = timezone.now() - AGO
    Prefix.objects.update(created_at=created)

    def read(path: Path, after: timedelta) -> None:
        os.utime(path, ((created + after).timestamp(), created.timestamp()))

    read(own, timedelta(minutes=1))  # by ourselves: smoke tests, compiling
    read(shared, AGO / 2)  # perhaps for another environment
    assert cleanup.note_use_of_folders() == 0
    read(own, timedelta(days=3))
    assert cleanup.note_use_of_folders() == 1
    environment.refresh_from_db()
    assert environment.used_at == created + timedelta(days=3)
    assert cleanup.note_use_of_folders() == 0
    assert Build.objects.count() == 1


def test_folders_are_looked_at_in_turns(
    environment: Environment, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(folders, "last_read", lambda prefix: looked.append(prefix.path))
    for name in ("one", "two", "three"):
        factories.make_build(factories.make_environment(environment.namespace, name))
    for _ in range(3):
        cleanup.note_use_of_folders(most=2)
    assert [path.split("/")[1] for path in looked] == ["research"] * 5
    assert len(set(looked)) == 3
