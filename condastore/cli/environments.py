"""`condastore env`: environments as a whole; the builds' commands come from `builds.py`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from condastore.cli import builds, exports, queries, render, run
from condastore.cli.client import Api, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import environment_only, find_build, find_environment, reference
from condastore.cli.namespaces import Group, User, holder_of, named
from condastore.cli.options import (
    AsJson,
    BuildOf,
    Environment,
    Limit,
    OptionalFile,
    Yes,
    complete_namespace,
)
from condastore.cli.prompts import confirm

app = typer.Typer(help="Environments and their builds.", no_args_is_help=True)
app.add_typer(builds.app)
exports.add_to(app)
app.command()(run.path)


@app.command()
def create(
    environment: Environment,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    file: OptionalFile = None,
    wait: builds.Wait = True,
    as_json: AsJson = False,
) -> None:
    """Create an environment; with a file, build it too."""
    api = connect()
    ref = environment_only(api, environment)
    made = api.change(
        queries.CREATE_ENVIRONMENT,
        namespace=ref.namespace,
        name=ref.environment,
        description=description,
        specification=builds.read(file) if file else None,
    )
    if file is None or not wait or made["latest"] is None:
        hint = f"Build it: condastore env build {ref} -f FILE"
        if made["latest"]:
            hint = f"Follow its build: condastore env wait {ref}"
        render.answer(made, as_json, lambda: render.say(f"Created {ref}.\n{hint}"))
        return
    builds.end(builds.follow_now(api, made["latest"], as_json=as_json))


@app.command("list")
def list_(
    namespace: Annotated[
        str,
        typer.Argument(
            metavar="[NAMESPACE]",
            help="Of this namespace only.",
            show_default=False,
            autocompletion=complete_namespace,
        ),
    ] = "",
    search: Annotated[str, typer.Option(help="A part of the name or description.")] = "",
    package: Annotated[str, typer.Option(help="With this package in the current build.")] = "",
    state: Annotated[str, typer.Option(help="Whose newest build is in this state.")] = "",
    unused: Annotated[
        str, typer.Option(help="Not used for so long: 90d, 12w.", show_default=False)
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="At most so many; 0 for all.", show_default="50; all with --json"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.", show_default=False)] = False,
    as_json: AsJson = False,
) -> None:
    """List the environments that you may see."""
    if limit is None:
        limit = 0 if as_json else PAGE
    wanted: dict[str, Any] = {
        "namespace": namespace,
        "search": search,
        "package": package,
        "state": [state.upper()] if state else [],
        "unusedSince": _unused_since(unused) if unused else "",
    }
    filters = {name: value for name, value in wanted.items() if value}
    found = connect().every(
        queries.ENVIRONMENTS, "environments", limit=0 if every else limit, filters=filters or None
    )
    rows = []
    for one in found:
        current, latest = one["current"], one["latest"]
        rows.append(
            (
                render.name_of(one),
                current["number"] if current else "",
                _remarks(one),
                render.state_of(current if _is_newest(one) else latest) if latest else "",
                one["description"],
                render.when(one["updatedAt"]),
                render.when(one["lastUsedAt"]),
            )
        )
    columns = ["environment", "#current", "", "state", "-~description", "-changed", "-used"]
    empty = "No environment matches." if filters else NO_ENVIRONMENTS
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty), every="--all")


#: Environments that are listed unless a limit is given.
PAGE = 50
NO_ENVIRONMENTS = (
    "You have no environments yet.\nBuild one: condastore env build NAME -f environment.yml"
)


def _is_newest(environment: dict[str, Any]) -> bool:
    current, latest = environment["current"], environment["latest"]
    return bool(current and latest and current["number"] == latest["number"])


def _remarks(environment: dict[str, Any]) -> str:
    current = environment["current"]
    recalled = current and current["recalled"] and not _is_newest(environment)
    return ", ".join(["pinned"] * environment["pinned"] + ["recalled"] * bool(recalled))


_SPAN = re.compile(r"(\d{1,5})([dw])")


def _unused_since(text: str) -> str:
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise CommandError(
            f"{text!r} is not a duration: write 90d (days) or 12w (weeks).",
            status=Status.USAGE,
            code="invalid-input",
            where="--unused",
        )
    days = int(found[1]) * (7 if found[2] == "w" else 1)
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


@app.command()
def show(environment: BuildOf, as_json: AsJson = False) -> None:
    """Show an environment, or one build of it."""
    api = connect()
    ref = reference(api, environment)
    if ref.build:
        builds.show_build(api, ref, as_json=as_json)
        return
    found = find_environment(api, ref)
    current, latest = found["current"], found["latest"]

    def line(build: dict[str, Any] | None) -> str:
        if build is None:
            return ""
        names = f" [{render.tags(build)}]" if build["tags"] else ""
        return (
            f"{build['number']} {render.state_of(build)} {render.moment(build['createdAt'])}{names}"
        )

    rows = [
        ("environment", render.name_of(found)),
        ("description", found["description"]),
        ("current build", line(current) + (" (pinned)" if current and found["pinned"] else "")),
        ("recalled", current and current["recalled"]),
        ("newest build", "" if _is_newest(found) else line(latest)),
        ("tags", ", ".join(f"{tag['name']} -> {tag['build']['number']}" for tag in found["tags"])),
        ("folder", found["folder"]),
        ("created", f"{render.moment(found['createdAt'])} by {found['createdBy'] or 'nobody'}"),
    ]
    render.answer(found, as_json, lambda: render.pairs(rows))


@app.command()
def history(environment: Environment, limit: Limit = 20, as_json: AsJson = False) -> None:
    """List an environment's builds, newest first."""
    api = connect()
    ref = environment_only(api, environment)
    found = api.every(
        queries.HISTORY,
        "environment",
        "builds",
        limit=limit,
        namespace=ref.namespace,
        name=ref.environment,
    )
    if not found:
        find_environment(api, ref)  # an unknown environment has no builds either
    rows = [
        (
            one["number"],
            "*" if one["isCurrent"] else "",
            one["state"],
            render.tags(one),
            render.when(one["createdAt"]),
            render.worked(one),
            one["requestedBy"],
            one["lock"]["digest"][:12] if one["lock"] else "",
            (one["failure"] or {"message": ""})["message"].partition("\n")[0][:80],
        )
        for one in found
    ]
    columns = ["#build", "", "state", "tags", "submitted", "took", "-by", "-lock", "~problem"]
    empty = f"{ref} has no builds yet.\nBuild it: condastore env build {ref} -f environment.yml"
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def copy(
    environment: Environment,
    to: Annotated[
        str, typer.Argument(metavar="NAMESPACE/ENV", help="The new one.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Copy an environment with its history; no bytes are copied."""
    api = connect()
    target = environment_only(api, to)
    made = api.change(
        queries.COPY,
        environmentId=_id(api, environment),
        namespace=target.namespace,
        name=target.environment,
    )

    def human() -> None:
        render.say(f"Copied to {render.name_of(made)}.")
        latest = made["latest"]
        if latest and latest["state"] == "HELD":
            render.say(f"Build {latest['number']} waits for approval there.")

    render.answer(made, as_json, human)


@app.command()
def move(
    environment: Environment,
    namespace: Annotated[str, typer.Argument(help="Where to.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Move an environment with its history to another namespace."""
    api = connect()
    moved = api.change(queries.MOVE, environmentId=_id(api, environment), namespace=namespace)
    render.answer(moved, as_json, lambda: render.say(f"Moved to {render.name_of(moved)}."))


@app.command()
def rename(
    environment: Environment,
    name: Annotated[str, typer.Argument(help="The new name.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Give an environment another name in its namespace."""
    api = connect()
    renamed = api.change(queries.RENAME, environmentId=_id(api, environment), name=name)
    render.answer(renamed, as_json, lambda: render.say(f"Renamed to {render.name_of(renamed)}."))


@app.command()
def delete(environment: BuildOf, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete an environment with all its builds, or one build."""
    api = connect()
    ref = reference(api, environment)
    confirm(f"Delete {ref}{'' if ref.build else ' and all its builds'}?", yes=yes)
    if ref.build:
        gone = api.change(queries.DELETE_BUILD, id=find_build(api, ref)["id"])
    else:
        gone = api.change(queries.DELETE, environmentId=find_environment(api, ref)["id"])
    render.answer(gone, as_json, lambda: render.say(f"Deleted {ref}."))


@app.command()
def unpin(environment: Environment, as_json: AsJson = False) -> None:
    """Let newer builds become current again."""
    api = connect()
    changed = api.change(queries.UNPIN, environmentId=_id(api, environment), repeat=True)
    name = render.name_of(changed)
    render.answer(changed, as_json, lambda: render.say(f"{name} follows its newest build again."))


@app.command()
def rollback(
    environment: BuildOf,
    to: Annotated[
        str, typer.Option(help="To this build or tag; else to the one before the current.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make an earlier build current, and pin it."""
    api = connect()
    ref = reference(api, environment)
    if ref.build and to:
        raise CommandError("The build is named twice.", status=Status.USAGE, code="invalid-input")
    target = ref.build or to
    found = find_environment(api, ref)
    build_id = find_build(api, builds.of(ref, target))["id"] if target else None
    changed = api.change(queries.ROLLBACK, environmentId=found["id"], to=build_id)
    name, number = render.name_of(changed), changed["current"]["number"]
    text = f"Build {number} of {name} is current and pinned.\nUnpin it: condastore env unpin {name}"
    render.answer(changed, as_json, lambda: render.say(text))


@app.command()
def untag(
    environment: Environment,
    tag: Annotated[str, typer.Argument(show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Remove a tag; the build stays."""
    api = connect()
    changed = api.change(queries.UNTAG, environmentId=_id(api, environment), tag=tag)
    render.answer(changed, as_json, lambda: render.say(f"Removed the tag {tag}."))


@app.command()
def share(
    environment: Environment, user: User = "", group: Group = "", as_json: AsJson = False
) -> None:
    """Share an environment with a user or a group outside its namespace."""
    api = connect()
    holder = holder_of(user, group)
    changed = api.change(queries.SHARE, environmentId=_id(api, environment), repeat=True, **holder)
    text = f"{named(user, group)} may see and use {render.name_of(changed)}."
    render.answer(changed, as_json, lambda: render.say(text))


@app.command()
def unshare(
    environment: Environment, user: User = "", group: Group = "", as_json: AsJson = False
) -> None:
    """Stop sharing an environment; roles in its namespace are unchanged."""
    api = connect()
    holder = holder_of(user, group)
    changed = api.change(
        queries.UNSHARE, environmentId=_id(api, environment), repeat=True, **holder
    )
    text = f"{render.name_of(changed)} is no longer shared with {user or f'the group {group}'}."
    render.answer(changed, as_json, lambda: render.say(text))


def _id(api: Api, text: str) -> str:
    return str(find_environment(api, environment_only(api, text))["id"])
