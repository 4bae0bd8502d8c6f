"""Python indexes and conda packages that are slow, endless or send bombs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from condastore.errors import ChannelUnavailableError, LeaseLostError, TimeLimitError
from environments.domain.lock import PlatformLock
from environments.domain.progress import Cancelled, never
from environments.engine.channels.repodata import Channels
from environments.engine.network import bounded_reading
from environments.engine.network.bounded_reading import ReadLimits
from environments.engine.pypi.indexes import Project, PythonIndexes
from environments.engine.pypi.resolve import PypiResolver
from tests.channels.hostile_server import (
    Asked,
    HostileServer,
    Script,
    dribble,
    endless,
    gzip_spaces,
    head,
    hostile,
    missing,
    whole,
)
from tests.environments.engine.package_fixtures import lock_of, packages_of
from tests.faults.conftest import Start
from tests.system import until

#: Seconds in which something happens on a busy machine; unbounded work would take far longer.
GENEROUS = 60
QUICK = ReadLimits(silence=timedelta(seconds=2), size=8 << 20)
PATIENT = ReadLimits(silence=timedelta(hours=1))
DRIBBLED = head("200 OK", Content_Length=1_000_000, Content_Type="text/html")
MOVED = head("302 Found", Location="elsewhere")


def slow(asked: Asked) -> Iterator[bytes | float]:
    return dribble(b"", first=DRIBBLED, pause=0.1)


def ask(
    server: HostileServer, *, limits: ReadLimits = QUICK, cancelled: Cancelled = never
) -> dict[str, Project | None]:
    indexes = PythonIndexes([f"{server.url}/simple"], limits=limits)
    return bounded_reading.run(indexes.projects({"tiny": ["tiny.whl"]}), cancelled=cancelled)


HOSTILE = {
    "a page that dribbles": slow,
    "a head that dribbles": lambda asked: dribble(DRIBBLED, pause=0.1),
    "an endless page": lambda asked: endless(head("200 OK")),
    "a page that is a bomb": lambda asked: whole(gzip_spaces(512 << 20), Content_Encoding="gzip"),
    "a page that is cut": lambda asked: iter([DRIBBLED + b"x"]),
    "redirects without end": lambda asked: iter([MOVED]),
}


@pytest.mark.parametrize("script", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_page_is_abandoned_and_named(script: Script) -> None:
    gzip_spaces(512 << 20)  # takes longer to pack than a server may be silent
    with hostile(script) as server, pytest.raises(ChannelUnavailableError) as caught:
        ask(server)
    assert "/simple/tiny/" in caught.value.message


def test_the_body_of_a_redirect_is_not_read() -> None:
    def script(asked: Asked) -> Iterator[bytes | float]:
        return missing() if asked.path == "other" else endless(head("302 Found", Location="/other"))

    with hostile(script) as server:
        assert ask(server, limits=PATIENT) == {"tiny": None}


def test_asking_an_index_that_dribbles_can_be_cancelled() -> None:
    with hostile(slow) as server, pytest.raises(LeaseLostError):
        ask(server, limits=PATIENT, cancelled=lambda: bool(server.requests))


@pytest.fixture
def channels(tmp_path: Path) -> Iterator[Channels]:
    channels = Channels(cache=tmp_path / "repodata")
    yield channels
    channels.close()


def resolver(channels: Channels, folder: Path, *indexes: str) -> PypiResolver:
    return PypiResolver(index_urls=indexes, cache=folder / "wheels", channels=channels)


def resolve(
    resolver: PypiResolver,
    conda: PlatformLock,
    *,
    seconds: float = 3600,
    cancelled: Cancelled = never,
) -> None:
    resolver.lock(
        ["tiny"],
        conda,
        virtual_packages=["__glibc=2.28=0"],
        exclude_newer=None,
        cancelled=cancelled,
        log=lambda line: None,
        time_limit=timedelta(seconds=seconds),
    )


@pytest.fixture
def served(small_channel: Path) -> Callable[[str], PlatformLock]:
    """The packages that a Python needs, those for Python at a server."""

    def make(url: str) -> PlatformLock:
        here, there = packages_of(small_channel), packages_of(small_channel, url=url)
        return lock_of(here["python"], there["hello-noarch"])

    return make


def slow_package(asked: Asked) -> Iterator[bytes | float]:
    return dribble(b"", first=head("200 OK"), pause=0.5)


def requested(server: HostileServer) -> Callable[[], bool]:
    return lambda: bool(server.requests)


def test_reading_a_conda_package_that_dribbles_has_a_time_limit(
    channels: Channels, served: Callable[[str], PlatformLock], tmp_path: Path
) -> None:
    with (
        hostile(slow_package) as server,
        pytest.raises(TimeLimitError, match="hello-noarch") as caught,
    ):
        resolve(resolver(channels, tmp_path), served(server.url), seconds=2)
    assert "hello-noarch" in caught.value.where


def test_reading_a_conda_package_that_dribbles_can_be_cancelled(
    channels: Channels, served: Callable[[str], PlatformLock], tmp_path: Path
) -> None:
    with hostile(slow_package) as server, pytest.raises(LeaseLostError):
        resolve(resolver(channels, tmp_path), served(server.url), cancelled=requested(server))


def test_resolving_on_an_index_that_dribbles_has_a_time_limit(
    channels: Channels, small_channel: Path, tmp_path: Path
) -> None:
    conda = lock_of(packages_of(small_channel)["python"])
    with hostile(slow) as server, pytest.raises(TimeLimitError):
        resolve(resolver(channels, tmp_path, f"{server.url}/simple/"), conda, seconds=5)


def test_resolving_on_an_index_that_dribbles_can_be_cancelled(
    channels: Channels, small_channel: Path, tmp_path: Path
) -> None:
    conda = lock_of(packages_of(small_channel)["python"])
    with hostile(slow) as server, pytest.raises(LeaseLostError):
        resolve(
            resolver(channels, tmp_path, f"{server.url}/simple/"),
            conda,
            cancelled=requested(server),
        )


def test_a_build_on_an_index_that_dribbles_can_be_cancelled(start: Start) -> None:
    # The limits alone would let it go on for an hour.
    with (
        hostile(slow) as server,
        start(
            DOWNLOAD_TIMEOUT="3600",
            SOLVE_TIME_LIMIT="3600",
            PYPI_INDEX_URLS=f"{server.url}/simple/",
        ) as system,
    ):
        system.create("hostile/one")
        build = system.submit("hostile/one", "dependencies: [python, {pip: [tiny]}]")
        until(requested(server), GENEROUS)
        time.sleep(1)
        assert server.open
        system.change("cancelBuild", id=build)
        assert system.wait(build, seconds=GENEROUS)["state"] == "CANCELLED"
