"""Every command, make target and setting that a page shows exists and is accepted."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.management import CommandError, get_commands, load_command_class

from condastore.env import SETTINGS
from docs._ext.cli_reference import all_commands
from environments.domain.policy import KINDS
from tests.docs.pages import PAGES, PROJECT, Command, commands

ALL = all_commands()
CLIENT_SETTINGS = {
    "CONDASTORE_URL",
    "CONDASTORE_TOKEN",
    "CONDASTORE_CONFIG",
    "CONDASTORE_ENVS",
    "CONDASTORE_BUILD",  # set by `condastore run`
}
#: Values of the examples that stand for numbers of the reader's own.
NUMBERS = {"NUMBER": "1", "RULE": "1"}


def split(command: Command) -> tuple[str, list[str]]:
    """Return the longest known command that the words begin with, and its arguments."""
    for length in range(len(command.words), 0, -1):
        name = " ".join(command.words[:length])
        if name in ALL:
            return name, list(command.words[length:])
    return "", list(command.words)


def names_only(command: Command) -> bool:
    """Return True if a text mentions the command, without its arguments."""
    name, arguments = split(command)
    groups = {one.rsplit(" ", 1)[0] for one in ALL} | {"condastore"}
    return " ".join(command.words) in groups or (bool(name) and not arguments)


SHOWN = sorted(set(commands("condastore")), key=lambda one: (one.page, one.line))


@pytest.mark.parametrize("command", SHOWN, ids=lambda one: f"{one.page}: {one.line[:60]}")
def test_a_command_of_the_pages_is_accepted_by_the_command_line(command: Command) -> None:
    if command.words[1:] and command.words[1] in {
        "--version",
        "--help",
        "--install-completion",
        "COMMAND",
        "-h",
    }:
        return
    name, arguments = split(command)
    assert name or names_only(command), f"there is no such command: {command.line}"
    if names_only(command):
        return
    arguments = [
        NUMBERS.get(one, one) for one in arguments if not re.match(r"^\[|.*\]$|^\.\.\.$", one)
    ]
    if name == "condastore manage":
        accepted_by_django(arguments)
        return
    try:
        ALL[name].make_context(name, arguments)
    except Exception as error:  # of click, or of the copy of it that typer brings
        kind = type(error).__name__
        without_arguments = kind in {"MissingParameter", "BadOptionUsage"}
        if not (kind == "Exit" or (command.prose and without_arguments)):
            pytest.fail(f"{command.line}: {error!r}")


def accepted_by_django(arguments: list[str]) -> None:
    name, *rest = arguments
    assert name in get_commands(), name
    app: Any = get_commands()[name]
    loaded = load_command_class(app, name) if isinstance(app, str) else app
    parser = loaded.create_parser("condastore manage", name)
    parser.called_from_command_line = False
    if rest:
        try:
            parser.parse_args(rest)
        except CommandError as error:
            if "required" not in str(error):
                raise


@pytest.mark.parametrize(
    "command", sorted(set(commands("make")), key=str), ids=lambda one: one.line[:60]
)
def test_a_make_target_of_the_pages_exists(command: Command) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE))
    known = {one for names in targets for one in names.split()}
    for word in command.words[1:]:
        assert "=" in word or word in known, command.line


def test_settings_of_the_pages_exist() -> None:
    unknown = set()
    for page in PAGES:
        for name in re.findall(r"\bCONDASTORE_[A-Z0-9_]+\b", page.read_text()):
            bare = name.removesuffix("_FILE")
            if name.endswith("_"):  # CONDASTORE_QUOTA_... names several
                assert any(one.startswith(name) for one in SETTINGS), name
            elif bare not in SETTINGS and name not in SETTINGS and name not in CLIENT_SETTINGS:
                unknown.add(f"{page.relative_to(PROJECT)}: {name}")
    assert not unknown


def test_the_page_of_policies_lists_every_kind_of_rule() -> None:
    text = (PROJECT / "docs" / "policies.md").read_text().partition("## Kinds")[2]
    rows = re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)
    assert sorted(rows) == sorted(KINDS)


def test_the_page_of_permissions_grants_what_roles_grant() -> None:
    from accounts.roles import ROLES, Perm, Role

    text = (PROJECT / "docs" / "reference" / "permissions.md").read_text()
    roles = (Role.VIEWER, Role.DEVELOPER, Role.APPROVER, Role.ADMIN)
    found = {}
    for name, *cells in re.findall(
        r"^\| `(\w+)` \|[^|]*\|(.*?)\|(.*?)\|(.*?)\|(.*?)\|", text, re.M
    ):
        found[Perm(name)] = {role for role, cell in zip(roles, cells, strict=True) if cell.strip()}
    assert found == {perm: {role for role in roles if perm in ROLES[role]} for perm in Perm}
