"""Channels that truncate, corrupt, delay or hang: builds succeed or give the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.channels.server import ChannelServer, Fault
from tests.faults.conftest import Start
from tests.faults.watching import Watch, settle
from tests.system import System

ENVIRONMENT = "faulty/channel"


@pytest.fixture(scope="module")
def system(start: Start) -> Iterator[System]:
    with start(DOWNLOAD_TIMEOUT="1", BUILD_ATTEMPTS="3") as running, Watch(running.data):
        running.create(ENVIRONMENT)
        yield running


@pytest.fixture
def faulty(channel: ChannelServer) -> Iterator[ChannelServer]:
    channel.faults.clear()
    channel.requests.clear()
    yield channel
    channel.faults.clear()


def _download(system: System, name: str) -> Path:
    [found] = (system.data / "cache" / "packages").glob(f"*/{name}-*/info/index.json")
    return found.parent.parent


def test_a_download_that_was_cut_is_continued_where_it_ended(
    system: System, faulty: ChannelServer
) -> None:
    faulty.faults.add(Fault("linux-64/large-data-*", cut_after=500_000, times=2))
    done = system.build(ENVIRONMENT, "dependencies: [large-data]")
    assert done["attempt"] == 1
    ranges = [request.range for request in faulty.requests.matching("linux-64/large-data-*")]
    assert ranges == ["", "bytes=500000-", "bytes=1000000-"]
    blob = system.folder(ENVIRONMENT) / "share/large-data/blob.bin"
    assert blob.stat().st_size == 2 * 1024 * 1024


def test_wrong_bytes_are_fetched_once_more(system: System, faulty: ChannelServer) -> None:
    faulty.faults.add(Fault("noarch/license-gpl-*", wrong_bytes=True, times=1))
    done = system.build(ENVIRONMENT, "dependencies: [license-gpl]")
    assert done["attempt"] == 1
    assert faulty.requests.count("noarch/license-gpl-*") == 2


def test_permanently_wrong_bytes_are_never_stored(system: System, faulty: ChannelServer) -> None:
    faulty.faults.add(Fault("noarch/license-bsd-*", wrong_bytes=True))
    done = system.wait(system.submit(ENVIRONMENT, "dependencies: [license-bsd]"))
    assert (done["state"], done["attempt"]) == ("FAILED", 3)
    assert done["failure"]["code"] == "download-failed"
    assert "license-bsd-1.0-" in done["failure"]["message"]
    assert "differs from the lock" in done["failure"]["message"]
    assert not list((system.data / "cache" / "packages").glob("*/license-bsd-*"))
    faulty.faults.clear()
    system.build(ENVIRONMENT, "dependencies: [license-bsd]")


@pytest.mark.parametrize("pattern", ["noarch/license-dual-*", "noarch/repodata*", "linux-64/repo*"])
def test_a_busy_server_is_retried(system: System, faulty: ChannelServer, pattern: str) -> None:
    faulty.faults.add(Fault(pattern, status=503, times=2))
    system.build(ENVIRONMENT, "dependencies: [license-dual]", force=True)
    assert faulty.requests.count(pattern, status=503) == 2


def test_a_hanging_server_is_retried(system: System, faulty: ChannelServer) -> None:
    faulty.faults.add(Fault("noarch/license-missing-*", hang=60, times=1))
    faulty.faults.add(Fault("noarch/license-missing-*", hang=60, hang_after=100, times=1))
    done = system.build(ENVIRONMENT, "dependencies: [license-missing]")
    assert done["attempt"] == 1
    assert faulty.requests.count("noarch/license-missing-*") >= 2


def test_an_unreachable_channel_finally_fails_the_build_with_the_reason(
    system: System, faulty: ChannelServer
) -> None:
    faulty.faults.add(Fault("*/repodata*", status=500))
    done = system.wait(system.submit(ENVIRONMENT, "dependencies: [license-mit]", force=True))
    assert (done["state"], done["attempt"]) == ("FAILED", 3)
    assert done["failure"]["code"] == "channel-unavailable"
    assert faulty.url.rstrip("/") in done["failure"]["message"]


def test_no_leftovers_remain(system: System) -> None:
    settle(system, [ENVIRONMENT])
    downloads = system.data / "cache" / "packages" / "downloads"
    assert not list(downloads.glob("*.part"))
