"""The command line against a whole running system: what a data scientist does in a day."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.condastore.command_line import Person
from tests.condastore.running_system import System

FIRST = """\
name: demo
dependencies:
  - libalpha 1.*   # the older generation
  - python
variables:
  MODE: first
"""
SECOND = """\
name: demo
dependencies:
  - libalpha
  - hello-noarch
  - python
"""


FROM_WINDOWS = "dependencies:\r\n- libalpha\r\nextras: {}\r\nname: C:\\envs\\new\r\n"


@pytest.fixture
def namespace(administrator: Person) -> str:
    """A namespace of this test alone."""
    name = f"team-{uuid.uuid4().hex[:6]}"
    administrator.does("namespace", "create", name, "--description", "A team").succeeded()
    return name


def write(person: Person, text: str) -> str:
    name = f"{uuid.uuid4().hex}.yml"
    (person.home / name).write_text(text)
    return name


def build(person: Person, name: str, text: str, *more: str) -> Any:
    return person.does("env", "build", name, "-f", write(person, text), *more, seconds=300)


def current(person: Person, name: str) -> int:
    shown = person.does("env", "show", name, "--json").succeeded().document
    return int(shown["current"]["number"])


def test_a_file_of_powershell_is_previewed_before_its_environment_exists(
    administrator: Person, namespace: str
):
    name = f"{namespace}/first"
    (administrator.home / "new.yml").write_bytes(FROM_WINDOWS.encode("utf-16"))
    warnings = (
        "warning: Line 3: 'extras' is ignored: it is not a known key.",
        "warning: name, line 4: the name is a path and is ignored",
    )
    previewed = administrator.does("env", "preview", name, "-f", "new.yml").succeeded()
    assert "1 packages for linux-64" in previewed.out
    assert all(warning in previewed.err for warning in warnings)
    assert administrator.does("env", "show", name).status != 0
    created = administrator.does("env", "create", name, "-f", "new.yml", seconds=300).succeeded()
    assert all(warning in created.out + created.err for warning in warnings)


def test_from_a_file_to_a_running_command_and_back(
    administrator: Person, running_server: System, namespace: str
):
    name = f"{namespace}/demo"
    first = build(administrator, name, FIRST).succeeded()
    assert f"{name}:1 is READY" in first.out
    assert f"condastore run {name} -- python" in first.out

    folder = running_server.data / "envs" / namespace / "demo"
    program = "import os, sys; print(sys.prefix, os.environ['MODE'])"
    ran = administrator.does("run", name, "--", "python", "-c", program).succeeded()
    assert ran.out.split() == [str(folder.resolve()), "first"]

    preview = administrator.does("env", "preview", name, "-f", write(administrator, SECOND))
    assert "hello-noarch" in preview.succeeded().out
    assert current(administrator, name) == 1

    build(administrator, name, SECOND).succeeded()
    assert current(administrator, name) == 2
    changed = administrator.does("env", "diff", name, "--json").succeeded().document
    assert "hello-noarch" in [package["name"] for package in changed["added"]]
    two = administrator.does("env", "diff", f"{name}:2", ":1").succeeded()
    assert f"{name}:2 -> {name}:1" in two.out
    assert folder.resolve().name.startswith("2-")

    administrator.does("env", "rollback", name).succeeded()
    assert current(administrator, name) == 1
    assert folder.resolve().name.startswith("1-")
    administrator.does("env", "unpin", name).succeeded()
    assert current(administrator, name) == 2
    administrator.does("env", "pin", f"{name}:1").succeeded()
    assert current(administrator, name) == 1
    assert administrator.does("env", "history", name).succeeded().out.count("READY") == 2

    chains = administrator.does("env", "why", f"{name}:2", "python", "--json").succeeded()
    assert any(len(chain) == 1 for chain in chains.document["why"])
    listed = administrator.does("env", "packages", f"{name}:2", "--json").succeeded().document
    assert {"python", "libalpha", "hello-noarch"} <= {package["name"] for package in listed}
    assert administrator.does("env", "specification", f"{name}:1").succeeded().out == FIRST

    uses = administrator.does("contains", "libalpha", "--json").succeeded().document
    assert name in {
        f"{use['environment']['namespace']['name']}/{use['environment']['name']}" for use in uses
    }


def test_a_build_ends_with_its_log_and_its_json(administrator: Person, namespace: str):
    name = f"{namespace}/log"
    documents = build(administrator, name, FIRST, "--json").succeeded().documents
    assert documents[-1]["build"]["state"] == "READY"
    followed = [line for one in documents[1:-1] for line in one["newLines"]]
    assert followed
    shown = administrator.does("env", "log", name, "--json").succeeded().document
    assert shown["lines"] == followed
    assert administrator.does("env", "log", name).out.splitlines() == followed


def test_a_build_without_an_answer_explains_itself(administrator: Person, namespace: str):
    text = "dependencies: [conflict-left, conflict-right]\n"
    ended = build(administrator, f"{namespace}/odd", text)
    assert ended.status == 1
    assert "conflict-left" in ended.err
    assert "conflict-right" in ended.err
    again = administrator.does("env", "wait", f"{namespace}/odd")
    assert again.status == 1


def test_a_misspelt_package_is_told_with_similar_names(administrator: Person, namespace: str):
    ended = build(administrator, f"{namespace}/odd", "dependencies: [libalhpa]\n")
    assert ended.status == 1
    assert "libalhpa" in ended.err
    assert "libalpha" in ended.err


def test_every_fault_of_a_file_is_told_at_once(administrator: Person, namespace: str):
    text = "dependencies:\n  - 'libalpha =='\n  - python >=\nplatforms: [linux-65]\nvariables: 1\n"
    ended = build(administrator, f"{namespace}/odd", text)
    assert ended.status == 6
    for location in ("line 2", "line 3", "linux-65", "variables"):
        assert location in ended.err


def test_tags_name_builds(administrator: Person, namespace: str):
    name = f"{namespace}/tagged"
    build(administrator, name, FIRST).succeeded()
    administrator.does("env", "tag", name, "prod").succeeded()
    shown = administrator.does("env", "show", f"{name}:prod", "--json").succeeded().document
    assert shown["number"] == 1
    administrator.does("env", "untag", name, "prod").succeeded()
    assert administrator.does("env", "show", f"{name}:prod").status == 4


def test_an_archived_build_is_restored_from_its_lock(administrator: Person, namespace: str):
    name = f"{namespace}/old"
    build(administrator, name, FIRST).succeeded()
    build(administrator, name, SECOND).succeeded()
    administrator.does("env", "archive", f"{name}:1").succeeded()
    refused = administrator.does("run", f"{name}:1", "python", "-V")
    assert refused.status == 4
    assert f"condastore env restore {name}:1" in refused.err
    administrator.does("env", "restore", f"{name}:1", seconds=300).succeeded()
    administrator.does("run", f"{name}:1", "python", "-V").succeeded()


@pytest.mark.parametrize(
    ("format_", "file", "text"),
    [
        ("conda-lock.yml", "x-lock.yml", "metadata:"),
        ("environment.yml", "x-environment.yml", "dependencies:"),
        ("explicit.txt", "x-explicit.txt", "@EXPLICIT"),
        ("pixi.lock", "x-pixi.lock", "environments:"),
    ],
)
def test_a_lock_is_exported(
    administrator: Person, namespace: str, format_: str, file: str, text: str
):
    name = f"{namespace}/x"
    build(administrator, name, FIRST).succeeded()
    done = administrator.does("env", "export", name, "--format", format_, "--json").succeeded()
    assert done.document["file"] == file
    written = (administrator.home / file).read_text()
    assert text in written
    assert administrator.does("env", "export", name, "--format", format_, "-o", "-").out == written


def test_an_environment_is_copied_moved_renamed_and_deleted(
    administrator: Person, running_server: System, namespace: str
):
    other = f"{namespace}-b"
    administrator.does("namespace", "create", other).succeeded()
    build(administrator, f"{namespace}/one", FIRST).succeeded()
    administrator.does("env", "copy", f"{namespace}/one", f"{other}/two").succeeded()
    administrator.does("env", "rename", f"{other}/two", "three").succeeded()
    administrator.does("env", "move", f"{namespace}/one", other).succeeded()
    listed = administrator.does("env", "list", other, "--json").succeeded().document
    assert sorted(one["name"] for one in listed) == ["one", "three"]
    administrator.does("run", f"{other}/three", "python", "-V").succeeded()
    administrator.does("env", "delete", f"{other}/three", "--yes").succeeded()
    assert administrator.does("env", "show", f"{other}/three").status == 4
    assert not (running_server.data / "envs" / other / "three").is_symlink()


def test_a_token_with_a_ceiling_looks_and_does_not_build(administrator: Person, namespace: str):
    name = f"ci-{uuid.uuid4().hex[:6]}"
    created = administrator.does(
        "token", "create", name, "--role", "viewer", "--namespace", namespace, "--json"
    ).succeeded()
    robot = replace(administrator, token=created.document["secret"])
    assert robot.does("whoami", "--json").succeeded().document["tokenName"] == name
    assert build(robot, f"{namespace}/x", FIRST).status == 3
    assert name in administrator.does("token", "list").succeeded().out
    administrator.does("token", "revoke", name).succeeded()
    assert robot.does("whoami").status == 3


def test_what_is_not_there_ends_with_4_and_a_hint(administrator: Person, namespace: str):
    for arguments in (
        ("env", "show", f"{namespace}/absent"),
        ("env", "history", f"{namespace}/absent"),
        ("env", "packages", f"{namespace}/absent"),
        ("env", "log", f"{namespace}/absent:3"),
        ("env", "export", f"{namespace}/absent"),
        ("run", f"{namespace}/absent", "python"),
        ("namespace", "show", "absent"),
        ("token", "revoke", "absent"),
    ):
        ended = administrator.does(*arguments)
        assert (ended.status, ended.out) == (4, ""), arguments
        assert ended.err.startswith("error: "), arguments


def test_signed_out_one_sees_nothing_of_others(
    administrator: Person, running_server: System, namespace: str, tmp_path: Path
):
    build(administrator, f"{namespace}/secret", FIRST, "--no-wait").succeeded()
    stranger = Person(home=tmp_path, url=running_server.url)
    assert stranger.does("env", "show", f"{namespace}/secret").status == 3
    assert stranger.does("env", "list", "--json").status == 3
    assert stranger.does("whoami").status == 3
    administrator.does("env", "cancel", f"{namespace}/secret")


def test_a_role_is_granted_shown_and_taken(administrator: Person, namespace: str):
    administrator.does("namespace", "grant", namespace, "admin", "viewer").succeeded()
    shown = administrator.does("namespace", "show", namespace, "--json").succeeded().document
    assert {"role": "VIEWER", "user": "admin", "group": None} in shown["grants"]
    administrator.does("namespace", "revoke", namespace, "admin").succeeded()
    shown = administrator.does("namespace", "show", namespace, "--json").succeeded().document
    assert shown["grants"] == []


def test_the_secret_of_a_channel_is_set_listed_and_removed(
    administrator: Person, namespace: str
) -> None:
    url = "https://packages.example.org/team"
    given = ("credential", "set", url, "--secret-stdin", "--json")
    own = administrator.does(*given, "-n", namespace, "--user", "robot", says="hidden-word\n")
    assert own.succeeded().document["kind"] == "basic"
    common = administrator.does(*given, "--for", namespace, says="hidden-token\n").succeeded()
    assert (common.document["kind"], common.document["namespaces"]) == ("token", [namespace])
    assert administrator.does(*given, says="x\n").status == 2
    listed = administrator.does("credential", "list").succeeded()
    assert f"the installation, for {namespace}" in " ".join(listed.out.split())
    assert "hidden" not in own.out + common.out + listed.out
    for one in (own, common):
        administrator.does("credential", "remove", one.document["id"]).succeeded()
    assert url not in administrator.does("credential", "list").succeeded().out


def test_the_audit_log_is_compared_with_a_file_of_checkpoints(
    administrator: Person, running_server: System, tmp_path: Path
) -> None:
    line = running_server.person.does("manage", "audit", "checkpoint").succeeded().out
    file = tmp_path / "checkpoints"
    file.write_text(line)
    verified = administrator.does("audit", "verify", "--anchor", str(file)).succeeded()
    assert "1 checkpoints" in verified.out
    file.write_text(line.replace('"counter":', '"counter":9'))
    assert "line 1" in administrator.does("audit", "verify", "--anchor", str(file)).err


def test_the_web_server_may_die_while_a_build_is_followed(
    administrator: Person, running_server: System, namespace: str
):
    """The events are cut; the command asks until the server is back, and misses nothing."""
    name = f"{namespace}/cut"
    file = write(administrator, SECOND)
    with administrator.start("env", "build", name, "-f", file, "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["event"] == "submitted"
        running_server.child("web").kill()
        documents = [json.loads(line) for line in process.stdout]
        assert process.wait(120) == 0
    followed = [line for one in documents[:-1] for line in one["newLines"]]
    shown = administrator.does("env", "log", name, "--json").succeeded().document
    assert shown["lines"] == followed


def test_an_environment_is_shared_with_a_program(
    administrator: Person, running_server: System, namespace: str, tmp_path: Path
):
    name = f"{namespace}/shared"
    administrator.does("env", "create", name).succeeded()
    account = f"robot-{uuid.uuid4().hex[:6]}"
    created = administrator.does("token", "service-account", account).succeeded()
    assert f"--service-account {account}" in created.out
    token = administrator.does("token", "create", account, "--service-account", account, "--json")
    secret = token.succeeded().document["secret"]
    robot = replace(
        administrator, variables={**administrator.variables, "CONDASTORE_TOKEN": secret}
    )

    def seen() -> list[str]:
        listed = robot.does("env", "list", "--json").succeeded().document
        return [one["name"] for one in listed]

    assert seen() == []
    shared = administrator.does("env", "share", name, account).succeeded()
    assert f"{account} may see and use {name}" in shared.out
    assert seen() == ["shared"]
    administrator.does("env", "unshare", name, account).succeeded()
    assert seen() == []
