"""`condastore recall`: packages that are called back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson, Limit, Yes
from condastore.cli.prompts import confirm, required_text

#: Builds that a preview names.
SHOWN = 20
app = typer.Typer(
    help="Recall packages: builds that contain one are neither built nor served.",
    no_args_is_help=True,
)


@app.command()
def add(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="[SPEC]",
            help="A MatchSpec, with stars in names; pypi: before it for wheels.",
            show_default=False,
        ),
    ] = "",
    sha256: Annotated[
        str, typer.Option(help="SHA-256 of the package file, instead of a MatchSpec.")
    ] = "",
    reason: Annotated[
        str, typer.Option(help="Reason, shown to everybody who is affected.", show_default=False)
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="List the affected builds; recall nothing."),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Recall a package: builds that contain it are no longer served. Lists them first."""
    if bool(spec) == bool(sha256):
        raise CommandError(
            "Give a MatchSpec, or --sha256.", status=Status.USAGE, code="invalid-input"
        )
    api = connect()
    target: dict[str, Any] = {"spec": spec, "sha256": sha256, "manager": "conda"}
    if dry_run or not yes:
        planned = api.ask(queries.RECALL_PREVIEW, **target)["recallPreview"]
        if dry_run:
            render.answer(planned, as_json, lambda: _preview(spec or sha256, planned))
            return
        if sys.stdin.isatty():
            _preview(spec or sha256, planned, say=render.warn)
        confirm(f"Recall {spec or sha256}, which is in {_extent(planned)}?", yes=yes)
    reason = required_text(reason, option="--reason")
    made = api.change(queries.RECALL, reason=reason, **target)
    found = _hit(api, made["id"], 0)
    render.answer(made | {"hits": found}, as_json, lambda: _hits(made, found))


@app.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Undone recalls too.")] = False,
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List recalls: all if you may recall, else those that affect what you may see."""
    filters = None if every else {"active": True}
    found = connect().every(queries.RECALLS, "recalls", limit=limit, filters=filters)
    rows = [
        (
            one["id"],
            _name(one),
            render.when(one["recalledAt"]),
            one["recalledBy"],
            f"undone by {one['undoneBy']}" if one["undoneAt"] else "",
            one["reason"],
        )
        for one in found
    ]
    columns = ["#id", "package", "since", "-by", "-", "~reason"]
    render.answer(found, as_json, lambda: render.table(columns, rows, empty="Nothing is recalled."))


@app.command()
def hits(
    recall: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the builds that contain recalled packages."""
    found = _hit(connect(), recall, limit)
    render.answer(found, as_json, lambda: _table(found))


@app.command()
def undo(
    recall: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    reason: Annotated[
        str, typer.Option(help="Reason, shown to everybody who is affected.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Undo a recall: its builds are served again."""
    reason = required_text(reason, option="--reason")
    gone = connect().change(queries.UNDO_RECALL, id=recall, reason=reason)
    render.answer(gone, as_json, lambda: render.say(f"{_name(gone)} is no longer recalled."))


def _hit(api: Api, recall: str, limit: int) -> list[Json]:
    return api.every(queries.RECALL_HITS, "recallHits", limit=limit, id=recall)


def _hits(made: Json, found: list[Json]) -> None:
    extent = render.number(len(found), "build")
    render.say(f"{_name(made)} is recalled (id {made['id']}); it is in {extent}.")
    if found:
        render.say()
        _table(found)


def _preview(name: str, planned: Json, *, say: Callable[[str], None] = render.say) -> None:
    """Print what a recall would stop serving, the newest builds by name."""
    people = render.number(planned["requesterCount"], "user")
    say(f"{name} is in {_extent(planned)}; {people} would be notified.")
    for one in planned["builds"][:SHOWN]:
        current = " (current)" if one["isCurrent"] else ""
        say(f"  {one['build']}{current}: {', '.join(one['packages'])}")
    if planned["buildCount"] > SHOWN:
        say(f"  and {planned['buildCount'] - SHOWN:,} more")


def _extent(planned: Json) -> str:
    """Return such as "3 builds of 2 environments in 1 namespace"."""
    builds, environments, namespaces = (
        render.number(planned[f"{noun}Count"], noun)
        for noun in ("build", "environment", "namespace")
    )
    return f"{builds} of {environments} in {namespaces}" if planned["buildCount"] else "no build"


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
    render.table(
        ["build", "state", "", "-submitted by", "~packages"], rows, empty="No build contains it."
    )


def _name(recall: Json) -> str:
    prefix = "pypi:" if recall["manager"] == "pypi" else ""
    return prefix + recall["spec"] if recall["spec"] else f"sha256:{recall['sha256'][:12]}"
