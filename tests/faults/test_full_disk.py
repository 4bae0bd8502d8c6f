"""Full disks during downloads and linking: builds wait for free space.

The whole data folder, database and queue included, lies on a small file system that only `up`
and its children see: it is mounted in a namespace of theirs and ends with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.channels.server import ChannelServer, Fault
from tests.faults.conftest import QUICK
from tests.faults.watching import missing
from tests.services import ComponentMissing
from tests.system import System, until

SIZE = 256 * 1024 * 1024  # bytes


class SmallSystem(System):
    """A system whose data folder is a file system of `SIZE`."""

    @property
    def inside(self) -> Path:
        """The data folder as its processes see it."""
        return Path(f"/proc/{self.supervisor.pid}/root{self.data}")

    def fill(self, *, leave: int = 0) -> None:
        """Take all the room but `leave` bytes."""
        with (self.inside / "filler").open("ab", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(64 * 1024))
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(512))
            filler.truncate(max(0, filler.tell() - leave))

    def free(self) -> None:
        (self.inside / "filler").unlink()


@pytest.fixture(scope="module")
def system(
    channel: ChannelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SmallSystem]:
    data = tmp_path_factory.mktemp("full") / "data"
    data.mkdir()
    with SmallSystem(
        data,
        channel=channel.url,
        environ=QUICK | {"CONDASTORE_BUILD_ATTEMPTS": "60"},
        within=_on_a_small_disk(data),
    ) as running:
        running.create("full/disk")
        # What it needs of the cache beside the packages is there before the disk is full.
        running.build("full/disk", "dependencies: [license-mit]")
        yield running


def _on_a_small_disk(data: Path) -> list[str]:
    if shutil.which("unshare") is None:
        raise ComponentMissing("unshare", "apt-get install util-linux")
    mount = f'mount -t tmpfs -o size={SIZE} tmpfs "{data}"'
    within = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    probe = subprocess.run(
        [*within, "sh", "-c", mount], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        raise ComponentMissing(
            f"A mount of its own ({probe.stderr.strip()})",
            "run the tests as root, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    # The database goes along: the mount hides what lay in the folder.
    path = data / "db.sqlite3"
    run = f'exec 3< "{path}" && {mount} && cat <&3 > "{path}" && exec 3<&- && exec "$@"'
    return [*within, "sh", "-c", run, "sh"]


def _events(system: System, build: str) -> list[str]:
    with contextlib.suppress(Exception):  # a full disk may take the web along for a moment
        return [event["state"] for event in system.show(build)["events"]]
    return []


@pytest.mark.parametrize(
    ("stage", "package", "leave"),
    [
        ("FETCHING", "large-data", 1_000_000),  # less than the archive
        ("FETCHING", "python", 6_000_000),  # the archive, and not what is in it
        ("LINKING", "hello-noarch", 400_000),
    ],
)
def test_a_build_waits_for_room_on_the_disk(
    system: SmallSystem, channel: ChannelServer, stage: str, package: str, leave: int
) -> None:
    before = system.folder("full/disk").name
    # The disk fills up while the build is under way, not before it begins.
    channel.faults.add(Fault(f"*/{package}-*", hang=2, times=1))
    try:
        build = system.submit("full/disk", f"dependencies: [{package}]", force=True)
        system.wait(build, ["FETCHING", "LINKING"], through_outage=True)
        system.fill(leave=leave)
        until(lambda: _events(system, build).count("QUEUED") > 1, 60, system.log)
        assert "READY" not in _events(system, build), stage
        link = system.inside / "envs" / "full" / before
        current = link.parent / link.readlink()
        assert missing(current) == []
        shown = (system.inside / "prefixes").glob("*/[!.]*")
        assert all(missing(prefix) == [] for prefix in shown)
    finally:
        channel.faults.clear()
        system.free()
    done = system.wait(build, through_outage=True)
    assert done["state"] == "READY", done
    messages = " ".join(event["message"] for event in done["events"])
    assert "disk" in messages.lower(), messages


def test_a_file_of_a_build_waits_for_room_on_the_disk(system: SmallSystem) -> None:
    """Half an archive is neither served nor left behind."""
    build = system.build("full/disk", "dependencies: [python]")
    url = f"/api/envs/full/disk/{build['number']}/env.tar.zst"
    requested = "query($id: ID!) { build(id: $id) { artifacts { state failure { message } } } }"

    def told() -> dict[str, Any]:
        with contextlib.suppress(Exception):  # a full disk may take the web along for a moment
            return next(iter(system.graphql(requested, id=build["id"])["build"]["artifacts"]), {})
        return {}

    system.fill(leave=8_000_000)  # enough for the database and the queue, not for the archive
    try:
        assert system.get(url, Prefer="respond-async").status_code == 202
        until(lambda: told().get("failure"), 60, lambda: f"{told()} {system.log()}")
        assert "disk is full" in told()["failure"]["message"]
        assert told()["state"] != "READY"
    finally:
        system.free()
    done: list[httpx.Response] = []

    def made() -> bool:
        done[:] = [system.get(url, Prefer="wait=5")]
        return done[0].status_code == 200

    until(made, 60, system.log)
    assert (
        done[0].headers["ETag"].strip('"')
        == f"sha256:{hashlib.sha256(done[0].content).hexdigest()}"
    )
    cache = system.inside / "cache"
    until(lambda: not [*cache.glob("artifacts/*"), *cache.glob("parts/.*")], 30, system.log)


def test_a_download_continues_after_the_web_process_was_killed(system: SmallSystem) -> None:
    """Uses this system because it has a file that no buffer holds."""
    build = system.build("full/disk", "dependencies: [python]")
    url = f"/api/envs/full/disk/{build['number']}/env.tar.zst"
    whole = system.get(url, Prefer="wait=60")
    assert whole.status_code == 200
    signed_in = {"Authorization": f"Bearer {system.token}"}
    got = b""
    with (
        contextlib.suppress(httpx.TransportError),
        httpx.stream("GET", system.url + url, headers=signed_in, timeout=60) as answer,
    ):
        for part in answer.iter_raw():
            if not got:
                system.processes("web")[0].kill()
            got += part
    assert 0 < len(got) < len(whole.content)
    rest: list[httpx.Response] = []
    more = {"Range": f"bytes={len(got)}-", "If-Range": whole.headers["ETag"]}

    def resumed() -> bool:
        with contextlib.suppress(httpx.TransportError):  # the next process is starting
            rest[:] = [system.get(url, **more)]
        return bool(rest)

    until(resumed, 60, system.log)
    assert rest[0].status_code == 206
    digest = hashlib.sha256(got + rest[0].content).hexdigest()
    assert whole.headers["ETag"] == f'"sha256:{digest}"'


def test_a_disk_without_any_room_loses_no_build_and_harms_no_database(
    system: SmallSystem, channel: ChannelServer, tmp_path: Path
) -> None:
    channel.faults.add(Fault("*/apptool-*", hang=1, times=1))
    build = system.submit("full/disk", "dependencies: [apptool]", force=True)
    try:
        system.wait(build, ["FETCHING"])
        system.fill()
        # Neither the database nor the queue nor a log can grow; the sweep continues regardless.
        time.sleep(4)
    finally:
        channel.faults.clear()
        system.free()
    done = system.wait(build, through_outage=True)
    assert done["state"] == "READY", done
    system.build("full/disk", "dependencies: [license-bsd]")
    for name in ("db.sqlite3", "db.sqlite3-wal"):
        with contextlib.suppress(FileNotFoundError):  # no -wal once everything is written back
            shutil.copy(system.inside / name, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "db.sqlite3")) as rows:
        assert rows.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
