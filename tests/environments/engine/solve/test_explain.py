"""Explanations of unsatisfiable requests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from condastore.errors import UnsatisfiableError
from environments.engine.solve.client import RattlerSolver
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageSpec, write_package
from tests.environments.engine.solver_fixtures import solve

MakeChannel = Callable[..., str]


def explain(solver: RattlerSolver, *specs: str, **options: Any) -> UnsatisfiableError:
    with pytest.raises(UnsatisfiableError) as caught:
        solve(solver, *specs, **options)
    return caught.value


@pytest.fixture
def make_channel(tmp_path: Path) -> MakeChannel:
    """Write packages as a channel; its URL."""

    def make(name: str, *specs: PackageSpec) -> str:
        for spec in specs:
            write_package(spec, tmp_path / name)
        index_channel(tmp_path / name)
        return (tmp_path / name).as_uri()

    return make


def package(name: str, version: str = "1.0", *depends: str, number: int = 0) -> PackageSpec:
    return PackageSpec(name, version, noarch="generic", depends=list(depends), build_number=number)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (
            ("conflict-left", "conflict-right"),
            (
                "conflict-left requires libalpha 1.* (through conflict-left-base 1.0) and "
                "conflict-right requires libalpha 2.* (through conflict-right-base 1.0): "
                "no libalpha satisfies both."
            ),
        ),
        (
            ("dangling",),
            "dangling requires package-that-does-not-exist >=1, which no channel has.",
        ),
        (
            ("hello-plugin", "hello-noarch 2.*"),
            (
                "You ask for hello-noarch 2.* and hello-plugin requires hello-noarch "
                ">=1.0,<2.0a0: no hello-noarch satisfies both."
            ),
        ),
        (("legacy-app", "apptool 2.*"), "legacy-app allows only libbeta <2.0a0"),
        (("alpha-guard", "libalpha 2.*"), "alpha-guard allows only libalpha <2.0a0"),
        (("needs-win",), "needs-win requires __win, which linux-64 is not."),
        (("needs-cuda",), "`virtual-packages: [__cuda=12.0]`"),
        (("needs-future-glibc",), "assumed to have __glibc=2.28"),
        (("needs-avx2",), "`virtual-packages: [__archspec=1=x86_64_v3]`"),
        (("__cuda >=11",), "`virtual-packages: [__cuda=11]`"),
        (("withdrawn 1.1.*",), "withdrawn 1.1.* was revoked by its channel."),
        (("withdrawn 1.2.*",), "withdrawn 1.2 was removed by"),
        (("libalpha 99",), "libalpha 99 does not exist; available: 1.0, 1.1, 2.0, 2.1."),
        (("libalpha 2.1 other_7",), "No build of libalpha matches"),
        (("libalhpa",), "No channel has libalhpa; did you mean libalpha?"),
        (("libalpha 1.*", "libalpha 2.*"), "no libalpha satisfies both."),
    ],
)
def test_the_reason_quotes_the_requirements(
    solver: RattlerSolver, channel: str, specs: tuple[str, ...], said: str
) -> None:
    message = explain(solver, *specs, channels=[channel]).message
    assert said in message
    assert message.startswith("On linux-64: ")
    assert not any(sign in message for sign in "├└│")


@pytest.mark.parametrize(
    ("specs", "hint"),
    [
        (("libalhpa",), "Correct the name of the package."),
        (("entirely-unknown-name",), "Check the name of the package, or add the channel"),
        (("libalpha 99",), "Change or remove this requirement."),
        (("libalpha 1.*", "libalpha 2.*"), "requirements that exclude each other"),
        (("libalhpa", "libalpha 99"), "Correct each of the requirements"),
    ],
)
def test_the_hint_names_the_next_step_for_the_reason(
    solver: RattlerSolver, channel: str, specs: tuple[str, ...], hint: str
) -> None:
    assert hint in explain(solver, *specs, channels=[channel]).hint


def test_only_conflicting_requirements_are_named(solver: RattlerSolver, channel: str) -> None:
    error = explain(
        solver,
        *("python", "hello-noarch", "conflict-left", "license-mit", "conflict-right", "undated"),
        channels=[channel],
    )
    (conflict,) = error.details["conflicts"]
    assert conflict["requirements"] == ["conflict-left", "conflict-right"]
    assert conflict["chain"] == [
        "conflict-left → conflict-left-base 1.0 → libalpha 1.*",
        "conflict-right → conflict-right-base 1.0 → libalpha 2.*",
    ]
    assert conflict["platform"] == "linux-64"


def test_all_reasons_are_reported_together(solver: RattlerSolver, channel: str) -> None:
    error = explain(
        solver,
        *("nonexistent", "libalpha 99", "needs-cuda", "conflict-left", "conflict-right"),
        channels=[channel],
    )
    assert [item["requirement"] for item in error.details["missing"]] == ["nonexistent"]
    assert [conflict["requirements"] for conflict in error.details["conflicts"]] == [
        ["libalpha 99"],
        ["needs-cuda"],
        ["conflict-left", "conflict-right"],
    ]


def test_each_platform_has_its_own_reason(solver: RattlerSolver, channel: str) -> None:
    error = explain(
        solver, "needs-linux", channels=[channel], platforms=["linux-64", "osx-arm64", "win-64"]
    )
    assert {conflict["platform"] for conflict in error.details["conflicts"]} == {
        "osx-arm64",
        "win-64",
    }


def test_a_package_for_other_platforms_only_is_reported(
    solver: RattlerSolver, make_channel: MakeChannel, tmp_path: Path
) -> None:
    spec = PackageSpec("tool", "1.0", subdir="win-64")
    url = make_channel("c", spec, package("other"))
    error = explain(solver, "tool", channels=[url], platforms=["linux-64", "win-64"])
    assert "it exists only for win-64" in error.message


def test_a_release_that_is_too_new_is_reported(solver: RattlerSolver, channel: str) -> None:
    young = explain(solver, "fresh-release 1.2", channels=[channel], exclude_newer="7 days")
    undated = explain(solver, "undated", channels=[channel], exclude_newer="7 days")
    assert "exclude-newer" in young.message
    assert "undated 1.0 has no date" in undated.message


def test_the_order_of_channels_is_reported_if_it_is_the_reason(
    solver: RattlerSolver, channel: str, make_channel: MakeChannel
) -> None:
    first = make_channel("first", package("libalpha", "0.1"))
    message = explain(solver, "libalpha 2.*", channels=[first, channel]).message
    assert (
        f"libalpha 2.* is only in the channel {channel}; {first} has a higher priority" in message
    )
    assert "strict channel priority" in message


def test_a_rule_of_the_namespace_is_named(solver: RattlerSolver, channel: str) -> None:
    message = explain(
        solver, "libalpha 2.*", channels=[channel], constraints=("libalpha <1.1",)
    ).message
    assert "the rule “libalpha <1.1” of this namespace" in message


def test_a_conflict_behind_every_choice_names_those_that_ask_for_it(
    solver: RattlerSolver, make_channel: MakeChannel
) -> None:
    # No version of `app` alone decides: each of its releases wants another `base`.
    url = make_channel(
        "c",
        package("app", "1.0", "base 1.*"),
        package("app", "2.0", "base 2.*"),
        package("base", "1.0"),
        package("base", "2.0"),
        package("base", "3.0"),
        package("modern", "1.0", "base >=3"),
        package("bystander"),
    )
    error = explain(solver, "bystander", "app", "modern", channels=[url])
    (conflict,) = error.details["conflicts"]
    assert conflict["requirements"] == ["app", "modern"]
    assert "base" in conflict["reason"]


def test_two_unrelated_conflicts_are_both_found(
    solver: RattlerSolver, make_channel: MakeChannel
) -> None:
    url = make_channel(
        "c",
        package("one", "1.0", "base 1.*"),
        package("two", "1.0", "base 2.*"),
        package("three", "1.0", "core 1.*"),
        package("four", "1.0", "core 2.*"),
        *(package(name, version) for name in ("base", "core") for version in ("1.0", "2.0")),
    )
    error = explain(solver, "one", "three", "two", "four", channels=[url])
    assert sorted(conflict["requirements"] for conflict in error.details["conflicts"]) == [
        ["one", "two"],
        ["three", "four"],
    ]


def test_a_conflict_that_only_a_search_finds_is_named_without_a_chain(
    solver: RattlerSolver, make_channel: MakeChannel
) -> None:
    # Each pair of the three has an answer, and following what must be leads nowhere.
    url = make_channel(
        "c",
        *(package("a", str(v), f"x {v}", number=v) for v in (1, 2)),
        *(package("b", str(v), f"x {v}", f"y {3 - v}", number=v) for v in (1, 2)),
        *(package("c", str(v), f"x {v}", f"y {v}", number=v) for v in (1, 2)),
        *(package(name, str(v)) for name in ("x", "y") for v in (1, 2)),
    )
    error = explain(solver, "a", "b", "c", channels=[url], timeout=timedelta(seconds=30))
    (conflict,) = error.details["conflicts"]
    assert conflict["requirements"] == ["b", "c"]
    assert conflict["reason"]
