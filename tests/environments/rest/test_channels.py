"""Channels of ours: a client recreates a build from one after the upstream channel is gone."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from rattler import Gateway, MatchSpec, VirtualPackage, install, solve

from accounts.access import ANONYMOUS, Actor
from environments.jobs import builds
from environments.models import Build, Environment, Recall
from environments.operations.tokens import create_token
from environments.services import blobs
from tests import factories
from tests.channels.server import ChannelServer, Fault
from tests.environments.conftest import Submit

BUILD = "/channel/research/ml/1"
WISHES = ["python", "hello-noarch", "libalpha"]


def keep_packages(build: Build, channel: Path, folder: Path) -> None:
    """Put the build's packages into the blob store."""
    assert build.lock is not None
    for entry in build.lock.conda.select_related("package"):
        source = channel / entry.package.subdir / entry.package.file_name
        shutil.copy(source, folder / "package")
        blobs.add(folder / "package")


def get(actor: Actor, path: str, **headers: str) -> Any:
    async def ask() -> Any:
        client = AsyncClient()
        if actor.signed_in:
            await client.aforce_login(actor.account)
        return await client.get(path, headers=headers)

    return async_to_sync(ask)()


@pytest.fixture
def build(environment: Environment) -> Build:
    return factories.make_build(environment)


async def recreated(channel: str, prefix: Path, cache: Path) -> list[Any]:
    records = await solve(
        sources=[channel],
        gateway=Gateway(cache_dir=cache / "repodata"),
        specs=[MatchSpec(name) for name in WISHES],
        platforms=["linux-64", "noarch"],
        virtual_packages=[found.into_generic() for found in VirtualPackage.detect()],
        add_pip_as_python_dependency=True,  # as conda and mamba do
    )
    await install(records, prefix, cache_dir=cache / "packages", execute_link_scripts=False)
    return records


# Django leaves the file of a request's body to the collector where the client hangs up early.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_build_is_recreated_from_our_channel_when_the_upstream_is_gone(
    server: str,
    channel_server: ChannelServer,
    small_channel: Path,
    submit: Submit,
    bob: Actor,
    tmp_path: Path,
) -> None:
    build = submit(f"dependencies: {json.dumps(WISHES)}")
    builds.run(build.pk)
    build.refresh_from_db()
    keep_packages(build, small_channel, tmp_path)
    channel_server.faults.add(Fault("*", status=404))
    secret = create_token(actor=bob, name="pixi").secret
    prefix = tmp_path / "again"
    records = asyncio.run(
        recreated(f"{server}/t/{secret}/channel/research/ml/current", prefix, tmp_path / "cache")
    )
    assert build.lock is not None
    locked = {entry.package.sha256 for entry in build.lock.conda.select_related("package")}
    assert {record.sha256.hex() for record in records} == locked
    assert len(list(prefix.glob("conda-meta/*.json"))) == len(locked)


def test_the_channel_of_a_build_says_what_its_lock_holds(build: Build, bob: Actor) -> None:
    answer = get(bob, f"{BUILD}/linux-64/repodata.json")
    document = json.loads(answer.content)
    (record,) = document["packages.conda"].values()
    assert document["info"] == {"subdir": "linux-64"}
    assert record["name"] == "python"
    packed = get(bob, f"{BUILD}/linux-64/repodata.json.zst")
    assert zstandard.decompress(packed.content) == answer.content
    again = get(bob, f"{BUILD}/linux-64/repodata.json", If_None_Match=answer["ETag"])
    assert (again.status_code, again.content) == (304, b"")
    nothing = json.loads(get(bob, f"{BUILD}/noarch/repodata.json").content)
    assert (nothing["packages"], nothing["packages.conda"]) == ({}, {})


def test_shards_are_named_by_their_digest(build: Build, bob: Actor) -> None:
    answer = get(bob, f"{BUILD}/linux-64/repodata_shards.msgpack.zst")
    index = msgpack.unpackb(zstandard.decompress(answer.content))
    digest = index["shards"]["python"].hex()
    shard = get(bob, f"{BUILD}/linux-64/shards/{digest}.msgpack.zst")
    (record,) = msgpack.unpackb(zstandard.decompress(shard.content))["packages.conda"].values()
    assert isinstance(record["sha256"], bytes)
    absent = get(bob, f"{BUILD}/linux-64/shards/{'0' * 64}.msgpack.zst")
    assert absent.status_code == 404


def test_the_channel_of_a_namespace_has_the_packages_of_all_its_builds(
    environment: Environment, bob: Actor
) -> None:
    factories.make_build(environment)
    other = factories.make_lock(factories.make_package("numpy"))
    factories.make_build(environment, lock=other)
    recalled = factories.make_build(
        environment, lock=factories.make_lock(factories.make_package("evil"))
    )
    recall = Recall.objects.create(spec="evil", reason="It is.")
    recall.locks.create(lock=recalled.lock, packages=["evil 1.0"])
    document = json.loads(get(bob, "/channel/research/linux-64/repodata.json").content)
    names = {record["name"] for record in document["packages.conda"].values()}
    assert names == {"python", "numpy"}
    answer = get(bob, "/channel/research/ml/3/linux-64/repodata.json")
    assert (answer.status_code, answer.json()["code"]) == (403, "recalled")


@pytest.mark.parametrize(
    "path",
    [
        f"{BUILD}/linux-64/repodata.json",
        f"{BUILD}/linux-64/python-1.0-h0_0.conda",
        "/channel/research/linux-64/repodata.json",
    ],
)
def test_a_channel_is_not_there_for_those_who_may_not_see_it(
    build: Build, charlie: Actor, nobody: Actor, path: str
) -> None:
    for actor in (charlie, nobody):
        assert get(actor, path).status_code == 404
    assert get(nobody, f"/t/cs-wrong{path}").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        f"{BUILD}/linux-99/repodata.json",
        f"{BUILD}/linux-64/other.json",
        f"{BUILD}/linux-64/absent-1-0.conda",
        f"{BUILD}/linux-64/shards/repodata.json",
        "/channel/research/ml/9/linux-64/repodata.json",
    ],
)
def test_what_a_channel_has_not_is_not_found(build: Build, bob: Actor, path: str) -> None:
    assert get(bob, path).status_code == 404


def test_a_package_that_is_not_kept_is_fetched_where_it_was_locked(
    build: Build, bob: Actor
) -> None:
    answer = get(bob, f"{BUILD}/linux-64/python-1.0-h0_0.conda")
    assert (answer.status_code, answer["Location"]) == (
        307,
        f"{factories.CHANNEL}/linux-64/python-1.0-h0_0.conda",
    )


def test_a_token_in_the_path_opens_channels_only(build: Build, bob: Actor) -> None:
    secret = create_token(actor=bob, name="conda").secret
    assert set(secret) <= set("-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    nobody = ANONYMOUS
    assert get(nobody, f"/t/{secret}{BUILD}/linux-64/repodata.json").status_code == 200
    assert get(nobody, f"/t/{secret}/api/whoami").status_code == 404
