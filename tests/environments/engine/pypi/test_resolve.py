"""Resolution of the PyPI part beside the distributions of conda packages."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from condastore.errors import (
    ChannelUnavailableError,
    LeaseLostError,
    PypiError,
    SpecificationError,
    TimeLimitError,
    UnavailableError,
)
from environments.domain.lock import PlatformLock
from environments.domain.names import Credential
from environments.domain.progress import Cancelled, never
from environments.domain.records import PypiPackage
from environments.engine.channels.repodata import Channels
from environments.engine.pypi.resolve import PypiResolver
from environments.engine.solve.client import RattlerSolver
from environments.engine.solve.virtual_packages import virtual_packages
from tests.channels.conda_package import PackageFile, PackageSpec
from tests.channels.server import ChannelServer, Fault, serving
from tests.channels.simple_index import make_wheel, write_simple_index
from tests.environments.engine.package_fixtures import channel_of, packages_of
from tests.environments.engine.solver_fixtures import solve

PYTHON = ".".join(map(str, sys.version_info[:3]))
SECRET = "s3cret-of-mine"

Resolve = Callable[..., dict[str, PypiPackage]]


@pytest.fixture
def channels(tmp_path: Path) -> Iterator[Channels]:
    channels = Channels(cache=tmp_path / "repodata")
    yield channels
    channels.close()


@pytest.fixture
def resolver(channels: Channels, channel_server: ChannelServer, tmp_path: Path) -> PypiResolver:
    """Asks the sample index."""
    return PypiResolver(
        index_urls=[f"{channel_server.url}pypi/simple/"], cache=tmp_path / "w", channels=channels
    )


@pytest.fixture
def part(small_channel: Path) -> Callable[..., PlatformLock]:
    """The conda part: these packages of the small channel, by name or name-version."""
    known = packages_of(small_channel)

    def make(*names: str, platform: str = "linux-64") -> PlatformLock:
        return PlatformLock(platform=platform, conda=tuple(known[name] for name in names))

    return make


def lock(
    resolver: PypiResolver,
    conda: PlatformLock,
    *requirements: str,
    overrides: Sequence[str] = (),
    cancelled: Cancelled = never,
    **options: Any,
) -> dict[str, PypiPackage]:
    found = resolver.lock(
        requirements,
        conda,
        virtual_packages=virtual_packages(conda.platform, overrides),
        cancelled=cancelled,
        log=lambda line: None,
        **{"exclude_newer": None, "time_limit": timedelta(minutes=1), **options},
    )
    return {package.name: package for package in found}


def test_a_lock_names_wheels_their_digests_and_what_they_need(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    found = lock(resolver, part("python"), "tinyutil[colour]", "needs-tinyname<2")
    assert set(found) == {"tinyutil", "tinylinux", "tinycolour", "needs-tinyname", "tinyname",
                          "hello-noarch"}  # fmt: skip
    assert found["tinyutil"].requires == ("tinycolour", "tinylinux")
    assert all(len(package.sha256) == 64 for package in found.values())
    assert all(package.url.endswith(package.file_name) for package in found.values())
    assert all(package.size for package in found.values())


def test_distributions_of_conda_packages_are_fixed_and_not_locked_again(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    found = lock(resolver, part("python", "hello-noarch-1.1"), "needs-tinyname")
    assert set(found) == {"needs-tinyname", "tinyname"}
    assert found["needs-tinyname"].requires == ("hello-noarch", "tinyname")


def test_the_name_inside_a_conda_package_counts_not_its_own(
    resolver: PypiResolver, part: Callable[..., PlatformLock], tmp_path: Path
) -> None:
    brought = channel_of(
        tmp_path / "c",
        PackageSpec(
            "python-tinyname",
            "7.0",
            noarch="python",
            depends=["python"],
            files=[
                PackageFile.text(f"site-packages/{path}", f"Name: {path}\n")
                for path in (
                    "tinyname-1.0.dist-info/METADATA",
                    # What a package brought for itself is not there for others.
                    "tinyname/_vendor/tinycolour-9.9.dist-info/METADATA",
                )
            ],
        ),
    )
    conda = part("python")
    conda = PlatformLock(platform="linux-64", conda=(*conda.conda, brought["python-tinyname"]))
    provided = resolver.distributions.of_lock(conda, cancelled=never)
    assert {name: held.version for name, held in provided.items()} == {"tinyname": "1.0"}
    found = lock(resolver, conda, "needs-tinyname", "tinycolour")
    assert set(found) == {"needs-tinyname", "hello-noarch", "tinycolour"}
    assert "python-tinyname" in found["needs-tinyname"].requires


def test_an_older_release_is_chosen_if_the_newest_contradicts_conda(
    channels: Channels, part: Callable[..., PlatformLock], tmp_path: Path
) -> None:
    distributions = [
        make_wheel("app", "1.0", requires=["hello-noarch<2"]),
        make_wheel("app", "2.0", requires=["hello-noarch>=2"]),
    ]
    write_simple_index(tmp_path / "i", distributions)
    with serving(tmp_path / "i") as server:
        resolver = PypiResolver(
            index_urls=[f"{server.url}simple/"], cache=tmp_path / "w", channels=channels
        )
        found = lock(resolver, part("python", "hello-noarch-1.1"), "app")
    assert found["app"].version == "1.0"


def test_the_extras_of_a_conda_package_come_from_the_index(
    resolver: PypiResolver, part: Callable[..., PlatformLock], tmp_path: Path
) -> None:
    metadata = (
        "Metadata-Version: 2.1\nName: tool\nVersion: 1.0\nProvides-Extra: fast\n"
        "Requires-Dist: sdist-only\nRequires-Dist: tinycolour ; extra == 'fast'\n\nText.\n"
    )
    path = "site-packages/tool-1.0.dist-info/METADATA"
    brought = channel_of(
        tmp_path / "c",
        PackageSpec(
            "tool", "1.0", noarch="python", depends=["python"],
            files=[PackageFile.text(path, metadata)],
        ),
    )  # fmt: skip
    conda = PlatformLock(platform="linux-64", conda=(*part("python").conda, brought["tool"]))
    assert set(lock(resolver, conda, "tool[fast]")) == {"tinycolour"}
    assert lock(resolver, conda, "tool") == {}


def test_the_distributions_of_a_conda_package_are_read_once(
    channels: Channels, channel_server: ChannelServer, small_channel: Path, tmp_path: Path
) -> None:
    known = packages_of(small_channel, url=channel_server.url)
    conda = PlatformLock(platform="linux-64", conda=(known["python"], known["hello-noarch"]))
    for _ in range(2):
        resolver = PypiResolver(index_urls=[], cache=tmp_path / "w", channels=channels)
        assert "hello-noarch" in resolver.distributions.of_lock(conda, cancelled=never)
    requested = channel_server.requests.count("*/hello-noarch-*")
    assert requested
    assert resolver.distributions.of_lock(conda, cancelled=never)
    assert channel_server.requests.count("*/hello-noarch-*") == requested


@pytest.mark.parametrize(
    ("requirements", "said"),
    [
        (
            ["hello-noarch>=9"],
            "hello-noarch>=9, but the environment has hello-noarch 2.0 of the conda",
        ),
        (["needs-old-hello"], "hello-noarch 2.0 of the conda package hello-noarch"),
        (["sdist-only"], "sdist-only has no wheel"),
        (["no-such-project-anywhere"], "no-such-project-anywhere was not found"),
        (["tinymissing"], "project-that-does-not-exist"),
        (["tinyfuture"], "tinyfuture"),
        (["tinyutil>=99"], "tinyutil"),
        (["tinyplot==1.0", "tinyplot==1.1"], "tinyplot"),
    ],
)
def test_an_unsolvable_part_is_explained(
    resolver: PypiResolver,
    part: Callable[..., PlatformLock],
    tmp_path: Path,
    requirements: list[str],
    said: str,
) -> None:
    with pytest.raises(PypiError) as caught:
        lock(resolver, part("python", "hello-noarch-2.0"), *requirements)
    assert said in caught.value.message
    assert "/tmp" not in caught.value.message
    assert caught.value.hint is not None


def test_contradictions_with_conda_are_named_all_at_once(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    with pytest.raises(PypiError) as caught:
        lock(resolver, part("python", "hello-noarch-2.0"), "hello-noarch<1", "Hello.Noarch==1.1")
    assert len(caught.value.details["conda"]) == 2


def test_a_pip_part_without_python_gets_a_hint_to_add_it(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    with pytest.raises(PypiError, match="needs Python") as caught:
        lock(resolver, part("libalpha"), "tinyname")
    assert "python" in caught.value.hint


def test_every_invalid_requirement_is_named(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    with pytest.raises(SpecificationError) as caught:
        lock(
            resolver, part("python"), "tinyname", "not a name!", f"x @ https://me:{SECRET}@h/x.whl"
        )
    assert len(caught.value.faults) == 2
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("platform", "overrides", "expected"),
    [
        ("linux-64", (), "manylinux_2_28_x86_64"),
        ("linux-64", ("__glibc=2.17",), "manylinux_2_17_x86_64"),
        ("linux-64", ("__glibc=2.36",), "manylinux_2_34_x86_64"),
        ("osx-arm64", (), "macosx_11_0_arm64"),
        ("win-64", (), "win_amd64"),
    ],
)
def test_the_wheel_that_fits_the_platform_best_is_chosen(
    channels: Channels,
    part: Callable[..., PlatformLock],
    tmp_path: Path,
    platform: str,
    overrides: tuple[str, ...],
    expected: str,
) -> None:
    python = "cp{}{}".format(*PYTHON.split(".")[:2])
    platforms = ("manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64",
                 "macosx_11_0_arm64", "macosx_14_0_arm64", "win_amd64")  # fmt: skip
    wheels = [make_wheel("native", "1.0", tag=f"{python}-{python}-{tag}") for tag in platforms]
    write_simple_index(tmp_path / "i", wheels)
    with serving(tmp_path / "i") as server:
        resolver = PypiResolver(
            index_urls=[f"{server.url}simple/"], cache=tmp_path / "w", channels=channels
        )
        found = lock(resolver, part("python", platform=platform), "native", overrides=overrides)
    assert found["native"].file_name == f"native-1.0-{python}-{python}-{expected}.whl"


def test_markers_are_those_of_the_platform(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    requested = ["tinyutil", 'tinycolour; sys_platform == "darwin"', 'tinyname; os_name == "nt"']
    assert set(lock(resolver, part("python", platform="win-64"), *requested)) == {
        "tinyutil", "tinywin", "tinyname",
    }  # fmt: skip


def test_a_date_keeps_newer_wheels_out(
    resolver: PypiResolver, part: Callable[..., PlatformLock]
) -> None:
    cutoff = datetime(2021, 1, 1, tzinfo=UTC)
    assert set(lock(resolver, part("python"), "tinyold", exclude_newer=cutoff)) == {"tinyold"}
    with pytest.raises(PypiError):
        lock(resolver, part("python"), "tinyname", exclude_newer=cutoff)


def test_a_name_is_taken_from_the_first_index_that_has_it(
    channels: Channels, part: Callable[..., PlatformLock], tmp_path: Path
) -> None:
    write_simple_index(tmp_path / "a", [make_wheel("ours", "1.0")])
    write_simple_index(tmp_path / "b", [make_wheel("ours", "9.0"), make_wheel("theirs", "1.0")])
    with serving({"a": tmp_path / "a", "b": tmp_path / "b"}) as server:
        resolver = PypiResolver(
            index_urls=[f"{server.url}{name}/simple/" for name in "ab"],
            cache=tmp_path / "w",
            channels=channels,
        )
        found = lock(resolver, part("python"), "ours", "theirs")
    assert {name: package.version for name, package in found.items()} == {
        "ours": "1.0",
        "theirs": "1.0",
    }


def test_a_private_index_is_asked_with_its_credential_which_no_lock_shows(
    channels: Channels, part: Callable[..., PlatformLock], tmp_path: Path
) -> None:
    write_simple_index(tmp_path / "i", [make_wheel("ours", "1.0")])
    with serving(tmp_path / "i", basic=("me", SECRET)) as server:
        url = f"{server.url}simple/"
        credential = Credential(url_prefix=server.url.rstrip("/"), kind="basic",
                                secret=f"me:{SECRET}")  # fmt: skip
        private = PypiResolver(
            index_urls=[url],
            cache=tmp_path / "w",
            channels=channels,
            credentials=lambda asked: credential if credential.covers(asked) else None,
        )
        found = lock(private, part("python"), "ours")
        assert SECRET not in repr(found)
        with pytest.raises(PypiError):
            lock(
                PypiResolver(index_urls=[url], cache=tmp_path / "v", channels=channels),
                part("python"),
                "ours",
            )


def test_an_unreachable_index_is_a_transient_error(
    channels: Channels, part: Callable[..., PlatformLock], tmp_path: Path
) -> None:
    resolver = PypiResolver(
        index_urls=["http://127.0.0.1:9/simple/"], cache=tmp_path / "w", channels=channels
    )
    with pytest.raises(ChannelUnavailableError):
        lock(resolver, part("python"), "ours")


def test_a_cancel_and_a_time_limit_end_uv(
    resolver: PypiResolver, part: Callable[..., PlatformLock], channel_server: ChannelServer
) -> None:
    channel_server.faults.add(Fault("pypi/*", hang=60))
    with pytest.raises(LeaseLostError):
        lock(resolver, part("python"), "tinyname", cancelled=lambda: True)
    with pytest.raises(TimeLimitError):
        lock(resolver, part("python"), "tinyname", time_limit=timedelta(seconds=1))


def test_a_killed_uv_does_not_count_as_unsolvable(
    resolver: PypiResolver, part: Callable[..., PlatformLock], channel_server: ChannelServer
) -> None:
    channel_server.faults.add(Fault("pypi/*", hang=60))
    killed: list[int] = []

    def kill_uv() -> bool:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name() == "uv":
                    child.kill()
                    killed.append(child.pid)
        return False

    with pytest.raises(UnavailableError, match=r"uv was killed \(SIGKILL\)") as found:
        lock(resolver, part("python"), "tinyname", cancelled=kill_uv)
    assert killed
    assert found.value.transient


def test_a_solve_locks_both_parts(
    channels: Channels, resolver: PypiResolver, channel: str, tmp_path: Path
) -> None:
    solver = RattlerSolver(
        cache=tmp_path / "repodata", channels=channels, pypi=resolver, isolated=False
    )
    found = solve(solver, "python", "hello-noarch 1.1", channels=[channel], pip=["needs-tinyname"])
    (platform,) = found.platforms
    assert {package.name for package in platform.conda} == {"python", "pip", "hello-noarch"}
    assert {package.name for package in platform.pypi} == {"needs-tinyname", "tinyname"}
