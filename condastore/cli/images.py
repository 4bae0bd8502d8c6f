"""`condastore image`: what container images lie on, and the registries that they are sent to."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson, Limit

app = typer.Typer(
    help="Container images: base images and pushes to other registries.", no_args_is_help=True
)
rules = typer.Typer(
    help="Environments whose image is sent to another registry whenever it changes.",
    no_args_is_help=True,
)
app.add_typer(rules, name="push-rule")

Namespace = Annotated[str, typer.Argument(metavar="NAMESPACE", show_default=False)]
RuleId = Annotated[
    str, typer.Argument(metavar="ID", help="As the list shows it.", show_default=False)
]


@app.command()
def base(
    namespace: Namespace,
    image: Annotated[
        str,
        typer.Argument(
            metavar="[BASE]",
            help="registry.example.org/team/debian:12, or a name that was loaded.",
            show_default=False,
        ),
    ] = "",
    default: Annotated[bool, typer.Option("--default", help="What the installation has.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the images of a namespace lie on."""
    if bool(image) == default:
        raise CommandError(
            "Name a base, or say --default.", status=Status.USAGE, code="invalid-input"
        )
    found = connect().change(queries.SET_BASE_IMAGE, namespace=namespace, base=image, repeat=True)
    now = found["baseImage"] or "what the installation has"
    render.answer(found, as_json, lambda: render.say(f"Images of {found['name']} lie on {now}."))


@app.command()
def login(
    registry: Annotated[
        str,
        typer.Argument(
            metavar="REGISTRY", help="registry.example.org, or a folder of it.", show_default=False
        ),
    ],
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", "-n", help="Without it: where the installation pulls bases from."
        ),
    ] = "",
    *,
    user: Annotated[str, typer.Option("--user", "-u", help="Who signs in there.", prompt=True)],
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin; do not ask.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Keep what pushes of a namespace, or pulls of bases, show to a registry."""
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = typer.prompt("Password", hide_input=True, err=as_json)
    kept = connect().change(
        queries.KEEP_REGISTRY_LOGIN,
        namespace=namespace or None,
        registry=registry,
        login=f"{user}:{password}",
        repeat=True,
    )
    what = f"Pushes of {namespace}" if namespace else "Pulls of bases"
    text = f"{what} sign in to {registry} as {user}."
    render.answer(kept, as_json, lambda: render.say(text))


@rules.command("list")
def list_(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Of this namespace only.")
    ] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the rules of the namespaces that you manage, with the state of each push."""
    found = connect().every(
        queries.PUSH_RULES, "pushRules", limit=limit, namespace=namespace or None
    )
    rows = [
        (
            rule["id"],
            f"{rule['namespace']}/{rule['pattern']}",
            push["target"] if push else rule["target"],
            push["build"] if push else "",
            push["state"].lower() if push else "nothing yet",
            push["problem"] if push else "",
        )
        for rule in found
        for push in rule["pushes"] or [None]
    ]
    columns = ["#id", "environments", "to", "-build", "push", "~problem"]
    empty = (
        f"{namespace} has no push rules."
        if namespace
        else "You have no push rules yet.\n"
        "Add one: condastore image push-rule add NAMESPACE ENVIRONMENTS TARGET"
    )
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@rules.command()
def add(
    namespace: Namespace,
    pattern: Annotated[
        str,
        typer.Argument(
            metavar="ENVIRONMENTS", help="A name, or a pattern: 'ml-*'.", show_default=False
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="registry.example.org/team/{environment}:{build}",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Send environments to a registry, now and whenever their current build changes."""
    made = connect().change(
        queries.CREATE_PUSH_RULE, namespace=namespace, pattern=pattern, target=target
    )
    render.answer(made, as_json, lambda: _say(made))


@rules.command()
def again(rule: RuleId, as_json: AsJson = False) -> None:
    """Send the current images again, including failed ones."""
    found = connect().change(queries.PUSH_AGAIN, id=rule)
    render.answer(found, as_json, lambda: _say(found))


@rules.command()
def remove(rule: RuleId, as_json: AsJson = False) -> None:
    """Remove a rule; what was sent stays where it is."""
    gone = connect().change(queries.DELETE_PUSH_RULE, id=rule)
    text = f"{gone['namespace']}/{gone['pattern']} is no longer sent to {gone['target']}."
    render.answer(gone, as_json, lambda: render.say(text))


def _say(rule: dict[str, Any]) -> None:
    count = len(rule["pushes"])
    render.say(f"Rule {rule['id']}: {rule['namespace']}/{rule['pattern']} to {rule['target']}.")
    render.say(f"{count} {'image is' if count == 1 else 'images are'} on the way.")
