"""Questions to the person at the terminal; without one, errors that name the option instead."""

from __future__ import annotations

import sys

import typer

from condastore.cli.errors import CommandError, Status


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation; without a terminal, require --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandError(
            f"{question} There is no terminal to ask on.",
            status=Status.USAGE,
            code="invalid-input",
            hint="Add --yes.",
        )
    if not typer.confirm(question, err=True):
        raise typer.Exit(Status.USAGE)


def required_text(given: str, *, option: str) -> str:
    """Return `given`, or ask for it; without a terminal, require the option."""
    if given.strip():
        return given
    if not sys.stdin.isatty():
        raise CommandError(
            f"{option} is missing, and there is no terminal to ask on.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Add {option}.",
        )
    answer: str = typer.prompt(option.removeprefix("--").capitalize(), err=True)
    return answer
