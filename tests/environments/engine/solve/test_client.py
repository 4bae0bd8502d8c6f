"""Solves: chosen packages per platform, limits of time and memory, and imported locks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from condastore.errors import (
    ChannelUnavailableError,
    InvalidInputError,
    LeaseLostError,
    RequestError,
    SpecificationError,
    StoreError,
    TimeLimitError,
    UnsatisfiableError,
)
from environments.domain.lock import Lock, PlatformLock
from environments.domain.lockfiles import read_explicit
from environments.domain.progress import never
from environments.engine.channels.repodata import Channels
from environments.engine.solve.client import RattlerSolver, to_rattler
from environments.engine.solve.process import SolverProcesses
from environments.engine.solve.solve import Work, solve_conda
from environments.engine.solve.virtual_packages import virtual_packages
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageSpec, write_package
from tests.channels.server import ChannelServer, Fault
from tests.environments.engine.package_fixtures import packages_of
from tests.environments.engine.solver_fixtures import request, solve, versions


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[RattlerSolver]:
    """As in production: rattler in a process of its own."""
    cache = tmp_path / "repodata"
    solver = RattlerSolver(cache=cache, channels=Channels(cache=cache, memo=timedelta(0)))
    yield solver
    solver.close()


def test_the_newest_versions_that_fit_are_chosen(solver: RattlerSolver, channel: str) -> None:
    lock = solve(solver, "demo-stack 2023.*", "legacy-app", channels=[channel])
    assert versions(lock)["libalpha"] == "1.1"
    assert versions(lock)["legacy-app"] == "0.9"


def test_dependencies_come_before_what_needs_them(solver: RattlerSolver, channel: str) -> None:
    order = list(versions(solve(solver, "hello-plugin", channels=[channel])))
    assert order.index("python") < order.index("hello-noarch") < order.index("hello-plugin")


def test_a_lock_holds_the_channels_complete_records(
    solver: RattlerSolver, channel: str, small_channel: Path
) -> None:
    lock = solve(solver, "libalpha 2.0", channels=[channel])
    (package,) = lock.platforms[0].conda
    listed = json.loads((small_channel / "linux-64" / "repodata.json").read_text())
    record = {**listed["packages"], **listed["packages.conda"]}[package.file_name]
    assert package.channel == channel
    assert package.url == f"{channel}/linux-64/{package.file_name}"
    assert {key: package.record[key] for key in record if record[key]} == {
        key: value for key, value in record.items() if value
    }


def test_a_package_survives_the_way_to_rattler_and_back(
    solver: RattlerSolver, channel: str
) -> None:
    for package in solve(solver, "hello-plugin", channels=[channel]).platforms[0].conda:
        record = to_rattler(package)
        assert (record.name.normalized, str(record.version)) == (package.name, package.version)
        assert record.sha256 is not None
        assert record.sha256.hex() == package.sha256


def test_several_platforms_have_each_their_own_packages(
    solver: RattlerSolver, channel: str
) -> None:
    platforms = ("linux-64", "osx-arm64", "win-64")
    lock = solve(solver, "libalpha", channels=[channel], platforms=platforms)
    assert [part.platform for part in lock] == list(platforms)
    assert [part.conda[0].subdir for part in lock] == list(platforms)


def test_a_solve_for_another_platform_ignores_the_machine_it_runs_on(
    solver: RattlerSolver, channel: str
) -> None:
    assert versions(
        solve(solver, "needs-win", channels=[channel], platforms=["win-64"]), "win-64"
    ) == {"needs-win": "1.0"}
    with pytest.raises(UnsatisfiableError, match="On osx-arm64"):
        solve(solver, "needs-linux", channels=[channel], platforms=["linux-64", "osx-arm64"])


def test_a_virtual_package_can_be_added_changed_and_taken_away(
    solver: RattlerSolver, channel: str
) -> None:
    solve(solver, "needs-cuda", channels=[channel], virtual_packages=["__cuda=12.4"])
    solve(solver, "needs-future-glibc", channels=[channel], virtual_packages=["__glibc=99"])
    with pytest.raises(UnsatisfiableError, match="needs-glibc"):
        solve(solver, "needs-glibc", channels=[channel], virtual_packages=["__glibc="])


@pytest.mark.parametrize(
    ("platform", "overrides", "expected"),
    [
        ("linux-64", (), "__glibc=2.28=0"),
        ("linux-64", ("__glibc=2.17",), "__glibc=2.17=0"),
        ("linux-64", ("__archspec=1=x86_64_v3",), "__archspec=1=x86_64_v3"),
        ("linux-64", ("__cuda",), "__cuda=0=0"),
        ("osx-arm64", ("__osx=14.2",), "__osx=14.2=0"),
    ],
)
def test_an_override_replaces_by_name(
    platform: str, overrides: tuple[str, ...], expected: str
) -> None:
    assert expected in virtual_packages(platform, overrides)


def test_an_override_for_another_system_does_nothing() -> None:
    assert virtual_packages("osx-arm64", ["__glibc=2.40"]) == virtual_packages("osx-arm64")


@pytest.mark.parametrize("override", ["cuda=12", "__cuda=1:x!"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(InvalidInputError):
        virtual_packages("linux-64", [override])


def test_a_date_keeps_newer_packages_out(solver: RattlerSolver, channel: str) -> None:
    young = solve(solver, "fresh-release", channels=[channel])
    week = solve(solver, "fresh-release", channels=[channel], exclude_newer="7 days")
    year = solve(solver, "fresh-release", channels=[channel], exclude_newer="P365D")
    assert [versions(lock)["fresh-release"] for lock in (young, week, year)] == [
        "1.2",
        "1.1",
        "1.0",
    ]


def test_constraints_hold_without_being_installed(solver: RattlerSolver, channel: str) -> None:
    rules = ("libalpha <2", "libbeta <1")
    lock = solve(solver, "libalpha", channels=[channel], constraints=rules)
    assert versions(lock) == {"libalpha": "1.1"}


def test_locked_packages_stay_if_they_still_fit(solver: RattlerSolver, channel: str) -> None:
    old = solve(solver, "libalpha 1.0", channels=[channel])
    lock = solve(solver, "libalpha", "license-mit", channels=[channel], locked=old)
    assert versions(lock)["libalpha"] == "1.0"


def test_the_first_channel_that_has_a_name_is_the_only_one_for_it(
    solver: RattlerSolver, channel: str, tmp_path: Path
) -> None:
    write_package(PackageSpec("libalpha", "0.1", noarch="generic"), tmp_path / "first")
    index_channel(tmp_path / "first")
    first = (tmp_path / "first").as_uri()
    assert versions(solve(solver, "libalpha", channels=[first, channel])) == {"libalpha": "0.1"}
    assert versions(solve(solver, "libalpha", channels=[channel, first])) == {"libalpha": "2.1"}


def test_a_record_without_sha256_is_refused_by_name(
    solver: RattlerSolver, own_channel: Path
) -> None:
    path = own_channel / "linux-64" / "repodata.json"
    repodata = json.loads(path.read_text())
    for record in (*repodata["packages"].values(), *repodata["packages.conda"].values()):
        record.pop("sha256", None)
    path.write_text(json.dumps(repodata))
    with pytest.raises(RequestError, match=r"No sha256 is known for libalpha-2\.1"):
        solve(solver, "libalpha", channels=[own_channel.as_uri()])


def test_every_requirement_that_cannot_be_read_is_named_at_once(
    solver: RattlerSolver, channel: str
) -> None:
    with pytest.raises(SpecificationError) as caught:
        solve(solver, "libalpha >=>2", "python", "bad name[", channels=[channel])
    assert len(caught.value.faults) == 2
    assert "libalpha >=>2" in str(caught.value)


def test_a_platform_that_is_unknown_is_refused(solver: RattlerSolver, channel: str) -> None:
    with pytest.raises(StoreError, match="amiga-68k"):
        solve(solver, "libalpha", channels=[channel], platforms=["amiga-68k"])


def test_several_threads_get_each_their_own_answer(isolated: RattlerSolver, channel: str) -> None:
    requested = ["1.0", "1.1", "2.0", "2.1"]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda version: versions(
                    solve(isolated, f"libalpha {version}", channels=[channel])
                )["libalpha"],
                requested,
            )
        )
    assert found == requested


def test_a_separate_process_gives_the_same_solution(
    isolated: RattlerSolver, solver: RattlerSolver, channel: str
) -> None:
    lines: list[str] = []
    here = solve(solver, "hello-plugin", channels=[channel])
    there = isolated.solve(
        request("hello-plugin", channels=[channel]), cancelled=never, log=lines.append
    )
    assert here == there
    assert any("4 packages" in line for line in lines)
    with pytest.raises(UnsatisfiableError) as caught:
        solve(isolated, "conflict-left", "conflict-right", channels=[channel])
    assert caught.value.details["conflicts"]


def test_a_solver_that_was_killed_is_started_again(isolated: RattlerSolver, channel: str) -> None:
    solve(isolated, "libalpha", channels=[channel])
    assert isolated._processes is not None
    idle = isolated._processes._idle
    assert idle is not None
    idle.process.kill()
    idle.process.wait()
    assert versions(solve(isolated, "libalpha", channels=[channel])) == {"libalpha": "2.1"}


def test_a_cancel_ends_the_solve_and_its_process(
    isolated: RattlerSolver, channel_server: ChannelServer
) -> None:
    # The state is seen with HEAD; the answer to the solver's GET never comes.
    channel = channel_server.url.rstrip("/")
    isolated.channels.state([channel], ["linux-64"])
    cancelled = threading.Event()
    threading.Timer(1.0, cancelled.set).start()
    hang = Fault("*/repodata_shards.msgpack.zst", hang=60, hang_after=10)
    channel_server.faults.add(hang)
    with pytest.raises(LeaseLostError):
        isolated.solve(
            request("libalpha", channels=[channel]), cancelled=cancelled.is_set, log=print
        )
    assert isolated._processes is not None
    assert isolated._processes._idle is None


def test_a_solve_that_takes_too_long_is_ended(
    solver: RattlerSolver, channel_server: ChannelServer
) -> None:
    channel_server.faults.add(Fault("*/repodata_shards.msgpack.zst", hang=60, hang_after=10))
    with pytest.raises(TimeLimitError):
        solve(
            solver,
            "libalpha",
            channels=[channel_server.url.rstrip("/")],
            timeout=timedelta(seconds=1),
        )


def test_a_solve_that_takes_too_much_memory_is_ended(tmp_path: Path, channel: str) -> None:
    cache = tmp_path / "repodata"
    solver = RattlerSolver(cache=cache, channels=Channels(cache=cache), memory_limit=1)
    with pytest.raises(ChannelUnavailableError, match=r"takes more than .* of memory"):
        solve(solver, "conflict-left", "conflict-right", channels=[channel])
    assert solver._processes is not None
    assert solver._processes._idle is None
    solver.close()


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (("conflict-left", "conflict-right"), "libalpha"),
        (("hello-plugin", "hello-noarch 2.*"), "hello-noarch"),
        (("legacy-app", "apptool 2.*"), "libbeta"),
    ],
)
def test_a_conflict_is_found_without_asking_the_solver(
    solver: RattlerSolver, channel: str, specs: tuple[str, ...], expected: str
) -> None:
    requested = request(*specs, channels=[channel])
    work = Work(
        request=requested,
        cutoff=None,
        states=solver.channels.observe([channel], ["linux-64"]),
        deadline=time.monotonic() + 60,
        explain_only=True,
    )
    with pytest.raises(UnsatisfiableError, match=f"no {expected} satisfies both"):
        solve_conda(solver.channels, work, cancelled=never, log=print)


def test_no_process_outlives_the_one_that_started_it(tmp_path: Path, channel: str) -> None:
    processes = SolverProcesses(cache=tmp_path, memory_limit=1 << 30, idle_memory=1 << 30)
    worker = processes._start(frozenset())
    worker.link.close()  # as the system does for a process that was killed
    end = time.monotonic() + 20
    while worker.process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    assert worker.process.poll() is not None


def test_an_idle_process_with_too_much_memory_is_replaced(tmp_path: Path, channel: str) -> None:
    cache = tmp_path / "repodata"
    solver = RattlerSolver(cache=cache, channels=Channels(cache=cache), idle_memory=1)
    solve(solver, "libalpha", channels=[channel])
    assert solver._processes is not None
    assert solver._processes._idle is None
    solver.close()


# Locks that people bring


def _brought(digests: Mapping[str, str]) -> Lock:
    """An explicit list of URLs with their digests."""
    lines = [f"{url}#{digest}" for url, digest in digests.items()]
    return read_explicit("\n".join(["@EXPLICIT", *lines]), default_platform="linux-64")


def test_an_imported_lock_is_completed_from_its_channel(
    solver: RattlerSolver, small_channel: Path
) -> None:
    known = packages_of(small_channel)
    requested = [known["hello-plugin"], known["hello-noarch-1.1"], known["python"]]
    brought = _brought({package.url: f"sha256:{package.sha256}" for package in requested})
    lock = solver.complete_lock(brought, cancelled=never, log=print)
    assert (
        lock.digest
        == Lock(
            channels=(), platforms=(PlatformLock(platform="linux-64", conda=tuple(requested)),)
        ).digest
    )
    assert list(versions(lock)) == ["python", "hello-noarch", "hello-plugin"]
    assert {package.size for package in lock.platforms[0].conda} == {p.size for p in requested}


def test_a_list_without_hashes_is_completed_from_what_its_channel_lists(
    solver: RattlerSolver, small_channel: Path
) -> None:
    known = packages_of(small_channel)
    requested = [known["python"], known["hello-noarch-1.1"]]
    lines = [package.url for package in requested]
    brought = read_explicit("\n".join(["@EXPLICIT", *lines]), default_platform="linux-64")
    lock = solver.complete_lock(brought, cancelled=never, log=print)
    assert {(p.url, p.sha256) for p in lock.platforms[0].conda} == {
        (package.url, package.sha256) for package in requested
    }


def test_a_package_without_hash_that_its_channel_does_not_list_is_refused(
    solver: RattlerSolver, own_channel: Path
) -> None:
    packages = packages_of(own_channel)
    gone, bare = packages["libalpha-1.0"], packages["libbeta"]
    path = own_channel / "linux-64" / "repodata.json"
    repodata = json.loads(path.read_text())
    del repodata["packages.conda"][gone.file_name]
    for name in ("md5", "sha256"):
        repodata["packages.conda"][bare.file_name].pop(name, None)
    path.write_text(json.dumps(repodata))
    brought = read_explicit(f"@EXPLICIT\n{gone.url}\n{bare.url}", default_platform="linux-64")
    with pytest.raises(SpecificationError) as caught:
        solver.complete_lock(brought, cancelled=never, log=print)
    assert {fault.message for fault in caught.value.faults} == {
        f"The list has no hash for {gone.file_name}, and {gone.channel} does not list it.",
        f"The list has no hash for {bare.file_name}, and {bare.channel} has no hash of it.",
    }
    assert all("--sha256" in fault.hint for fault in caught.value.faults)


def test_an_unlisted_package_is_described_by_itself(
    solver: RattlerSolver, own_channel: Path
) -> None:
    package = packages_of(own_channel)["libalpha-1.0"]
    path = own_channel / "linux-64" / "repodata.json"
    repodata = json.loads(path.read_text())
    del repodata["packages.conda"][package.file_name]
    path.write_text(json.dumps(repodata))
    brought = _brought({package.url: package.md5})
    lock = solver.complete_lock(brought, cancelled=never, log=print)
    (found,) = lock.platforms[0].conda
    assert found.depends == package.depends
    assert (found.build_number, found.license) == (package.build_number, package.license)
    assert found.md5 == package.md5


def test_all_wrong_digests_and_missing_packages_are_reported_together(
    solver: RattlerSolver, small_channel: Path
) -> None:
    known = packages_of(small_channel)
    wrong, lost = known["libalpha"], known["libbeta"].url.replace("libbeta-", "libgamma-")
    brought = _brought({wrong.url: "sha256:" + "0" * 64, lost: "0" * 32})
    with pytest.raises(SpecificationError) as caught:
        solver.complete_lock(brought, cancelled=never, log=print)
    assert {fault.where for fault in caught.value.faults} == {wrong.url, lost}
