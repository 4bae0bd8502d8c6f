"""`condastore retention`, `collect`, `storage`: how long builds stay, and what their bytes take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from condastore.cli import queries, render
from condastore.cli.client import connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import find_environment, not_visible, reference
from condastore.cli.namespaces import Name
from condastore.cli.options import AsJson, BuildOf, Limit
from condastore.cli.prompts import required_text
from condastore.cli.server import manage

app = typer.Typer(
    help="Retention of builds, and restoring deleted builds.",
    no_args_is_help=True,
)
storage = typer.Typer(help="Storage of the server's files.", no_args_is_help=True)


def add_to(root: typer.Typer) -> None:
    root.add_typer(app, name="retention")
    root.command()(collect)
    root.add_typer(storage, name="storage")


# --- rules --------------------------------------------------------------------------------------


@app.command()
def show(namespace: Name, as_json: AsJson = False) -> None:
    """Show the rules of a namespace, as they act."""
    api = connect()
    found = api.ask(queries.RETENTION, name=namespace)["namespace"]
    if found is None:
        raise not_visible(
            api,
            f"There is no namespace {namespace!r} that you may see.",
            hint="See yours with `condastore namespace list`.",
        )
    render.answer(found, as_json, lambda: _show(found["retention"]))


def _show(rules: dict[str, Any]) -> None:
    def said(number: int | None, unit: str, none: str) -> str:
        return none if number is None else f"{number} {unit}"

    if rules["keepLast"] is None and rules["keepDays"] is None:
        render.say("Every build is retained.")
        return
    render.pairs(
        [
            ("the newest", said(rules["keepLast"], "builds of each environment stay", "")),
            ("at least", said(rules["keepDays"], "days each build stays", "")),
            ("tagged builds", "stay" if rules["keepTagged"] else "go like others"),
            ("archived ones", said(rules["deleteDays"], "days later are deleted", "stay")),
        ]
    )


@app.command("set")
def set_(
    namespace: Name,
    keep_last: Annotated[str, typer.Option(help="Newest builds that stay.")] = "",
    keep_days: Annotated[str, typer.Option(help="Days that each build stays.")] = "",
    delete_days: Annotated[str, typer.Option(help="Delete archived builds after days.")] = "",
    keep_tagged: Annotated[
        bool | None, typer.Option("--keep-tagged/--no-keep-tagged", help="Tagged builds stay.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set rules: a number, 0 for no such rule, or `default` for the installation's."""
    given = {"keepLast": keep_last, "keepDays": keep_days, "deleteDays": delete_days}
    asked: dict[str, Any] = {name: _number(text) for name, text in given.items() if text}
    if keep_tagged is not None:
        asked["keepTagged"] = keep_tagged
    if not asked:
        raise CommandError(
            "Say which rule to set.",
            status=Status.USAGE,
            code="invalid-input",
            hint="See them with `condastore retention show`.",
        )
    changed = connect().change(queries.SET_RETENTION, namespace=namespace, repeat=True, **asked)
    render.answer(changed, as_json, lambda: _show(changed["retention"]))


def _number(text: str) -> int | None:
    if text == "default":
        return None
    if not text.isdecimal():
        raise CommandError(
            f"{text!r} is not a rule: write a number, 0 for no such rule, or default.",
            status=Status.USAGE,
            code="invalid-input",
        )
    return int(text)


@app.command("dry-run")
def dry_run(namespace: Name, as_json: AsJson = False) -> None:
    """Show what the rules would archive and delete now, and the bytes that would be free."""
    found = connect().ask(queries.RETENTION_PLAN, namespace=namespace)["retentionPlan"]

    def human() -> None:
        rows = [
            (one["build"], one["fate"].lower(), render.size(one["size"]), one["why"])
            for one in found["planned"]
        ]
        render.table(
            ["build", "would be", "#size", "~reason"],
            rows,
            empty="No build would be archived or deleted.",
        )
        if not rows:
            return
        render.say(
            f"{found['archived']} would be archived, {found['deleted']} deleted; "
            f"{render.size(found['size'])} would be freed."
        )

    render.answer(found, as_json, human)


# --- legal holds --------------------------------------------------------------------------------


