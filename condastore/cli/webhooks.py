"""`condastore webhook`: addresses that receive events."""

from __future__ import annotations

from typing import Annotated

import typer

from condastore.cli import queries, render
from condastore.cli.client import connect
from condastore.cli.options import AsJson, Limit

app = typer.Typer(help="Addresses that receive events.", no_args_is_help=True)

Place = Annotated[
    str,
    typer.Option("--namespace", "-n", help="Without it: the whole installation."),
]
WebhookId = Annotated[
    str, typer.Argument(metavar="ID", help="As the list shows it.", show_default=False)
]


@app.command("list")
def list_(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of this namespace only.")
    ] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the webhooks of the namespaces that you manage."""
    found = connect().every(queries.WEBHOOKS, "webhooks", limit=limit, namespace=namespace or None)
    rows = [
        (
            one["id"],
            one["namespace"] or "(everywhere)",
            one["url"],
            ", ".join(one["events"]) or "all",
            "" if one["enabled"] else "off",
        )
        for one in found
    ]
    columns = ["#id", "-namespace", "url", "~events", ""]
    empty = (
        f"{namespace} has no webhooks."
        if namespace
        else "You have no webhooks yet.\nAdd one: condastore webhook add URL --namespace NAMESPACE"
    )
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", show_default=False)],
    namespace: Place = "",
    events: Annotated[
        list[str],
        typer.Option(
            "--event",
            metavar="EVENT",
            help="build.finished, request.opened, ...; again for more, without it all.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer makes a new one
    as_json: AsJson = False,
) -> None:
    """Send events to a URL; the secret that signs the messages is shown only once."""
    made = connect().change(
        queries.CREATE_WEBHOOK, namespace=namespace or None, url=url, events=events or None
    )

    def human() -> None:
        render.say(f"Webhook {made['webhook']['id']} is registered. Its secret is shown only once:")
        render.say(made["secret"])

    render.answer(made, as_json, human)


@app.command("test")
def try_(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Send a test message to a webhook."""
    found = connect().change(queries.TEST_WEBHOOK, id=webhook)
    render.answer(found, as_json, lambda: render.say(f"Queued a test message to {found['url']}."))


@app.command()
def remove(webhook: WebhookId, as_json: AsJson = False) -> None:
    """Remove a webhook, with its undelivered messages."""
    gone = connect().change(queries.DELETE_WEBHOOK, id=webhook)
    render.answer(gone, as_json, lambda: render.say(f"Removed the webhook {gone['url']}."))
