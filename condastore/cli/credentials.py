"""`condastore credential`: secrets that are sent to channels."""

from __future__ import annotations

from typing import Annotated

import typer

from condastore.cli import queries, render
from condastore.cli.client import connect
from condastore.cli.options import AsJson, Limit

app = typer.Typer(
    help="Secrets of channels: they come with a specification, and are never shown.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    namespace: Annotated[str, typer.Option(help="Of this namespace.")] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the credentials of the namespaces that you run."""
    found = connect().every(
        queries.CREDENTIALS, "channelCredentials", limit=limit, namespace=namespace or None
    )
    rows = [
        (
            one["id"],
            one["urlPrefix"],
            one["kind"],
            one["namespace"] or "the installation",
            render.moment(one["createdAt"]),
        )
        for one in found
    ]
    columns = ["#id", "channel", "kind", "of", "since"]
    render.answer(found, as_json, lambda: render.table(columns, rows, empty="There is none."))


@app.command()
def remove(
    credential: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Delete a credential: builds that start later are refused by the channel."""
    gone = connect().change(queries.DELETE_CREDENTIAL, id=credential)
    text = f"The credential for {gone['urlPrefix']} is deleted."
    render.answer(gone, as_json, lambda: render.say(text))
