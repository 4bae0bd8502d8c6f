"""`condastore mirror`: remote channels that are read through this server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, connect
from condastore.cli.lookup import not_visible
from condastore.cli.options import AsJson, Limit, Yes
from condastore.cli.prompts import confirm

app = typer.Typer(
    help="Remote channels, read here through the rules, now or as they were on a day.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]
Place = Annotated[
    str,
    typer.Option("--namespace", "-n", help="Whose rules hold, and whose people read it."),
]
Subdirs = Annotated[
    list[str],
    typer.Option("--subdir", metavar="SUBDIR", help="Again for more.", show_default=False),
]


@app.command("list")
def list_(limit: Limit = 0, as_json: AsJson = False) -> None:
    """List the mirrors that you may read."""
    found = connect().every(queries.MIRRORS, "mirrors", limit=limit)
    rows = [
        (
            one["name"],
            one["upstream"],
            one["namespace"] or "(everywhere)",
            "public" if one["public"] else "",
            "stale" if any(part["failure"] for part in one["subdirs"]) else "",
        )
        for one in found
    ]
    columns = ["name", "channel", "-namespace", "", ""]
    empty = "No mirrors yet.\nCreate one: condastore mirror create NAME CHANNEL"
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a mirror, and how it follows its channel."""
    found = _find(connect(), name)
    render.answer(found, as_json, lambda: _show(found))


@app.command()
def create(
    name: Name,
    upstream: Annotated[
        str,
        typer.Argument(
            metavar="CHANNEL", help="Its URL, or a name like conda-forge.", show_default=False
        ),
    ],
    namespace: Place = "",
    public: Annotated[bool, typer.Option(help="Everybody may read it.")] = False,
    subdirs: Subdirs = [],  # noqa: B006 - typer makes a new one
    as_json: AsJson = False,
) -> None:
    """Mirror a remote channel (who runs the installation)."""
    made = connect().change(
        queries.CREATE_MIRROR,
        name=name,
        upstream=upstream,
        namespace=namespace or None,
        public=public,
        subdirs=subdirs or None,
    )
    render.answer(made, as_json, lambda: render.say(f"Read it as {made['url']}"))


@app.command()
def change(
    name: Name,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Another one; '' for the whole installation."),
    ] = None,
    public: Annotated[
        bool | None, typer.Option("--public/--no-public", help="Everybody may read it.")
    ] = None,
    subdirs: Subdirs = [],  # noqa: B006 - typer makes a new one
    as_json: AsJson = False,
) -> None:
    """Change the policy, the readers and the subdirs of a mirror."""
    api = connect()
    asked: dict[str, Any] = {} if namespace is None else {"namespace": namespace or None}
    key = _find(api, name)["id"]
    changed = api.change(
        queries.CHANGE_MIRROR, id=key, public=public, subdirs=subdirs or None, **asked
    )
    render.answer(changed, as_json, lambda: _show(changed))


@app.command()
def delete(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a mirror: its days cannot be had again."""
    api = connect()
    found = _find(api, name)
    confirm(f"Delete the mirror {name}, with all of its history?", yes=yes)
    gone = api.change(queries.DELETE_MIRROR, id=found["id"])
    render.answer(gone, as_json, lambda: render.say(f"The mirror {name} is deleted."))


def _find(api: Api, name: str) -> Json:
    found: Json | None = api.ask(queries.MIRROR, name=name)["mirror"]
    if found is None:
        raise not_visible(
            api,
            f"There is no mirror {name!r} that you may see.",
            hint="See yours with `condastore mirror list`.",
        )
    return found


def _show(mirror: Json) -> None:
    render.pairs(
        [
            ("read it as", mirror["url"]),
            ("channel", mirror["upstream"]),
            ("rules of", mirror["namespace"] or "the installation"),
            ("public", "yes" if mirror["public"] else "no"),
            ("kept packages", f"{mirror['packages']} ({render.size(int(mirror['size']))})"),
        ]
    )
    rows = [
        (
            part["subdir"],
            str(part["records"]),
            render.when(part["lookedAt"]),
            render.when(part["changedAt"]),
            part["failure"] or "",
        )
        for part in mirror["subdirs"]
    ]
    render.table(["subdir", "#records", "checked", "changed", "~problem"], rows, empty="")
