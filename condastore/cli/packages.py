"""`condastore search` and `contains`: packages across channels, and across environments."""

from __future__ import annotations

from typing import Annotated

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, connect
from condastore.cli.options import AsJson, Limit


def add_to(root: typer.Typer) -> None:
    root.command()(search)
    root.command()(contains)


def search(
    name: Annotated[str, typer.Argument(help="A name or a part of one.", show_default=False)],
    channel: Annotated[str, typer.Option(help="In this channel only.")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Search the packages of all channels that are known to the server."""
    api = connect()
    found = api.every(queries.SEARCH, "packages", limit=limit, search=name, channel=channel or None)
    rows = [(one["name"], one["latestVersion"], one["channel"]["name"]) for one in found]
    empty = "" if found or as_json else _nothing_found(api, name)
    columns = ["package", "latest", "channel"]
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


def _nothing_found(api: Api, name: str) -> str:
    """Return why nothing was found: channels are indexed after the start, one after another."""
    channels = api.every(queries.CHANNELS, "channels")
    waiting = sorted({one["name"] for one in channels if one["indexedAt"] is None})
    said = f"No package matches {name!r}."
    if channels and not waiting:
        return said
    which = f" of {', '.join(waiting)}" if waiting else ""
    return f"{said}\nThe index{which} is still being read; search again in a minute."


def contains(
    name: Annotated[str, typer.Argument(help="The package.", show_default=False)],
    version: Annotated[str, typer.Option(help="This version only.")] = "",
    all_builds: Annotated[
        bool, typer.Option("--all", help="Older builds too, not only the current ones.")
    ] = False,
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Show which environments contain a package."""
    found = connect().every(
        queries.CONTAINS,
        "lockedPackages",
        limit=limit,
        name=name,
        version=version or None,
        currentOnly=not all_builds,
    )
    rows = [
        (
            render.name_of(one["environment"]),
            one["build"]["number"],
            one["build"]["state"],
            one["package"]["version"],
            one["package"]["build"],
            one["package"]["platform"] or one["package"]["subdir"],
        )
        for one in found
    ]
    columns = ["environment", "#build", "state", "version", "-build string", "-platform"]
    render.answer(
        found,
        as_json,
        lambda: render.table(columns, rows, empty=f"No environment contains {name!r}."),
    )
