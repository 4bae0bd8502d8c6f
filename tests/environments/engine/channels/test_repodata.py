"""Channel states and repodata: freshness, errors, and separation of credentials."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from condastore.errors import (
    ChannelNotAllowedError,
    ChannelNotFoundError,
    ChannelUnavailableError,
    InvalidInputError,
    StoreError,
)
from environments.domain.names import Credential
from environments.engine.channels.credentials import redact
from environments.engine.channels.jobs import Described
from environments.engine.channels.repodata import Channels
from environments.engine.solve.client import RattlerSolver
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageSpec, write_package
from tests.channels.server import ChannelServer, Fault, serving
from tests.environments.engine.solver_fixtures import NO_MEMO, solve, versions

LINUX = ["linux-64"]
SECRET = "s3cret-of-mine"

Open = Callable[..., Channels]


@pytest.fixture
def open_channels(tmp_path: Path) -> Iterator[Open]:
    """Channels of their own cache; what the test opened is closed after it."""
    opened: list[Channels] = []

    def open_(*credentials: Credential, memo: timedelta = NO_MEMO, cache: str = "r") -> Channels:
        def find(url: str) -> Credential | None:
            return next((c for c in credentials if c.covers(url)), None)

        opened.append(Channels(cache=tmp_path / cache, credentials=find, memo=memo))
        return opened[-1]

    yield open_
    for channels in opened:
        channels.close()


def add_package(folder: Path, version: str) -> None:
    write_package(PackageSpec("newcomer", version, noarch="generic"), folder)
    index_channel(folder)


def test_the_state_is_the_same_until_the_channel_changes(
    open_channels: Open, own_channel: Path
) -> None:
    with serving(own_channel) as server:
        for url in (server.url.rstrip("/"), own_channel.as_uri()):
            channels = open_channels()
            first = channels.state([url], LINUX)
            assert channels.state([url], LINUX) == first
            add_package(own_channel, "1.0" if url.startswith("http") else "1.1")
            assert channels.state([url], LINUX) != first


def test_the_order_of_channels_is_part_of_the_state(open_channels: Open, channel: str) -> None:
    channels, other = open_channels(), channel + "/../" + channel.rpartition("/")[2]
    assert channels.state([channel, other], LINUX) != channels.state([other, channel], LINUX)


def test_a_state_is_remembered_for_a_moment(
    open_channels: Open, channel_server: ChannelServer
) -> None:
    url = channel_server.url.rstrip("/")
    channels = open_channels(memo=timedelta(minutes=5))
    channels.state([url], LINUX)
    requested = len(channel_server.requests)
    channels.state([url], LINUX)
    assert len(channel_server.requests) == requested
    assert channel_server.requests.count() == channel_server.requests.count("*shards.msgpack.zst")


@pytest.mark.parametrize("served", [True, False])
def test_a_solve_sees_packages_added_since_the_last_one(
    solver: RattlerSolver, own_channel: Path, served: bool
) -> None:
    with serving(own_channel) as server:
        url = server.url.rstrip("/") if served else own_channel.as_uri()
        for version in ("1.0", "2.0"):
            add_package(own_channel, version)
            assert versions(solve(solver, "newcomer", channels=[url])) == {"newcomer": version}


def test_two_processes_share_the_files_of_repodata(
    open_channels: Open, channel_server: ChannelServer
) -> None:
    url = channel_server.url.rstrip("/")
    open_channels().records(url, "linux-64", "libalpha")
    channel_server.requests.clear()
    open_channels().records(url, "linux-64", "libalpha")
    assert channel_server.requests.count("*/shards/*") == 0


def test_a_channel_that_does_not_exist_is_named(
    open_channels: Open, channel_server: ChannelServer, tmp_path: Path
) -> None:
    for url in (f"{channel_server.url}nothing-here", (tmp_path / "nothing").as_uri()):
        with pytest.raises(ChannelNotFoundError, match="nothing"):
            open_channels().state([url], LINUX)


def test_a_channel_without_noarch_says_what_is_missing(
    open_channels: Open, own_channel: Path
) -> None:
    shutil.rmtree(own_channel / "noarch")
    with pytest.raises(ChannelNotFoundError, match=r"noarch/repodata\.json"):
        open_channels().state([own_channel.as_uri()], LINUX)


def test_a_platform_that_a_channel_does_not_have_is_no_fault(
    open_channels: Open, channel: str
) -> None:
    open_channels().state([channel], ["linux-riscv64"])


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_error_is_transient(
    open_channels: Open, channel_server: ChannelServer, status: int
) -> None:
    channel_server.faults.add(Fault("*", status=status))
    with pytest.raises(ChannelUnavailableError, match=str(status)):
        open_channels().state([channel_server.url.rstrip("/")], LINUX)


def test_an_unreachable_server_is_a_transient_error(open_channels: Open) -> None:
    with pytest.raises(ChannelUnavailableError, match=r"127\.0\.0\.1:9"):
        open_channels().state(["http://127.0.0.1:9/channel"], LINUX)


def test_malformed_repodata_is_a_transient_error(
    solver: RattlerSolver, channel_server: ChannelServer
) -> None:
    url = channel_server.url.rstrip("/")
    solver.channels.state([url], LINUX)
    channel_server.faults.add(Fault("*/shards/*", status=500))
    with pytest.raises(ChannelUnavailableError):
        solve(solver, "libalpha", channels=[url])


@pytest.fixture(params=["basic", "token"])
def private(request: pytest.FixtureRequest, small_channel: Path) -> Iterator[ChannelServer]:
    """A channel that wants a user and password, or a token in its path."""
    requested = {"basic": {"basic": ("me", SECRET)}, "token": {"token": SECRET}}[request.param]
    with serving(small_channel, **requested) as server:  # type: ignore[arg-type]
        yield server


def credential_for(server: ChannelServer) -> Credential:
    url = server.url.rstrip("/")
    if server.token:
        return Credential(url_prefix=url, kind="token", secret=SECRET, base=url)
    return Credential(url_prefix=url, kind="basic", secret=f"me:{SECRET}")


@pytest.mark.parametrize("isolated", [True, False])
def test_a_private_channel_is_solved_with_and_leaves_no_secret_behind(
    open_channels: Open, private: ChannelServer, tmp_path: Path, isolated: bool
) -> None:
    channels = open_channels(credential_for(private))
    solver = RattlerSolver(cache=tmp_path / "r", channels=channels, isolated=isolated)
    lines: list[str] = []
    lock = solve(solver, "libalpha", channels=[private.url.rstrip("/")])
    solver.close()
    assert versions(lock) == {"libalpha": "2.1"}
    assert SECRET not in f"{lock.to_json()}{lines}"
    retained = [path for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert retained
    assert not any(SECRET.encode() in path.read_bytes() for path in retained)


def test_a_private_channel_without_credentials_is_refused_and_says_so(
    open_channels: Open, private: ChannelServer
) -> None:
    with pytest.raises((ChannelNotAllowedError, ChannelNotFoundError)):
        open_channels().state([private.url.rstrip("/")], LINUX)


def test_an_error_of_a_private_channel_shows_no_secret(
    open_channels: Open, private: ChannelServer, tmp_path: Path
) -> None:
    channels = open_channels(credential_for(private))
    solver = RattlerSolver(cache=tmp_path / "r", channels=channels, isolated=False)
    url = private.url.rstrip("/")
    channels.state([url], LINUX)
    private.faults.add(Fault("*", status=500))
    with pytest.raises(StoreError) as caught:
        solve(solver, "libalpha", channels=[url])
    assert SECRET not in f"{caught.value!r} {caught.value.details} {caught.value.__cause__!r}"


def test_a_secret_does_not_go_to_another_port_of_its_host(
    open_channels: Open, private: ChannelServer, channel_server: ChannelServer
) -> None:
    channels = open_channels(credential_for(private))
    urls = [private.url.rstrip("/"), channel_server.url.rstrip("/")]
    with pytest.raises(InvalidInputError, match="have the same host and path"):
        channels.state(urls, LINUX)
    assert not any("authorization" in request.headers for request in channel_server.requests)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://me:pw@host/c failed", "GET https://host/c failed"),
        ("https://host/t/abc-123/c/linux-64", "https://host/c/linux-64"),
        ("https://host/f?X-Amz-Signature=abc&x=1", "https://host/f?X-Amz-Signature=***&x=1"),
        ("no url here", "no url here"),
    ],
)
def test_messages_contain_no_secret(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_records_come_newest_first(open_channels: Open, channel: str) -> None:
    found = open_channels().records(channel, "linux-64", "libalpha")
    assert [package.version for package in found] == ["2.1", "2.0", "1.1", "1.0"]


def test_names_are_those_of_the_platform_and_of_all(open_channels: Open, channel: str) -> None:
    names = open_channels().names([channel], LINUX)
    assert {"libalpha", "hello-noarch"} <= set(names)
    assert names == sorted(names)


def test_a_description_counts_versions_and_lists_their_subdirs(
    open_channels: Open, channel: str, tmp_path: Path
) -> None:
    solver = RattlerSolver(cache=tmp_path / "r", channels=open_channels())
    found: list[Described] = []
    solver.describe(channel, LINUX, each=found.append, time_limit=timedelta(minutes=2))
    solver.close()
    entries = {described.entry.name: described.entry for described in found}
    alpha = entries["libalpha"]
    assert list(entries) == sorted(entries)
    [digests] = [each.digests for each in found if each.entry.name == "libalpha"]
    assert [len(digest) for digest in digests["linux-64"]] == [8] * len(digests["linux-64"])
    assert (alpha.latest_version, alpha.versions, alpha.subdirs) == ("2.1", 4, ("linux-64",))
    assert entries["license-gpl"].license.startswith("GPL")
