"""`condastore version`."""

from __future__ import annotations

import platform

import typer

from condastore import __version__
from condastore.cli import render
from condastore.cli.options import AsJson


def add_to(root: typer.Typer) -> None:
    root.command()(version)


def version(as_json: AsJson = False) -> None:
    """Show the version of this program."""
    found = {"version": __version__, "python": platform.python_version()}
    render.answer(found, as_json, lambda: render.say(f"condastore {__version__}"))
