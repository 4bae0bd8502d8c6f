"""Approvals and recalls at the command line, against a whole running system."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from tests.condastore.command_line import Person
from tests.condastore.running_system import System
from tests.condastore.terminals import at_terminal
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
    administrator.does("namespace", "grant", space, name, "developer").succeeded()
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
    explained = sam.does(
        "approval", "explain", request["id"], "--note", "week 3 needs it"
    ).succeeded()
    assert "week 3 needs it" in explained.out
    refused = sam.does("approval", "approve", request["id"], "--reason", "please")
    assert refused.status == 3
    said = administrator.does(
        "approval", "approve", request["id"], "--reason", "looked at it", "--until", "30d"
    ).succeeded()
    assert "APPROVED" in said.out
    assert "READY" in sam.does("env", "wait", place, seconds=300).succeeded().out

    sam.does("run", place, "--", "true").succeeded()
    spec = f"libalpha =={request['version']}"
    planned = administrator.does("recall", "add", spec, "--dry-run").succeeded().out
    assert f"{place}:1 (current): libalpha {request['version']}" in planned
    assert spec not in administrator.does("recall", "list").succeeded().out
    recalling = ("recall", "add", spec, "--reason", "it leaks")
    unconfirmed = administrator.does(*recalling)
    assert unconfirmed.status == 2
    assert "--yes" in unconfirmed.err
    declined = at_terminal(administrator, *recalling, types="n\n")
    assert declined.status == 2
    assert f"{place}:1" in declined.out
    assert spec not in administrator.does("recall", "list").succeeded().out
    assert sam.does("recall", "add", spec, "--dry-run").status == 3
    hit = administrator.does(*recalling, "--yes", "--json").succeeded()
    try:
        assert f"{place}:1" in [one["build"] for one in hit.document["hits"]]
        stopped = sam.does("run", place, "--", "true")
        assert stopped.status == 3
        assert "it leaks" in stopped.err
        assert spec in sam.does("recall", "list").succeeded().out
        [row] = sam.does("env", "list", space).succeeded().out.splitlines()[1:]
        assert "RECALLED" in row
    finally:
        administrator.does(
            "recall", "undo", hit.document["id"], "--reason", "a false alarm"
        ).succeeded()
    sam.does("run", place, "--", "true").succeeded()

    listed = ("approval", "decisions", "--namespace", space)
    [decision] = administrator.does(*listed, "--json").succeeded().document
    assert (decision["approved"], decision["reason"]) == (True, "looked at it")
    revoke = ("approval", "revoke", decision["id"], "--reason", "looked again")
    assert sam.does(*revoke).status == 3
    administrator.does(*revoke).succeeded()
    assert "No decision matches." in administrator.does(*listed).succeeded().out
    assert "revoked by admin" in administrator.does(*listed, "--all").succeeded().out


def test_rules_are_written_tried_taken_back_and_restored(administrator: Person, sam: Person):
    space = f"lab-{uuid.uuid4().hex[:6]}"
    administrator.does("namespace", "create", space).succeeded()
    rule = ("--kind", "packages-denied", "--name", "no beta", "--set", "packages=libbeta")
    tried = administrator.does("policy", "simulate", space, *rule[:2], *rule[4:]).succeeded()
    assert "0 would be blocked" in tried.out
    [made] = administrator.does("policy", "add", space, *rule, "--json").succeeded().document
    administrator.does("policy", "change", made["id"], "--off").succeeded()
    administrator.does("policy", "remove", made["id"], "--comment", "too strict").succeeded()
    assert "too strict" in administrator.does("policy", "history", space).succeeded().out
    assert sam.does("policy", "restore", "1", space).status != 0
    restored = administrator.does("policy", "restore", "1", space).succeeded().out
    assert "no beta" in restored
    assert "version 4" in restored
    shown = administrator.does("policy", "show", space, "--json").succeeded().document
    assert [(one["name"], one["enabled"]) for one in shown["rules"]] == [("no beta", True)]
    missing = administrator.does("policy", "restore", "9", space)
    assert missing.status != 0
    assert "no version 9" in missing.err


def test_a_webhook_is_added_tried_and_removed(administrator: Person, sam: Person):
    space = f"lab-{uuid.uuid4().hex[:6]}"
    administrator.does("namespace", "create", space).succeeded()
    made = administrator.does(
        "webhook", "add", "https://hooks.example.org/builds", "--namespace", space,
        "--event", "build.finished", "--json",
    ).succeeded().document  # fmt: skip
    assert made["secret"].startswith("whsec_")
    key = made["webhook"]["id"]
    listed = administrator.does("webhook", "list", "--namespace", space).succeeded().out
    assert "build.finished" in listed
    assert made["secret"] not in listed
    assert "Queued a test message" in administrator.does("webhook", "test", key).succeeded().out
    assert sam.does("webhook", "test", key).status != 0
    administrator.does("webhook", "remove", key).succeeded()
    none = administrator.does("webhook", "list", "--namespace", space).succeeded().out
    assert none == f"{space} has no webhooks.\n"
    wrong = administrator.does(
        "webhook", "add", "https://hooks.example.org/", "-n", space, "--event", "build.begun"
    )
    assert "build.finished" in wrong.err


def test_a_time_that_is_none_and_a_recall_of_nothing_are_told(person: Person):
    wrong = person.does("approval", "approve", "1", "--reason", "x", "--until", "soon")
    assert wrong.status == 2
    assert "30d" in wrong.err
    assert person.does("recall", "add", "--reason", "x").status == 2
