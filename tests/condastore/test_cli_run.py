"""`condastore run`: a command in an environment of this machine."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.condastore.command_line import COMMAND, Person
from tests.condastore.scripted_server import answering


def make_prefix(folder: Path, *, says: str = "hello") -> Path:
    """A prefix with one command, `greet`."""
    (folder / "conda-meta").mkdir(parents=True)
    (folder / "bin").mkdir()
    script(folder / "bin" / "greet", f'echo {says} "$@"')
    return folder


def script(path: Path, *lines: str, interpreter: str = "/bin/sh") -> None:
    path.write_text("\n".join([f"#!{interpreter}", *lines]) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with research/ml at build 2, and build 1 beside it."""
    data = tmp_path / "store"
    for number in (1, 2):
        name = f"{number}-0123456789ab-ml"
        make_prefix(data / "prefixes" / "research" / name, says=f"build {number}")
    make_prefix(data / "prefixes" / "research" / "1-0123456789ab-other-ml", says="other")
    link = data / "envs" / "research" / "ml"
    link.parent.mkdir(parents=True)
    link.symlink_to(data / "prefixes" / "research" / "2-0123456789ab-ml")
    return data


@pytest.fixture
def offline(person: Person, data: Path) -> Person:
    return replace(person, variables={"CONDASTORE_DATA": str(data)})


def built(prefix: Path | str, *, state: str = "READY") -> dict[str, object]:
    environment = {"name": "ml", "namespace": {"name": "research"}}
    return {
        "data": {
            "build": {
                "ref": "research/ml:2",
                "number": 2,
                "state": state,
                "platform": "linux-64",
                "prefixPath": str(prefix),
                "environment": environment,
            }
        }
    }


def test_the_folder_is_the_one_that_the_server_names(person: Person, data: Path):
    folder = data / "prefixes" / "research" / "1-0123456789ab-ml"
    with answering({"Prefix": lambda _: built(folder)}) as server:
        ended = replace(person, url=server.url).does("run", "research/ml", "greet", "you")
        assert ended.succeeded().out == "build 1 you\n"
        assert server.asked[0].variables["number"] == "current"


def test_an_environment_that_is_not_on_this_machine_says_what_to_do(person: Person):
    with answering({"Prefix": lambda _: built("/nowhere/at/all")}) as server:
        ended = replace(person, url=server.url).does("run", "research/ml", "--", "greet")
    assert ended.status == 4
    assert "/nowhere/at/all" in ended.err
    assert "condastore env export research/ml:2 --format explicit.txt" in ended.err


def test_an_archived_build_says_how_to_restore_it(person: Person):
    with answering({"Prefix": lambda _: built("", state="ARCHIVED")}) as server:
        ended = replace(person, url=server.url).does("run", "research/ml:2", "greet")
    assert ended.status == 4
    assert "condastore env restore research/ml:2" in ended.err


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_a_build_that_came_to_nothing_says_where_the_reason_is(person: Person, state: str):
    with answering({"Prefix": lambda _: built("", state=state)}) as server:
        ended = replace(person, url=server.url).does("env", "path", "research/ml:2")
    assert ended.status == 4
    assert "condastore env log research/ml:2" in ended.err


def test_without_the_server_the_current_folder_is_used(offline: Person):
    ended = offline.does("run", "research/ml", "--", "greet").succeeded()
    assert ended.out == "build 2\n"
    assert "cannot be reached" in ended.err


def test_without_the_server_a_build_is_found_by_its_number(offline: Person):
    assert offline.does("run", "research/ml:1", "greet").succeeded().out == "build 1\n"


def test_without_the_server_and_the_folder_nothing_runs(offline: Person, person: Person):
    assert offline.does("run", "research/absent", "greet").status == 5
    assert offline.does("run", "research/ml:prod", "greet").status == 5
    assert person.does("run", "research/ml", "greet").status == 5


def test_the_status_of_the_command_is_passed_on(offline: Person):
    assert offline.does("run", "research/ml", "sh", "-c", "exit 42").status == 42


def test_options_after_the_environment_belong_to_the_command(offline: Person):
    ended = offline.does("run", "research/ml", "greet", "--help", "--json", "-x", "--")
    assert ended.succeeded().out == "build 2 --help --json -x --\n"


def test_a_command_that_is_not_there_ends_with_127(offline: Person):
    ended = offline.does("run", "research/ml", "no-such-command")
    assert ended.status == 127
    assert "no command 'no-such-command' in research/ml:2" in ended.err


