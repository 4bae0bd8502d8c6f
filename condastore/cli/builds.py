"""`condastore env`, the commands about builds: make, follow, compare, choose, tag, archive them."""

from __future__ import annotations

import codecs
import sys
import uuid
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import (
    ask_build,
    environment_only,
    find_build,
    latest,
    not_found,
    reference,
)
from condastore.cli.options import (
    AsJson,
    BuildOf,
    Environment,
    File,
    ForceSolve,
    Limit,
    Platform,
)
from condastore.cli.references import CURRENT, Reference
from condastore.terminal import one_line

app = typer.Typer()

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the build until it ends.")]
LOG_PAGE = 1000


@app.command()
def build(
    environment: Environment,
    file: File,
    wait: Wait = True,
    force_solve: ForceSolve = False,
    platform: Annotated[
        list[str] | None,
        typer.Option(help="Solve for this platform too; may be repeated.", show_default=False),
    ] = None,
    idempotency_key: Annotated[
        str, typer.Option(help="Two requests with the same key make one build.", show_default="new")
    ] = "",
    reason: Annotated[str, typer.Option(help="What it is for, to those who approve.")] = "",
    as_json: AsJson = False,
) -> None:
    """Build an environment from a file, and follow it live."""
    api = connect()
    ref = environment_only(api, environment)
    submitted = api.change(
        queries.SUBMIT,
        namespace=ref.namespace,
        environment=ref.environment,
        specification=read(file),
        # With a key of its own a request that was cut can be sent again and builds once.
        idempotencyKey=idempotency_key or uuid.uuid4().hex,
        repeat=True,
        forceSolve=force_solve,
        platforms=platform or None,
        reason=reason,
    )
    for warning in submitted["warnings"]:
        render.warn(f"warning: {warning}")
    queued = submitted["build"]
    if not wait:
        text = f"Queued {queued['ref']}.\nFollow it: condastore env wait {queued['ref']}"
        render.answer(submitted, as_json, lambda: render.say(text))
        return
    if as_json:
        render.json_line({"event": "submitted"} | submitted)
    end(follow_now(api, queued, as_json=as_json))


@app.command()
def preview(
    environment: Environment,
    file: File,
    platform: Platform = None,
    force_solve: ForceSolve = False,
    as_json: AsJson = False,
) -> None:
    """Solve without building, and show what would change."""
    from condastore.cli import follow

    api = connect()
    ref = environment_only(api, environment)
    found = api.change(
        queries.PREVIEW_SOLVE,
        namespace=ref.namespace,
        environment=ref.environment,
        specification=read(file),
        forceSolve=force_solve,
        platforms=[platform] if platform else None,
        platform=platform,
    )
    found = follow.preview(api, found, platform=platform)

    def human() -> None:
        for warning in found["warnings"]:
            render.warn(f"warning: {warning}")
        if found["failure"]:
            for line in render.failure_lines(found["failure"]):
                render.warn(line)
            return
        lock = found["lock"]
        render.say(f"{lock['packageCount']} packages for {', '.join(lock['platforms'])}")
        if found["diff"]:
            render.changes(found["diff"])
        for verdict in found["verdicts"]:
            through = f", through {' → '.join(verdict['chain'])}" if verdict["chain"] else ""
            render.say(f"{verdict['effect']}: {verdict['reason'].rstrip('.')}{through}.")

    render.answer(found, as_json, human)
    end(Status.FAILED if found["failure"] else Status.OK)


