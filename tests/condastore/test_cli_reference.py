"""The document of the command line names each command and each status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from condastore.cli.errors import Status
from condastore.cli.main import INTERRUPTED, app

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


ALL = dict(commands(typer.main.get_command(app), "condastore"))


def test_the_document_has_a_row_for_each_command_and_no_other():
    rows = re.findall(r"^\| `(condastore [^`]+)` \|", DOCUMENT, re.MULTILINE)
    assert sorted(rows) == sorted(ALL)


def test_the_document_has_a_row_for_each_status_and_no_other():
    rows = re.findall(r"^\| (\d+) \|", DOCUMENT, re.MULTILINE)
    assert [int(row) for row in rows] == [*sorted(Status), INTERRUPTED]


def test_every_command_that_talks_to_a_server_can_print_json():
    without = {
        name
        for name, command in ALL.items()
        if not any("--json" in option.opts for option in command.params)
    }
    assert without == {
        "condastore audit export",  # prints lines of JSON itself
        "condastore run",
        "condastore worker",
        "condastore scheduler",
        "condastore manage",
        "condastore storage migrate",
    }


def test_every_command_says_what_it_does():
    assert [name for name, command in ALL.items() if not command.help] == []
