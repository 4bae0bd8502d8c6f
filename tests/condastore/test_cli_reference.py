"""The reference of the command line has every command, option and exit status."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from condastore.cli.errors import Status
from condastore.cli.lazy import load
from condastore.cli.main import INTERRUPTED, app
from docs._ext import cli_reference

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def everything() -> Any:
    group: Any = typer.main.get_command(app)
    group.load_all()
    return group


ALL = dict(commands(everything(), "condastore"))


def test_the_list_of_commands_shows_what_the_commands_say_and_imports_none():
    group = everything()
    assert list(group.commands) == list(group.lazy), "each command has its row in `main.Commands`"
    for name, lazy in group.lazy.items():
        assert lazy.help == group.commands[name].help.partition("\n")[0]
        assert name in load(lazy.module, name)
    code = (
        "import sys; from condastore.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print([m for m in sys.modules if m.startswith('condastore.cli.')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "condastore.cli.environments" not in said.stdout
    assert all(f"  {name}  " in said.stdout for name in group.lazy)


def test_a_mistyped_command_is_compared_with_all():
    code = "from condastore.cli.main import main; import sys; sys.argv[1:] = ['nmespace']; main()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "namespace" in said.stderr


def test_the_generated_reference_has_a_section_for_every_command_with_its_options():
    assert DOCUMENT.count(cli_reference.MARK) == 1
    text = cli_reference.markdown()
    assert re.findall(r"^### (condastore .+)$", text, re.MULTILINE) == list(ALL)
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    for section, command in zip(sections, ALL.values(), strict=True):
        for option in command.params:
            if option.opts[0].startswith("-"):
                assert f"`{option.opts[0]}" in section


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
