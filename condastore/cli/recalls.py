"""`condastore recall`: packages that are called back."""

from __future__ import annotations

from typing import Annotated

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson, Limit

app = typer.Typer(
    help="Recall packages: builds that contain one are neither made nor served.",
    no_args_is_help=True,
)


@app.command()
def add(
    reason: Annotated[str, typer.Option(help="Those whom it hits read it.", prompt=True)],
    spec: Annotated[
        str,
        typer.Argument(
            metavar="[SPEC]",
            help="A MatchSpec, with stars in names; pypi: before it for wheels.",
            show_default=False,
        ),
    ] = "",
    sha256: Annotated[str, typer.Option(help="These bytes, instead of a MatchSpec.")] = "",
    as_json: AsJson = False,
) -> None:
    """Call a package back, and list the builds that hold it."""
    if bool(spec) == bool(sha256):
        raise CommandError(
            "Give a MatchSpec, or --sha256.", status=Status.USAGE, code="invalid-input"
        )
    api = connect()
    made = api.change(queries.RECALL, spec=spec, sha256=sha256, manager="conda", reason=reason)
    found = _hit(api, made["id"], 0)
    render.answer(made | {"hits": found}, as_json, lambda: _hits(made, found))


@app.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Those that were undone, too.")] = False,
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the recalls: all if you recall, else those that hit what you see."""
    found = connect().every(queries.RECALLS, "recalls", limit=limit, active=None if every else True)
    rows = [
        (
            one["id"],
            _name(one),
            render.moment(one["recalledAt"]),
            one["recalledBy"],
            f"undone by {one['undoneBy']}" if one["undoneAt"] else "",
            one["reason"],
        )
        for one in found
    ]
    columns = ["#id", "package", "since", "by", "", "reason"]
    render.answer(found, as_json, lambda: render.table(columns, rows, empty="Nothing is recalled."))


@app.command()
def hits(
    recall: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the builds that hold what was recalled."""
    found = _hit(connect(), recall, limit)
    render.answer(found, as_json, lambda: _table(found))


@app.command()
def undo(
    recall: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why.", prompt=True)],
    as_json: AsJson = False,
) -> None:
    """Serve again what the recall took away."""
    gone = connect().change(queries.UNDO_RECALL, id=recall, reason=reason)
    render.answer(gone, as_json, lambda: render.say(f"{_name(gone)} is no longer recalled."))


def _hit(api: Api, recall: str, limit: int) -> list[Json]:
    return api.every(queries.RECALL_HITS, "recallHits", limit=limit, id=recall)


def _hits(made: Json, found: list[Json]) -> None:
    render.say(f"{_name(made)} is recalled (id {made['id']}); it is in {len(found)} builds.")
    if found:
        render.say()
        _table(found)


def _table(found: list[Json]) -> None:
    rows = [
        (
            one["build"],
            one["state"],
            "current" if one["isCurrent"] else "",
            one["requestedBy"],
            ", ".join(one["packages"]),
        )
        for one in found
    ]
    render.table(["build", "state", "", "asked by", "packages"], rows, empty="No build holds it.")


def _name(recall: Json) -> str:
    prefix = "pypi:" if recall["manager"] == "pypi" else ""
    return prefix + recall["spec"] if recall["spec"] else f"sha256:{recall['sha256'][:12]}"