def test_no_command_at_all_is_a_mistake(offline: Person):
    assert offline.does("run", "research/ml").status == 2
    assert offline.does("run", "research/ml", "--").status == 2


def test_the_variables_of_conda_of_packages_and_of_the_specification_are_set(
    offline: Person, data: Path
):
    prefix = (data / "envs" / "research" / "ml").resolve()
    packages = prefix / "etc" / "conda" / "env_vars.d"
    packages.mkdir(parents=True)
    (packages / "tool.json").write_text(json.dumps({"FROM_PACKAGE": "p", "BOTH": "package"}))
    state = {"version": 1, "env_vars": {"MODE": "a b", "BOTH": "own", "GONE": "***unset***"}}
    (prefix / "conda-meta" / "state").write_text(json.dumps(state))
    person = replace(
        offline,
        variables={**offline.variables, "GONE": "x", "VIRTUAL_ENV": "/x"},
    )
    ended = person.does("run", "research/ml", "env").succeeded()
    found = dict(line.split("=", 1) for line in ended.out.splitlines() if "=" in line)
    assert found["CONDA_PREFIX"] == str(prefix)
    assert found["CONDA_DEFAULT_ENV"] == "research/ml"
    assert found["CONDASTORE_BUILD"] == "research/ml:2"
    assert found["PATH"].startswith(f"{prefix}/bin:")
    assert (found["FROM_PACKAGE"], found["BOTH"], found["MODE"]) == ("p", "own", "a b")
    assert not {"GONE", "VIRTUAL_ENV"} & found.keys()


def test_activation_scripts_of_packages_run_first(offline: Person, data: Path):
    prefix = (data / "envs" / "research" / "ml").resolve()
    folder = prefix / "etc" / "conda" / "activate.d"
    folder.mkdir(parents=True)
    (folder / "a tool.sh").write_text('export TOOL_HOME="$CONDA_PREFIX/tool"\n')
    (folder / "b.sh").write_text('export SECOND="$TOOL_HOME/second"\n')
    ended = offline.does(
        "run", "research/ml", "sh", "-c", 'echo "$SECOND" "$1"; exit 7', "_", "a b"
    )
    assert ended.out == f"{prefix}/tool/second a b\n"
    assert ended.status == 7


def test_a_switch_meanwhile_does_not_disturb_what_runs(offline: Person, data: Path):
    link = data / "envs" / "research" / "ml"
    program = 'read _; echo "$CONDA_PREFIX"; greet'
    with offline.start("run", "research/ml", "sh", "-c", program, stdin=-1) as process:
        assert process.stdin is not None
        other = link.with_name("next")
        other.symlink_to(data / "prefixes" / "research" / "1-0123456789ab-ml")
        while process.poll() is None and not _is_running(process.pid, "sh"):
            pass
        other.rename(link)
        out, _ = process.communicate("\n", timeout=60)
    assert out.splitlines()[1] == "build 2"


def _is_running(pid: int, name: str) -> bool:
    """The command has taken the place of ours."""
    return Path(f"/proc/{pid}/comm").read_text().strip() == name


def test_it_is_the_first_line_of_a_script(offline: Person, tmp_path: Path):
    folder = tmp_path / "commands"
    folder.mkdir()
    script(folder / "condastore", f'exec {" ".join(COMMAND)} "$@"')
    program = tmp_path / "program"
    script(
        program,
        'echo "$0" "$@" from "$CONDASTORE_BUILD"',
        interpreter="/usr/bin/env -S condastore run research/ml sh",
    )
    person = replace(
        offline,
        variables={**offline.variables, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
    )
    done = subprocess.run(
        [program, "--verbose"], env=person.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{program} --verbose from research/ml:2\n"


def test_a_folder_that_is_for_others_says_who_opens_it(offline: Person, data: Path):
    folder = data / "prefixes" / "research" / "2-0123456789ab-ml"
    without_powers: list[str] = []
    if os.geteuid() == 0:  # to root alone nothing is closed
        os.chown(folder, 65123, 65123)
        without_powers = [
            "setpriv",
            "--securebits=+noroot",
            "--inh-caps=-all",
            "--bounding-set=-all",
        ]
    folder.chmod(0o700 if without_powers else 0)
    try:
        answer = subprocess.run(
            [*without_powers, *COMMAND, "run", "research/ml", "--", "greet"],
            env=offline.environ,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        folder.chmod(0o700)
    assert answer.returncode != 0
    assert "is not for your account" in answer.stderr
    assert "CONDASTORE_NAMESPACE_GROUPS" in answer.stderr
