"""`condastore channel`: channels that are hosted on the server, and what is uploaded to them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import not_visible
from condastore.cli.options import AsJson, Limit, Yes
from condastore.cli.prompts import confirm, required_text
from condastore.terminal import console

app = typer.Typer(
    help="Channels on the server itself: upload your own packages, for builds and conda's tools.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="CHANNEL", show_default=False)]
File = Annotated[str, typer.Argument(metavar="SUBDIR/FILE", show_default=False)]
#: Bytes that are read at once.
PART = 1 << 18


@app.command("list")
def list_(
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of this namespace.")] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """List the hosted channels that you may read."""
    found = connect().every(
        queries.HOSTED_CHANNELS, "hostedChannels", limit=limit, namespace=namespace or None
    )
    rows = [
        (
            one["name"],
            one["namespace"],
            "public" if one["public"] else "",
            str(one["packages"]),
            render.size(int(one["size"])),
            one["description"],
        )
        for one in found
    ]
    columns = ["name", "-namespace", "", "#packages", "#size", "~description"]
    empty = (
        f"{namespace} has no hosted channels."
        if namespace
        else "You have no hosted channels yet.\n"
        "Create one: condastore channel create NAMESPACE/NAME --namespace NAMESPACE"
    )
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@app.command()
def show(
    name: Name,
    package: Annotated[str, typer.Option(help="Packages of this name only.")] = "",
    limit: Limit = 0,
    as_json: AsJson = False,
) -> None:
    """Show a hosted channel and its packages, the newest first."""
    api = connect()
    found = _find(api, name)
    found["listed"] = api.every(
        queries.HOSTED_PACKAGES, "hostedPackages", limit=limit, channel=name, name=package or None
    )
    render.answer(found, as_json, lambda: _show(found))


def _show(channel: Json) -> None:
    render.pairs(
        [
            ("address", channel["url"]),
            ("in specifications", f"hosted/{channel['name']}"),
            ("namespace", channel["namespace"]),
            ("public", "yes" if channel["public"] else "no"),
            ("description", channel["description"]),
        ]
    )
    rows = [
        (
            f"{one['subdir']}/{one['fileName']}",
            render.size(int(one["size"])),
            render.when(one["uploadedAt"]),
            one["uploadedBy"] or "",
            one["yankReason"] or "yes" if one["yankedAt"] else "",
        )
        for one in channel["listed"]
    ]
    columns = ["package", "#size", "-uploaded", "-by", "~yanked"]
    render.table(columns, rows, empty="It has no packages.")


@app.command()
def create(
    name: Name,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Whose people upload.", show_default=False)
    ],
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    public: Annotated[bool, typer.Option(help="Everybody may read it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create a hosted channel, NAMESPACE/NAME; administrators may leave the namespace out."""
    made = connect().change(
        queries.CREATE_HOSTED_CHANNEL,
        name=name,
        namespace=namespace,
        description=description,
        public=public,
    )
    text = f"Upload to it: condastore channel upload {name} FILE..."
    render.answer(made, as_json, lambda: render.say(text))


@app.command()
def change(
    name: Name,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    public: Annotated[
        bool | None, typer.Option("--public/--no-public", help="Everybody may read it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change who reads it, or its description."""
    changed = connect().change(
        queries.CHANGE_HOSTED_CHANNEL, name=name, description=description, public=public
    )
    render.answer(changed, as_json, lambda: render.say(f"{name} is changed."))


@app.command()
def delete(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a hosted channel with its packages; builds keep those that they have."""
    api = connect()
    found = _find(api, name)
    confirm(f"Delete the channel {name} with its {found['packages']} packages?", yes=yes)
    gone = api.change(queries.DELETE_HOSTED_CHANNEL, name=name)
    render.answer(gone, as_json, lambda: render.say(f"The channel {name} is deleted."))


@app.command()
def yank(
    name: Name,
    file: File,
    reason: Annotated[
        str, typer.Option(help="Reason, shown with the package.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Hide a package from new solves; existing locks stay valid."""
    reason = required_text(reason, option="--reason")
    found = connect().change(queries.YANK_PACKAGE, **_place(name, file), reason=reason)
    render.answer(found, as_json, lambda: render.say(f"{file} is yanked."))


@app.command()
def unyank(name: Name, file: File, as_json: AsJson = False) -> None:
    """Let solves choose a package again."""
    found = connect().change(queries.UNYANK_PACKAGE, **_place(name, file))
    render.answer(found, as_json, lambda: render.say(f"{file} is listed again."))


# --- uploads ------------------------------------------------------------------------------------


@app.command()
def upload(
    name: Name,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help=".conda, .tar.bz2, or a pure .whl.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Upload packages. One that is there already, byte for byte, is no fault.

    Each is tried, also after one that was refused.
    """
    _check(files)
    api = connect()
    done: list[Json] = []
    refused: list[CommandError] = []
    for path in files:
        try:
            with _shown(path.name, path.stat().st_size) as tell:
                told = api.upload(
                    f"/channel/hosted/{name}/{quote(path.name)}",
                    _read(path, tell),
                    size=path.stat().st_size,
                    sha256=_sha256(path),
                )
        except CommandError as error:
            error.message = f"{path}: {error.message}"
            refused.append(error)
            if error.status in {Status.UNREACHABLE, Status.NOT_FOUND, Status.REFUSED}:
                break  # it would be the same for all
            continue
        done.append(told)
        if not as_json:
            _say(told)
    if as_json:
        render.answer(done, as_json, lambda: None)
    for earlier in refused[:-1]:
        render.warn(f"error: {earlier.message}")
    if refused:
        raise refused[-1]


def _check(files: Sequence[Path]) -> None:
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise CommandError(
            f"File not found: {', '.join(missing)}.", status=Status.USAGE, code="invalid-input"
        )


def _say(told: Json) -> None:
    what = "uploaded" if told["created"] else "there already"
    render.say(f"{told['subdir']}/{told['file_name']} {what}")
    for warning in told["warnings"]:
        render.warn(f"warning: {warning}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, tell: Callable[[int], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(PART):
            yield part
            tell(len(part))


@contextmanager
def _shown(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of bytes sent and shows progress on a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda sent: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(name, total=size)
        yield lambda sent: progress.advance(task, sent)


def _find(api: Api, name: str) -> Json:
    found: Json | None = api.ask(queries.HOSTED_CHANNEL, name=name)["hostedChannel"]
    if found is None:
        raise not_visible(
            api,
            f"There is no hosted channel {name!r} that you may see.",
            hint="See yours with `condastore channel list`.",
        )
    return found


def _place(name: str, file: str) -> dict[str, Any]:
    subdir, slash, file_name = file.partition("/")
    if not slash:
        raise CommandError(
            f"{file!r} does not say which platform it is for.",
            status=Status.USAGE,
            code="invalid-input",
            hint="Write it like noarch/tool-1.0-0.conda; see them with `condastore channel show`.",
        )
    return {"channel": name, "subdir": subdir, "fileName": file_name}
