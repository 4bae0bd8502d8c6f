"""Reference of all `condastore` commands, generated from the command line itself.

Typer brings a copy of click from 0.28 on, so nothing of click is imported by name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from condastore.cli.main import app

MARK = "<!-- commands: generated from the command line by docs/_ext/cli_reference.py -->\n"


def all_commands() -> dict[str, Any]:
    """Return every command by its full name, such as `condastore env build`."""
    group: Any = typer.main.get_command(app)
    group.load_all()
    return dict(_commands(group, "condastore"))


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {word}")
        elif not command.hidden:
            yield f"{name} {word}", command


def markdown() -> str:
    """Return one section per command: usage, description, arguments and options."""
    return "\n".join(_section(name, command) for name, command in all_commands().items())


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"### {name}", "", "```text", f"{name} {usage}".rstrip(), "```", ""]
    lines += [_plain(command.help or ""), ""]
    rows = [_row(one, context) for one in command.params if not getattr(one, "hidden", False)]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(parameter: Any, context: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if not parameter.opts[0].startswith("-"):
        names = [parameter.make_metavar(context)]
    elif not (parameter.is_flag or parameter.count):
        names[-1] += f" {parameter.make_metavar(context)}"
    text = _plain(getattr(parameter, "help", None) or "").replace("\n", " ").replace("|", "\\|")
    default = parameter.default
    if isinstance(default, str | int) and not isinstance(default, bool) and default != "":
        text += f" Default: `{default}`."
    shown = ", ".join(f"`{one}`" for one in names).replace("|", "\\|")
    return f"| {shown} | {text.strip()} |"


def _plain(text: str) -> str:
    """Drop the markers of typer's formatting, and `<`, which Markdown would take for HTML."""
    return re.sub(r"<(?=\w)", r"\<", text.replace("\b\n", "").strip())


def insert(app: Any, name: str, source: list[str]) -> None:
    source[0] = source[0].replace(MARK, markdown())


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", insert)
    return {"parallel_read_safe": True}
