"""Approvals and recalls at the command line, against a whole running system."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from tests.condastore.command_line import Person
from tests.condastore.running_system import System
from tests.services.processes import wait_for

TEXT = "dependencies: [apptool]\n"
MAKE = """
from accounts.models import User
User.objects.create_user("{name}", password="{password}")
"""


@pytest.fixture
def sam(running_server: System, administrator: Person, tmp_path: Path) -> Person:
    """Somebody who is no administrator, signed in at a terminal."""
    name, password = f"sam{uuid.uuid4().hex[:6]}", uuid.uuid4().hex
    code = MAKE.format(name=name, password=password)
    running_server.person.does("manage", "shell", "-v", "0", "-c", code).succeeded()
    home = tmp_path / "sam"
    home.mkdir()
    person = Person(home=home)
    person.does(
        "login", running_server.url, "-u", name, "--password-stdin", says=f"{password}\n"
    ).succeeded()
    return replace(person, url=running_server.url)


def test_a_build_waits_goes_on_when_it_is_approved_and_is_called_back(
    administrator: Person, sam: Person
):
    space = f"lab-{uuid.uuid4().hex[:6]}"
    place = f"{space}/course"
    administrator.does("namespace", "create", space).succeeded()
    name = sam.does("whoami", "--json").succeeded().document["username"]
    administrator.does("namespace", "grant", space, "developer", name).succeeded()
    administrator.does(
        "policy", "add", space, "--kind", "packages-denied", "--effect", "ask",
        "--name", "look", "--set", "packages=libalpha",
    ).succeeded()  # fmt: skip

    (sam.home / "e.yml").write_text(TEXT)
    sam.does(
        "env", "build", place, "-f", "e.yml", "--no-wait", "--reason", "for the course"
    ).succeeded()

    def waits() -> bool:
        shown = sam.does("env", "show", place, "--json").succeeded().document
        return bool(shown["latest"]["state"] == "HELD")

    wait_for(waits, what="HELD")
    [request] = (
        administrator.does("approval", "list", "--namespace", space, "--json").succeeded().document
    )
    assert request["chain"][-1] == "libalpha"
    shown = administrator.does("approval", "show", request["id"]).succeeded().out
    assert "for the course" in shown
    assert "apptool -> " in shown
    waits_for = sam.does("env", "show", f"{place}:1").succeeded().out
    assert f"request {request['id']}" in waits_for
    assert "may decide: admin" in waits_for
    refused = sam.does("approval", "approve", request["id"], "--reason", "please")
    assert refused.status == 3
    said = administrator.does(
        "approval", "approve", request["id"], "--reason", "looked at it", "--until", "30d"
    ).succeeded()
    assert "APPROVED" in said.out
    assert "READY" in sam.does("env", "wait", place, seconds=300).succeeded().out

    sam.does("run", place, "--", "true").succeeded()
    spec = f"libalpha =={request['version']}"
    hit = administrator.does("recall", "add", spec, "--reason", "it leaks", "--json").succeeded()
    try:
        assert f"{place}:1" in [one["build"] for one in hit.document["hits"]]
        stopped = sam.does("run", place, "--", "true")
        assert stopped.status == 3
        assert "it leaks" in stopped.err
        assert spec in sam.does("recall", "list").succeeded().out
    finally:
        administrator.does(
            "recall", "undo", hit.document["id"], "--reason", "a false alarm"
        ).succeeded()
    sam.does("run", place, "--", "true").succeeded()


def test_a_time_that_is_none_and_a_recall_of_nothing_are_told(person: Person):
    wrong = person.does("approval", "approve", "1", "--reason", "x", "--until", "soon")
    assert wrong.status == 2
    assert "30d" in wrong.err
    assert person.does("recall", "add", "--reason", "x").status == 2