@app.command()
def hold(
    environment: BuildOf,
    reason: Annotated[str, typer.Option(help="Reason of the hold.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Place a legal hold on a build or an environment: it cannot be archived or deleted."""
    reason = required_text(reason, option="--reason")
    api = connect()
    ref = reference(api, environment)
    found = find_environment(api, ref)
    made = api.change(
        queries.PLACE_HOLD, environmentId=found["id"], build=ref.build or None, reason=reason
    )
    render.answer(made, as_json, lambda: render.say(f"Held (number {made['id']}): {ref}."))


@app.command()
def holds(
    namespace: Annotated[str, typer.Option(help="Of this namespace.")] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the legal holds of the namespaces that you manage."""
    found = connect().every(queries.HOLDS, "legalHolds", limit=limit, namespace=namespace or None)
    rows = [
        (
            one["id"],
            one["environment"] + (f":{one['build']}" if one["build"] else ""),
            render.when(one["placedAt"]),
            one["placedBy"],
            one["reason"],
        )
        for one in found
    ]
    columns = ["#id", "held", "since", "-by", "~reason"]
    empty = "No legal holds.\nPlace one: condastore retention hold ENV[:BUILD] --reason REASON"
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def release(
    hold: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    reason: Annotated[str, typer.Option(help="Reason of the release.", show_default=False)] = "",
    as_json: AsJson = False,
) -> None:
    """Release a legal hold."""
    reason = required_text(reason, option="--reason")
    gone = connect().change(queries.RELEASE_HOLD, id=hold, reason=reason)
    text = f"The hold on {gone['environment']} is released."
    render.answer(gone, as_json, lambda: render.say(text))


# --- what was deleted ---------------------------------------------------------------------------


@app.command()
def deleted(
    namespace: Annotated[str, typer.Option(help="Of this namespace.")] = "",
    as_json: AsJson = False,
) -> None:
    """List deleted builds and environments that can be restored, of namespaces that you manage."""
    api = connect()
    where: dict[str, Any] = {"namespace": namespace or None}
    found = [
        {"name": one["name"], "deletedAt": one["deletedAt"]}
        for one in api.every(queries.DELETED_ENVIRONMENTS, "deletedEnvironments", **where)
    ] + [
        {"name": f"{one['environment']}:{one['number']}", "deletedAt": one["deletedAt"]}
        for one in api.every(queries.DELETED_BUILDS, "deletedBuilds", **where)
    ]
    rows = [(one["name"], render.when(one["deletedAt"])) for one in found]
    empty = "Nothing that was deleted can be restored."
    render.answer(found, as_json, lambda: render.table(["name", "deleted"], rows, empty=empty))


@app.command()
def undelete(environment: BuildOf, as_json: AsJson = False) -> None:
    """Restore a deleted build or environment."""
    api = connect()
    ref = reference(api, environment)
    if not ref.build:
        back = api.change(
            queries.UNDELETE_ENVIRONMENT, namespace=ref.namespace, name=ref.environment
        )
    elif ref.build.isdecimal():
        back = api.change(
            queries.UNDELETE_BUILD,
            namespace=ref.namespace,
            environment=ref.environment,
            number=int(ref.build),
        )
    else:
        raise CommandError(
            f"{ref.build!r} must be a build number: deleted builds have no tags.",
            status=Status.USAGE,
            code="invalid-input",
            hint="See the numbers with `condastore retention deleted`.",
        )
    hint = "Its files come back with `condastore env restore`."
    render.answer(back, as_json, lambda: render.say(f"{ref} is back. {hint}"))


# --- on the server itself -----------------------------------------------------------------------


def collect(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be deleted; change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete unreferenced blobs and packages; runs on the server."""
    manage(["collect", *(["--dry-run"] if dry_run else []), *(["--json"] if as_json else [])])


@storage.command()
def migrate(
    to: Annotated[
        str, typer.Option(help="Copy to this kind of store: files, s3, gcs, azure.")
    ] = "",
    from_: Annotated[
        str, typer.Option("--from", help="Copy from this kind of store instead.")
    ] = "",
    options: Annotated[
        Path | None,
        typer.Option(help="JSON, as in CONDASTORE_BLOBS_OPTIONS, of that store."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read what is there already.")] = False,
) -> None:
    """Copy all kept bytes to another store, on the server itself; run it again for the rest."""
    arguments = ["storage", "migrate"]
    arguments += ["--to", to] if to else []
    arguments += ["--from", from_] if from_ else []
    arguments += ["--options", str(options)] if options else []
    manage([*arguments, *(["--check"] if check else [])])
