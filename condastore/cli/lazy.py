"""Command groups whose modules are imported when one of their commands is used.

Importing all modules and building 100 commands takes longer than starting Python does, and each
command needs one of them. The list of commands shows the first lines that stand in the table here;
a test compares them with the commands themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command or group is defined, and its help as it stands in the list of commands."""

    module: str  # below condastore.cli
    help: str


def load(module_name: str, name: str = "") -> dict[str, Any]:
    """Import a module below condastore.cli, and build its commands.

    Args:
        name: of its group, where the module has one group and no `add_to`.
    """
    module = importlib.import_module(f"condastore.cli.{module_name}")
    holder = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    holder.callback()(_nothing)
    if hasattr(module, "add_to"):
        module.add_to(holder)
    else:
        holder.add_typer(module.app, name=name)
    return dict(get_group(holder).commands)


def _nothing() -> None:
    """Make a group of an application that has one command."""


class LazyGroup(TyperGroup):
    """A group whose commands of `lazy` are imported at their first use, listed in its order."""

    lazy: Mapping[str, Lazy] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, and import none."""
        return [*self.lazy, *(name for name in self.commands if name not in self.lazy)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, imported now if need be."""
        if cmd_name not in self.commands and cmd_name in self.lazy:
            self.commands.update(load(self.lazy[cmd_name].module, cmd_name))
        return self.commands.get(cmd_name)

    def load_all(self) -> None:
        """Import all commands; those that a module has beside the table come last."""
        names = {lazy.module: name for name, lazy in self.lazy.items()}
        for module, name in names.items():
            self.commands.update(load(module, name))
        self.commands = {name: self.commands[name] for name in self.list_commands(None)}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command of the arguments; a name that is none is compared with all."""
        if args and args[0] not in self.lazy:
            self.load_all()
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands from the table."""
        names = self.list_commands(ctx)
        limit = formatter.width - 6 - max(map(len, names))
        rows = [(name, self._short_help(name, limit)) for name in names]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _short_help(self, name: str, limit: int) -> str:
        if name in self.commands:
            return str(self.commands[name].get_short_help_str(limit))
        command = typer.core.TyperCommand(name, help=self.lazy[name].help)
        return str(command.get_short_help_str(limit))