@app.command()
def log(
    environment: BuildOf,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the build ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log of a build; of the newest one where none is named."""
    api = connect()
    found = find_build(api, latest(api, reference(api, environment)))
    if follow and not found["finished"]:
        end(follow_now(api, found, as_json=as_json))
        return
    lines: list[str] = []
    start = 0
    while True:
        part = api.ask(queries.LOG, id=found["id"], start=start, limit=LOG_PAGE)["build"]["log"]
        start += len(part)
        if as_json:
            lines += part
        else:
            for line in part:
                render.say(one_line(line))
        if len(part) < LOG_PAGE:
            break
    if as_json:
        render.answer(
            {"ref": found["ref"], "state": found["state"], "lines": lines}, True, render.say
        )


@app.command()
def wait(
    environment: BuildOf,
    log: Annotated[bool, typer.Option("--log", help="Show the log meanwhile.")] = False,
    as_json: AsJson = False,
) -> None:
    """Wait for a build, the newest one where none is named; status 0 if it is ready."""
    from condastore.cli.follow import report

    api = connect()
    found = find_build(api, latest(api, reference(api, environment)))
    if found["finished"]:
        end(report(found, as_json=as_json))
    end(follow_now(api, found, as_json=as_json, log=log))


@app.command()
def diff(
    first: Annotated[
        str,
        typer.Argument(metavar="ENV[:BUILD]", help="The older one of two.", show_default=False),
    ],
    second: Annotated[
        str,
        typer.Argument(
            metavar="[ENV:BUILD]",
            help=":BUILD alone is of the same environment.",
            show_default=False,
        ),
    ] = "",
    platform: Platform = None,
    as_json: AsJson = False,
) -> None:
    """Compare two builds; or a build, else the current one, with the build before it."""
    api = connect()
    ref = reference(api, first)
    if not second:
        document = ask_build(api, queries.CHANGES, ref, platform=platform)
        found = document["diffTo"]
        head = f"{document['ref']}, compared with the build before it"
    else:
        same = f"{ref.namespace}/{ref.environment}"
        text = f"{same}:{second.removeprefix(':')}" if "/" not in second else second
        old, new = find_build(api, ref), find_build(api, reference(api, text))
        found = api.ask(queries.COMPARE, old=old["id"], new=new["id"], platform=platform)[
            "compareBuilds"
        ]
        head = f"{old['ref']} -> {new['ref']}"

    def human() -> None:
        render.say(head)
        render.changes(found)

    render.answer(found, as_json, human)


@app.command()
def why(
    environment: BuildOf,
    package: Annotated[str, typer.Argument(show_default=False)],
    platform: Platform = None,
    as_json: AsJson = False,
) -> None:
    """Show why a package is in a build: chains of requirements that lead to it."""
    api = connect()
    ref = reference(api, environment)
    found = ask_build(api, queries.WHY, ref, name=package, platform=platform)
    chains = found["why"]
    if not chains:
        raise not_found(
            f"{found['ref']} does not contain {package!r}.",
            hint=f"See what it contains: `condastore env packages {found['ref']}`.",
        )

    def human() -> None:
        for chain in chains:
            if len(chain) == 1:
                render.say(f"{chain[0]}  (asked for)")
            else:
                render.say(one_line(" -> ".join(chain)))

    render.answer(found, as_json, human)


@app.command()
def packages(
    environment: BuildOf,
    search: Annotated[str, typer.Option(help="A part of the name.")] = "",
    platform: Platform = None,
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the packages of a build."""
    api = connect()
    ref = reference(api, environment)
    found = api.every(
        queries.PACKAGES,
        "build",
        "lock",
        "packages",
        limit=limit,
        namespace=ref.namespace,
        environment=ref.environment,
        number=ref.build or CURRENT,
        platform=platform,
        search=search or None,
    )
    if not found:
        find_build(api, ref)  # an unknown build has no packages either
    rows = [
        (
            one["name"],
            one["version"],
            one["build"],
            "pypi" if one["kind"] == "PYPI" else _channel_name(one["channel"]),
            one["platform"],
            render.size(one["size"]),
            one["license"],
        )
        for one in found
    ]
    columns = ["package", "version", "build", "channel", "-platform", "#size", "-license"]
    empty = f"No package of {ref} matches."
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


def _channel_name(url: str) -> str:
    """Return the path of a channel's URL, such as conda-forge; --json has the whole URL."""
    return urlsplit(url).path.strip("/") or url


@app.command()
def specification(environment: BuildOf, as_json: AsJson = False) -> None:
    """Print the specification of a build as it was written."""
    api = connect()
    found = ask_build(api, queries.SOURCE, reference(api, environment))
    render.answer(found, as_json, lambda: render.document(found["source"].rstrip("\n") + "\n"))


@app.command()
def pin(environment: BuildOf, as_json: AsJson = False) -> None:
    """Make a build current and keep it so; without :BUILD, keep the one that is current."""
    api = connect()
    found = find_build(api, reference(api, environment))
    changed = api.change(queries.PIN, id=found["id"], pin=True, repeat=True)
    text = f"{changed['ref']} is current and pinned."
    render.answer(changed, as_json, lambda: render.say(text))


@app.command()
def tag(
    environment: BuildOf,
    name: Annotated[str, typer.Argument(metavar="TAG", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Give a build a tag; a tag that is there already moves."""
    api = connect()
    found = find_build(api, reference(api, environment))
    changed = api.change(queries.TAG, id=found["id"], tag=name, repeat=True)
    render.answer(changed, as_json, lambda: render.say(f"{changed['ref']} is tagged {name}."))


@app.command()
def cancel(environment: BuildOf, as_json: AsJson = False) -> None:
    """Cancel a build; the newest one where none is named."""
    api = connect()
    found = find_build(api, latest(api, reference(api, environment)))
    changed = api.change(queries.CANCEL, id=found["id"], repeat=True)
    text = f"{changed['ref']} is {changed['state']}."
    render.answer(changed, as_json, lambda: render.say(text))


@app.command()
def archive(environment: BuildOf, as_json: AsJson = False) -> None:
    """Drop a build's files; its lock and log stay, and it can be restored."""
    api = connect()
    ref = _named(reference(api, environment))
    changed = api.change(queries.ARCHIVE, id=find_build(api, ref)["id"], repeat=True)
    render.answer(changed, as_json, lambda: render.say(f"{changed['ref']} is archived."))


@app.command()
def restore(environment: BuildOf, wait: Wait = True, as_json: AsJson = False) -> None:
    """Link an archived build again, from the same lock; or a READY one whose folder is missing."""
    api = connect()
    ref = _named(reference(api, environment))
    changed = api.change(queries.RESTORE, id=find_build(api, ref)["id"])
    if wait:
        # The log continues the one of earlier attempts, which is not printed again.
        end(follow_now(api, changed, as_json=as_json, from_line=changed["logLines"]))
    text = f"Queued {changed['ref']}.\nFollow it: condastore env wait {changed['ref']}"
    render.answer(changed, as_json, lambda: render.say(text))


# --- shared by the commands of `env` --------------------------------------------------------------


def show_build(api: Api, ref: Reference, *, as_json: bool) -> None:
    found = find_build(api, ref)
    lock = found["lock"] or {}

    def human() -> None:
        render.pairs(
            [
                ("build", found["ref"]),
                ("state", render.state_of(found) + (" (current)" if found["isCurrent"] else "")),
                ("tags", render.tags(found)),
                ("recalled", found.get("recalled")),
                ("purpose", found.get("reason")),
                ("submitted", f"{render.moment(found['createdAt'])} by {found['requestedBy']}"),
                ("finished", render.moment(found["finishedAt"])),
                ("took", render.worked(found)),
                ("attempt", found["attempt"]),
                ("platform", found["platform"]),
                ("lock", lock.get("digest", "")[:12]),
                ("packages", lock.get("packageCount")),
                ("size", render.size(found["apparentSize"])),
                ("of its own", render.size(found["uniqueSize"])),
                ("folder", found["prefixPath"]),
                ("missing folder", (found.get("missingFolder") or {}).get("state", "").lower()),
            ]
        )
        for request in found.get("approvals") or ():
            if request["state"] in ("OPEN", "SECOND"):
                render.say(one_line(_waits_for(request)))
        if found["failure"]:
            for line in render.failure_lines(found["failure"]):
                render.say(line)

    render.answer(found, as_json, human)


def _waits_for(request: Json) -> str:
    way = f", needed through {' -> '.join(request['chain'])}" if len(request["chain"]) > 1 else ""
    who = ", ".join(request["deciders"]) or "an administrator"
    name = f"{request['name']} {request['version']}".strip()
    return f"waits for {name} (request {request['id']}){way}; may decide: {who}"


def of(ref: Reference, build: str) -> Reference:
    return Reference(namespace=ref.namespace, environment=ref.environment, build=build)


def follow_now(
    api: Api, build: Json, *, as_json: bool, log: bool = True, from_line: int = 0
) -> Status:
    from condastore.cli.follow import follow

    return follow(api, build, as_json=as_json, log=log, from_line=from_line)


def end(status: Status) -> None:
    """Leave with `status`."""
    raise typer.Exit(status)


def read(file: Path) -> str:
    """Read the text of a specification; `-` is stdin."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        # PowerShell's `>` writes UTF-16 with a byte order mark.
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if utf_16 else "utf-8-sig")
    except OSError as error:
        message = f"The file cannot be read: {error.strerror}."
    except UnicodeDecodeError as error:
        message = f"The file is not UTF-8 text: byte {error.start} is not."
    raise CommandError(message, status=Status.INVALID, code="invalid-input", where=str(file))


def _named(ref: Reference) -> Reference:
    if not ref.build:
        raise CommandError(
            f"Name the build: {ref}:NUMBER.", status=Status.USAGE, code="invalid-input"
        )
    return ref
