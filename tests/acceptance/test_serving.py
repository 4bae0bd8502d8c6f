"""Serving's acceptance: one environment in every form, by any worker, without its upstream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest
from rattler import Gateway, MatchSpec, VirtualPackage, install, solve

from tests.acceptance import forms
from tests.channels.server import ChannelServer, Fault, serving
from tests.environments.registry.conftest import tool
from tests.faults.watching import end_all
from tests.migrated import migrated_postgres
from tests.services import S3Service, redis
from tests.system import CONDASTORE, PROJECT, System, until

BUILD = "admin/numbers/1"
Digests = Mapping[str, str]


@pytest.fixture(scope="module")
def upstream(numpy_channel: Path) -> Iterator[ChannelServer]:
    with serving(numpy_channel) as server:
        yield server


@pytest.fixture(scope="module")
def text(upstream: ChannelServer) -> str:
    return f"channels: ['{upstream.url}']\ndependencies: [python, numpy]\n"


@pytest.fixture(scope="module")
def first(system: System, text: str) -> str:
    """The build's lock file, as the first installation made it."""
    system.create("admin/numbers")
    system.build("admin/numbers", text)
    return system.get(f"/api/envs/{BUILD}/conda-lock.yml").text


@pytest.fixture(scope="module")
def taken(
    system: System, first: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Digests]:
    """Every form, taken from the first installation."""
    folder = tmp_path_factory.mktemp("taken")
    return folder, take(system, folder)


def take(system: System, folder: Path) -> Digests:
    """Take all forms of the build into `folder`; the sha256 of each, and of the image's layers."""
    found = {file: forms.digest(forms.fetch(system, BUILD, file, folder)) for file in forms.FORMS}
    return found | {"image": forms.pull(system, BUILD, folder)}


@contextlib.contextmanager
def off(upstream: ChannelServer) -> Iterator[None]:
    """The channel that the packages came from has nothing any more."""
    fault = Fault("*", status=404)
    upstream.faults.add(fault)
    try:
        yield
    finally:
        upstream.faults.clear()


async def recreate(channel: str, prefix: Path) -> set[str]:
    """With py-rattler, from the channel alone; the sha256 of the packages that it took."""
    cache = prefix.with_name("rattler")
    records = await solve(
        sources=[channel],
        gateway=Gateway(cache_dir=cache / "repodata"),
        specs=[MatchSpec("python"), MatchSpec("numpy")],
        platforms=["linux-64", "noarch"],
        virtual_packages=[found.into_generic() for found in VirtualPackage.detect()],
    )
    await install(records, prefix, cache_dir=cache / "packages", execute_link_scripts=False)
    return {record.sha256.hex() for record in records}


def gone(system: System) -> bool:
    """Whether the folder of the build is away, and what was linked in it with it."""
    return not any((system.data / "prefixes/admin").glob("1-*-numbers"))


def runs(prefix: Path) -> bool:
    return forms.said_at(prefix, tool(str(prefix / "bin/python"), "-c", forms.CODE))


def test_every_form_of_a_build_runs(taken: tuple[Path, Digests]) -> None:
    folder, _ = taken
    for file, works in forms.FORMS.items():
        works(folder / file)
    forms.runs_as_image(folder, "1")


def test_a_build_comes_back_after_its_channel_and_all_caches_are_gone(
    system: System, upstream: ChannelServer, taken: tuple[Path, Digests], tmp_path: Path
) -> None:
    comes_back(system, upstream, tmp_path)


def comes_back(system: System, upstream: ChannelServer, folder: Path) -> None:
    build = system.environment("admin/numbers")["current"]["id"]
    lock = system.show(build)["lock"]["digest"]
    # What is current is never archived: another build takes its place.
    system.build("admin/numbers", "dependencies: [libalpha]\n")
    system.change("archiveBuild", id=build)
    until(lambda: gone(system))
    # Renamed first: a worker may be compiling into it.
    shutil.rmtree((system.data / "cache").rename(system.data / "gone"), ignore_errors=True)
    with off(upstream):
        system.change("restoreBuild", id=build)
        restored = system.wait(build, ["READY", "FAILED"])
        assert (restored["state"], restored["lock"]["digest"]) == ("READY", lock)
        assert runs(Path(restored["prefixPath"]))
        channel = f"{system.url}/t/{system.token}/channel/{BUILD}"
        again = asyncio.run(recreate(channel, folder / "again"))
    assert runs(folder / "again")
    listed = system.get(f"/api/envs/{BUILD}/conda-lock.yml").text
    assert again
    assert all(sha256 in listed for sha256 in again)


@pytest.fixture
def apart(
    system: System, s3_service: S3Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """Another installation: PostgreSQL, an object store, and one worker of its own (below)."""
    keys = {"access_key": s3_service.access_key, "secret_key": s3_service.secret_key}
    options = {"endpoint_url": s3_service.url, "bucket_name": "serving", **keys}
    options |= {"region_name": "us-east-1", "addressing_style": "path", "signature_version": "s3v4"}
    boto3.client(
        "s3",
        endpoint_url=s3_service.url,
        aws_access_key_id=s3_service.access_key,
        aws_secret_access_key=s3_service.secret_key,
        region_name="us-east-1",
    ).create_bucket(Bucket="serving")
    with migrated_postgres() as database, redis() as broker:
        other = System(
            tmp_path_factory.mktemp("apart") / "data",
            channel=system.environ["CONDASTORE_DEFAULT_CHANNELS"],
            environ={
                "CONDASTORE_DATABASE_URL": database.url,
                "CONDASTORE_BROKER_URL": broker.url,
                "CONDASTORE_BLOBS": "s3",
                "CONDASTORE_BLOBS_OPTIONS": json.dumps(options),
                **{
                    f"CONDASTORE_{name}_KEY": f"{name}: the same on all machines, and long enough"
                    for name in ("SECRET", "AUDIT", "ENCRYPTION", "REGISTRY")
                },
            },
        )
        try:
            yield other.start()
        finally:
            left = end_all(other)
        assert not left, left


@contextlib.contextmanager
def made_elsewhere(system: System, data: Path) -> Iterator[None]:
    """What is made is made on another machine: its worker shares no folder with the others."""
    own = system.processes("worker")
    environ = system.environ | {"CONDASTORE_DATA": str(data)}
    command = [*CONDASTORE, "worker", "--queues", "artifacts"]
    with data.with_suffix(".log").open("wb") as log:
        other = subprocess.Popen(command, env=environ, cwd=PROJECT, stdout=log, stderr=log)
    for process in own:
        process.suspend()
    try:
        yield
    finally:
        other.terminate()
        other.wait(60)
        for process in own:
            process.resume()


@pytest.mark.timeout(900)  # two installations, one of them from nothing
def test_another_installation_makes_the_same_bytes_without_a_shared_folder(
    apart: System,
    upstream: ChannelServer,
    first: str,
    taken: tuple[Path, Digests],
    tmp_path: Path,
) -> None:
    apart.create("admin/numbers")
    apart.build("admin/numbers", first)
    with made_elsewhere(apart, tmp_path / "data"), off(upstream):
        folder = tmp_path / "taken"
        folder.mkdir()
        assert take(apart, folder) == taken[1]
    comes_back(apart, upstream, tmp_path)
