"""`condastore credential`: list, set and remove the secrets that are sent to channels."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from condastore.cli import queries, render
from condastore.cli.client import connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson, Limit

app = typer.Typer(
    help="Secrets for channels of the namespaces that you manage; they are never shown.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    namespace: Annotated[str, typer.Option(help="Of this namespace.")] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the credentials of the namespaces that you manage."""
    found = connect().every(
        queries.CREDENTIALS, "channelCredentials", limit=limit, namespace=namespace or None
    )
    rows = [
        (
            one["id"],
            one["urlPrefix"],
            one["kind"],
            _of(one["namespace"], one["namespaces"]),
            render.when(one["createdAt"]),
        )
        for one in found
    ]
    columns = ["#id", "channel", "kind", "~for", "-since"]
    empty = (
        f"No credentials are set for {namespace}."
        if namespace
        else "You have no credentials yet.\n"
        "Set one: condastore credential set CHANNEL --namespace NAMESPACE"
    )
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


def _of(namespace: str | None, namespaces: list[str]) -> str:
    if namespace is not None:
        return namespace
    return f"the installation, for {', '.join(namespaces) or 'mirrors'}"


@app.command("set")
def set_(
    channel: Annotated[
        str,
        typer.Argument(metavar="CHANNEL", help="Its URL, without a secret.", show_default=False),
    ],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Whose builds use it.")] = "",
    installation: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="NAMESPACES",
            help="Of the installation, by administrators: a namespace whose builds use it, or a "
            "pattern ('physics-*'; '*' for all shared ones). May be repeated.",
        ),
    ] = None,
    user: Annotated[
        str, typer.Option("--user", "-u", help="User name; without it, the secret is a token.")
    ] = "",
    secret_stdin: Annotated[
        bool, typer.Option("--secret-stdin", help="Read the secret from stdin; do not ask.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Set or replace the secret that is sent to a channel."""
    if bool(namespace) == bool(installation):
        raise CommandError(
            "Name a namespace, or with --for the namespaces that a secret of the installation "
            "is for.",
            status=Status.USAGE,
            code="invalid-input",
        )
    if secret_stdin:
        secret = sys.stdin.readline().rstrip("\r\n")
    else:
        secret = typer.prompt("Password" if user else "Token", hide_input=True, err=as_json)
    kept = connect().change(
        queries.SET_CREDENTIAL,
        channel=channel,
        secret=f"{user}:{secret}" if user else secret,
        kind="BASIC" if user else "TOKEN",
        namespace=namespace or None,
        namespaces=installation,
        repeat=True,
    )
    whose = _of(kept["namespace"], kept["namespaces"])
    text = f"The secret of {kept['urlPrefix']} is set for {whose}."
    render.answer(kept, as_json, lambda: render.say(text))


@app.command()
def remove(
    credential: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Delete a credential: builds that start later are refused by the channel."""
    gone = connect().change(queries.DELETE_CREDENTIAL, id=credential)
    text = f"The credential for {gone['urlPrefix']} is deleted."
    render.answer(gone, as_json, lambda: render.say(text))
