"""pip as an added dependency of Python, as in conda and mamba."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from condastore.errors import UnsatisfiableError
from environments.domain.diff import shortest_chains, why
from environments.domain.lock import lacks_pip
from environments.domain.policy import Policy, parse_rule
from environments.domain.progress import never
from environments.engine.channels.repodata import Channels
from environments.engine.solve.client import RattlerSolver
from environments.engine.solve.policy_view import Rules
from tests.channels.channel_index import index_channel
from tests.channels.conda_package import PackageSpec, write_package
from tests.environments.engine.solver_fixtures import request, solve, versions


def _rules(*parsed):
    return Rules(policy=Policy(rules=parsed, version=repr(parsed)), now=0.0)


def _denied(effect="enforce", packages=("pip",)):
    return parse_rule(
        kind="packages-denied", effect=effect, name="no pip", settings={"packages": [*packages]}
    )


#: A rule that hides a name nobody asks for: the solver then reads through the policy view.
_UNRELATED = _rules(_denied(packages=("libbeta",)))


def without_pip(tmp_path: Path) -> str:
    """A channel with Python and no pip."""
    return channel_of(tmp_path / "without-pip", python("3.12.1"))


def python(version: str, *depends: str) -> PackageSpec:
    return PackageSpec("python", version, subdir="linux-64", depends=[*depends], license="MIT")


def channel_of(folder: Path, *packages: PackageSpec) -> str:
    folder.mkdir()
    for package in packages:
        write_package(package, folder)
    index_channel(folder)
    return folder.as_uri()


@pytest.mark.parametrize("rules", [None, _UNRELATED], ids=["plain", "policy-view"])
@pytest.mark.parametrize("spec", ["python", "hello-noarch"])
def test_python_brings_pip(solver, channel, spec, rules):
    assert versions(solve(solver, spec, channels=[channel], rules=rules))["pip"] == "24.0"


def test_the_solver_process_adds_pip_too(tmp_path, channel):
    cache = tmp_path / "repodata"
    isolated = RattlerSolver(cache=cache, channels=Channels(cache=cache, memo=timedelta(0)))
    try:
        assert "pip" in versions(solve(isolated, "python", channels=[channel]))
    finally:
        isolated.close()


def test_no_python_no_pip(solver, channel):
    assert versions(solve(solver, "libalpha", channels=[channel])) == {"libalpha": "2.1"}


@pytest.mark.parametrize("rules", [None, _UNRELATED], ids=["plain", "policy-view"])
def test_the_setting_switches_it_off(solver, channel, rules):
    lock = solve(
        solver, "python", channels=[channel], rules=rules, add_pip_as_python_dependency=False
    )
    assert "pip" not in versions(lock)
    assert lacks_pip(lock.platforms[0])


def test_a_pip_part_brings_pip_with_the_setting_off():
    requested = request(
        "python", channels=["https://a"], pip=["cowsay"], add_pip_as_python_dependency=False
    )
    assert requested.adds_pip("linux-64")


def test_the_lock_keeps_the_record_of_the_channel(solver, channel, small_channel):
    lock = solve(solver, "python", channels=[channel])
    [package] = [each for each in lock.platforms[0].conda if each.name == "python"]
    listed = json.loads((small_channel / "linux-64" / "repodata.json").read_text())
    assert [*package.depends] == listed["packages.conda"][package.file_name]["depends"]


def test_a_python_that_names_pip_itself_keeps_its_record(solver, tmp_path):
    pip = PackageSpec("pip", "25.0", noarch="python", depends=["python"], license="MIT")
    url = channel_of(tmp_path / "channel", python("3.12.1", "pip"), pip)
    lock = solve(solver, "python", channels=[url])
    assert {p.name: [*p.depends] for p in lock.platforms[0].conda} == {
        "python": ["pip"],
        "pip": ["python"],
    }


@pytest.mark.parametrize("rules", [None, _UNRELATED], ids=["plain", "policy-view"])
def test_a_channel_without_pip_solves_without_it(solver, tmp_path, rules):
    said: list[str] = []
    requested = request("python", channels=[without_pip(tmp_path)], rules=rules)
    lock = solver.solve(requested, cancelled=never, log=said.append)
    assert [*versions(lock)] == ["python"]
    assert any("without pip" in line for line in said)


def test_a_conflict_in_a_channel_without_pip_does_not_blame_pip(solver, tmp_path):
    with pytest.raises(UnsatisfiableError) as caught:
        solve(solver, "python 3.9.*", channels=[without_pip(tmp_path)])
    assert "pip" not in caught.value.message


def test_a_refused_pip_is_left_out(solver, channel):
    lock = solve(solver, "python", channels=[channel], rules=_rules(_denied()))
    assert "pip" not in versions(lock)


def test_a_refused_pip_that_was_asked_for_is_an_error(solver, channel):
    with pytest.raises(UnsatisfiableError, match=r"pip 24\.0 is denied"):
        solve(solver, "python", "pip", channels=[channel], rules=_rules(_denied()))


def test_a_pip_that_needs_approval_is_solved_with(solver, channel):
    lock = solve(solver, "python", channels=[channel], rules=_rules(_denied("ask")))
    assert "pip" in versions(lock)


def test_a_pip_that_does_not_fit_is_explained_with_the_way_out(solver, tmp_path):
    pip = PackageSpec("pip", "25.0", noarch="python", depends=["python >=3.12"], license="MIT")
    url = channel_of(tmp_path / "channel", python("3.9.1"), python("3.12.1"), pip)
    with pytest.raises(UnsatisfiableError) as caught:
        solve(solver, "python 3.9.*", channels=[url])
    assert "pip" in caught.value.message
    assert "administrator of the namespace" in caught.value.hint


def test_a_lower_channel_gives_no_pip_where_a_higher_one_has_the_name(solver, tmp_path):
    old = PackageSpec("pip", "19.0", noarch="python", depends=["python"], license="MIT")
    new = PackageSpec("pip", "25.0", noarch="python", depends=["python"], license="MIT")
    first = channel_of(tmp_path / "first", python("3.12.1"), old)
    second = channel_of(tmp_path / "second", new)
    assert versions(solve(solver, "python", channels=[first, second]))["pip"] == "19.0"


def test_pip_is_there_because_of_python(solver, channel):
    part = solve(solver, "hello-noarch", channels=[channel]).platforms[0]
    assert why(part, ["hello-noarch"], "pip") == (("hello-noarch", "python", "pip"),)
    assert shortest_chains(part, ["python"])["pip"] == ("python", "pip")
    assert why(part, ["hello-noarch", "pip"], "pip") == (("pip",),)
